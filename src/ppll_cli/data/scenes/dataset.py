"""What a data set for object detection is."""

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppll_cli.data.classified import check_normalisation
from ppll_cli.data.files import PARTS, Files, Part, check_at_least, hold_out
from ppll_cli.data.scenes.index import Found, Objects, Scenes
from ppll_cli.data.scenes.sizes import MULTIPLE, padded

if TYPE_CHECKING:  # torch takes seconds to import, and a wrong option is refused without it
    import torch
    from PIL import Image
    from torch import Tensor

    from ppll_cli.data.identity import Entry, Identity
    from ppll_cli.data.scenes.batches import SceneBatches
    from ppll_cli.data.source import EvaluationForm, Prediction
    from ppll_cli.models.unit import ImageSpec
    from ppll_cli.tasks.detection import Detection

CHECK_S = 5.0
"""Seconds in which as many pictures as possible are compared with their annotations at the start;
the others are compared when they are decoded."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DetectionDataset(Files, ABC):
    """Pictures of any sizes and the boxes of their objects. A subclass says where they are.

    Attributes:
        mean: Mean of the pixels in [0, 1], one a channel.
        std: Standard deviation of the pixels in [0, 1], one a channel.
        flip: Half of the training pictures are mirrored from left to right.
        short_side: Pictures are resized so that their shorter side has so many pixels ...
        long_side: ... unless the longer one would have more than these.
        anchor: Side of the smallest anchors, in pixels of the resized pictures.
    """

    mean: list[float]
    std: list[float]
    flip: bool
    short_side: int
    long_side: int
    anchor: int

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by their labels."""

    @abstractmethod
    def read(self, part: Part) -> Scenes:
        """The pictures of a part; quick where that was done before.

        Raises:
            ConfigError: Files are missing, or are not what they should be.
        """

    @property
    def crowds(self) -> bool:
        """Whether ignored boxes are crowds, as COCO counts them, or single difficult objects."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normalisation(self.mean, self.std, 3)
        check_at_least("short_side", self.short_side, MULTIPLE)
        check_at_least("long_side", self.long_side, self.short_side, "(data.short_side)")
        check_at_least("anchor", self.anchor, 1)

    def prepare(self) -> None:
        """Makes sure that the files exist and fit; what is slow to read is read once, and kept.

        Raises:
            ConfigError: Files are missing, or are not what they should be.
        """
        splits = self.load()
        end_s = time.monotonic() + CHECK_S
        for scenes in sorted(splits.values(), key=len):
            for number in range(len(scenes) if scenes.sizes is not None else 0):
                if time.monotonic() >= end_s:
                    break
                scenes[number]
        for remark in dict.fromkeys(scenes.remark for scenes in splits.values() if scenes.remark):
            log.warning(remark)
        for name, scenes in splits.items():
            if not scenes.asked_for:
                then = "nothing is learnt but that" if name == "train" else "ap will be null"
                log.warning("the %d pictures of %s have no objects: %s", len(scenes), name, then)

    def load(self) -> dict[str, Scenes]:
        """`train`, `val` where a fraction is held out, `test`; the same in every run.

        Raises:
            ConfigError: Files are missing, or are not what they should be, or too few pictures are
                there to hold out the wanted fraction.
        """
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Scenes]:
        parts = {part: self.read(part) for part in PARTS}
        for part, scenes in parts.items():
            if not len(scenes):
                raise self.fault(self.folder, f"has no pictures for {part}")
        self._check_apart(parts)
        splits = {"train": parts["train"]}
        if self.val_fraction:
            kept, held_out = hold_out(len(parts["train"]), self.val_fraction)
            splits["train"] = parts["train"].of(kept)
            splits["val"] = parts["train"].of(held_out[: self.eval_limit])
        splits["test"] = parts["test"].of(slice(self.eval_limit))
        return splits

    def _check_apart(self, parts: Mapping[Part, Scenes]) -> None:
        """Check that no file is in both parts, nor twice in one; folders may be links."""
        real_folder = cache(os.path.realpath)
        seen: dict[str, Path] = {}
        for scenes in parts.values():
            for file in scenes.pixels if scenes.sizes is not None else ():
                assert isinstance(file, Path)
                real = f"{real_folder(file.parent)}/{file.name}"
                if real in seen:
                    problem = "is in training and test, or twice in one of them"
                    where = f" and as {seen[real]}" if seen[real] != file else ""
                    raise self.fault(f"{file}{where}", problem, "list each picture once")
                seen[real] = file

    @property
    def largest(self) -> int:
        """Height and width of the largest images, in pixels."""
        return padded(self.long_side)

    @property
    def task(self) -> "Detection":
        """What is learnt from this data set."""
        from ppll_cli.tasks.detection import Detection

        boxes = max(1, *(scenes.most_objects for scenes in self._splits.values()))
        return Detection(
            self.classes, boxes, self.largest, self.largest, self.anchor, crowds=self.crowds
        )

    def image_spec(self, splits: Mapping[str, Scenes]) -> "ImageSpec":
        """The largest images, of which no batch need be."""
        from ppll_cli.models.unit import ImageSpec

        return ImageSpec(3, self.largest, self.largest, tuple(self.mean), tuple(self.std))

    def evaluation_form(self, splits: Mapping[str, Scenes]) -> "EvaluationForm | None":
        """One picture at a time: what is found must not depend on the size of others."""
        from ppll_cli.data.source import EvaluationForm

        return EvaluationForm(self.image_spec(splits), self.task.targets, samples=1)

    def identity(self, splits: Mapping[str, Scenes]) -> "Identity | None":
        """The pictures' files, where there are such, and what the annotations say of them.

        None where a subclass loads something else.
        """
        from ppll_cli.data.identity import of_arrays, of_files

        found: dict[str, list[Entry]] = {}
        for name, scenes in splits.items():
            if not isinstance(scenes, Scenes):
                return None
            entries = of_arrays({"chosen": scenes.chosen, **scenes.objects.arrays})
            entries.append(("classes", ", ".join(self.classes)))
            if not isinstance(scenes.pixels, np.ndarray):
                entries += of_files(scenes.pixels[number] for number in scenes.chosen)
            found[name] = entries
        return found

    def batches(
        self, splits: Mapping[str, Scenes], batch_size: int, seed: int, device: "torch.device"
    ) -> "SceneBatches":
        """What makes the batches of a run from what `load` returned."""
        from ppll_cli.data.scenes.batches import SceneBatches

        return SceneBatches(
            splits,
            boxes=self.task.boxes,
            short_side=self.short_side,
            long_side=self.long_side,
            mean=self.mean,
            std=self.std,
            flip=self.flip,
            drop_last=self.drop_last,
            batch_size=batch_size,
            seed=seed,
            device=device,
        )

    def draw_samples(self, predict: "Callable[[Tensor], Tensor]", folder: Path) -> None:
        """Writes the first test pictures with their boxes and with what the model detects."""
        import torch

        from ppll_cli.data.scenes.samples import write_samples

        splits = self.load()
        batches = self.batches(splits, 1, 0, torch.device("cpu"))
        write_samples(splits["test"], batches, self.task, predict, folder)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by their labels."""
        return self.classes

    def inputs(
        self, picture: "Image.Image", image: "ImageSpec", device: "torch.device"
    ) -> "dict[str, Tensor]":
        """A picture of the user's as the model takes it: resized, normalised and padded."""
        from ppll_cli.models.unit import IMAGE
        from ppll_cli.tasks.detection import FRAME

        pixels = np.asarray(picture.convert("RGB"))[None]
        alone = Scenes.all(pixels, Objects.of([Found(picture.height, picture.width, ())]))
        values = self.batches({"train": alone}, 1, 0, device).evaluation("train", 0, 1)
        return {name: values[name] for name in (IMAGE, FRAME)}

    def predicted(
        self,
        predict: "Callable[[Tensor], Tensor]",
        picture: "Image.Image",
        inputs: "dict[str, Tensor]",
    ) -> "Prediction":
        """The boxes that the model finds in a picture of the user's, and the picture with them."""
        from ppll_cli.data.scenes.samples import found_in
        from ppll_cli.models.unit import IMAGE
        from ppll_cli.tasks.detection import FRAME

        (found,) = self.task.detections(predict(inputs[IMAGE]), inputs[FRAME])
        return found_in(picture.convert("RGB"), found, self.classes)
