"""The base class of data sets for object detection."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field, FiniteFloat

from ppll_cli.data.classified import check_normalisation
from ppll_cli.data.files import PARTS, Files, Part, hold_out, repeated, sample_name
from ppll_cli.data.scenes.index import Found, Objects, Scenes
from ppll_cli.data.source import EvaluationForm, Predict, Prediction, Tensors
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.images import IMAGE, ImageSpec
from ppll_cli.leaves.limits import Count, Positive

if TYPE_CHECKING:  # not at run time: wrong options are refused before torch is imported
    import torch
    from PIL.Image import Image

    from ppll_cli.data.identity import Entry, Identity
    from ppll_cli.data.scenes.batches import SceneBatches
    from ppll_cli.tasks.boxes import Detections
    from ppll_cli.tasks.detection import Detection

CHECK_S = 5.0
"""Time limit in seconds for comparing the sizes of pictures with their annotations at the start."""

MULTIPLE = 32
"""Height and width of a batch's images are multiples of this, the largest stride of a backbone."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DetectionDataset(Files, ABC):
    """A data set of pictures of any size with boxes of objects. A subclass finds the files.

    Attributes:
        mean: Mean of the pixels, which are in [0, 1]: one value, or one value per channel.
        std: Standard deviation of these pixels: one value, or one value per channel.
        flip: Whether each training picture is mirrored from left to right with probability 1/2.
        short_side: Length in pixels to which the shorter side of a picture is resized.
        long_side: Largest length of the longer side of a resized picture, in pixels. It has
            priority over `short_side`.
        anchor: Side of the smallest anchors, in pixels of the resized pictures.
        crowds: Whether ignored boxes are crowds, as in COCO; if not, they are single objects.
    """

    mean: list[FiniteFloat]
    std: list[Positive]
    flip: bool
    short_side: Annotated[int, Field(ge=MULTIPLE)]
    long_side: int
    anchor: Count

    crowds: ClassVar[bool] = False

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""

    @abstractmethod
    def read(self, part: Part) -> Scenes:
        """Return the training or test pictures and their objects, or raise ConfigError."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normalisation(self.mean, self.std, 3)
        if self.long_side < self.short_side:
            problem = f"must be at least data.short_side={self.short_side}"
            raise ConfigError("data.long_side", self.long_side, problem)

    def prepare(self) -> None:
        """Read the annotations, compare the sizes of some pictures with them, and log warnings.

        Raises:
            ConfigError: The annotations or pictures are missing, wrong or repeated.
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
            if not scenes.not_ignored:
                then = (
                    "the model cannot learn to find objects"
                    if name == "train"
                    else "ap will be null"
                )
                log.warning(
                    "the %d pictures of %s have no objects, or only ignored ones: %s",
                    len(scenes),
                    name,
                    then,
                )

    def load(self) -> dict[str, Scenes]:
        """Return the splits `train` and `test`, and `val` if `val_fraction` is not 0.

        The run's seed has no effect on them.

        Raises:
            ConfigError: A picture is missing or repeated, an annotation is wrong, or `val_fraction`
                holds out no picture or all pictures.
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
        files: dict[str, list[Path]] = {part: _files(parts[part]) for part in parts}
        for (part, number), (first_part, first) in repeated(files):
            file, earlier = files[part][number], files[first_part][first]
            where = f" and as {earlier}" if earlier != file else ""
            problem = "occurs twice, in training and test or in one of them"
            raise self.fault(f"{file}{where}", problem, "list each picture once")

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which a picture is resized; all sizes are in pixels."""
        factor = min(self.short_side / min(height, width), self.long_side / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))

    @staticmethod
    def padded(side: int) -> int:
        """Round `side`, the largest height or width in a batch, up to a multiple of `MULTIPLE`."""
        return -(-side // MULTIPLE) * MULTIPLE

    @property
    def largest(self) -> int:
        """Largest height and width of images, in pixels."""
        return self.padded(self.long_side)

    @property
    def task(self) -> "Detection":
        """Object detection for the classes and the largest picture size of this data set."""
        from ppll_cli.tasks.detection import Detection

        boxes = max(1, *(scenes.most_objects for scenes in self._splits.values()))
        return Detection(
            self.class_names, boxes, self.largest, self.largest, self.anchor, crowds=self.crowds
        )

    def image_spec(self, splits: Mapping[str, Scenes]) -> ImageSpec:
        """Return the largest possible shape of images; the images of batches may be smaller."""
        return ImageSpec(3, self.largest, self.largest, tuple(self.mean), tuple(self.std))

    def evaluation_form(self, splits: Mapping[str, Scenes]) -> EvaluationForm | None:
        """Return the largest shapes of evaluation batches, which have one picture each."""
        # Several pictures would be padded to a common size, which could change detections.
        return EvaluationForm(self.image_spec(splits), self.task.targets, samples=1)

    def identity(self, splits: Mapping[str, Scenes]) -> "Identity | None":
        """Return, for each split, entries for its annotations, its classes and its picture files.

        Annotations are identified by digests, picture files by name and size. Return None if a
        split is not a `Scenes`.
        """
        from ppll_cli.data.identity import of_arrays, of_files

        found: dict[str, list[Entry]] = {}
        for name, scenes in splits.items():
            if not isinstance(scenes, Scenes):
                return None
            entries = of_arrays({"chosen": scenes.chosen, **vars(scenes.objects)})
            entries.append(("classes", ", ".join(self.class_names)))
            if not isinstance(scenes.pixels, np.ndarray):
                entries += of_files(scenes.pixels[number] for number in scenes.chosen)
            found[name] = entries
        return found

    def batches(
        self, splits: Mapping[str, Scenes], batch_size: int, seed: int, device: "torch.device"
    ) -> "SceneBatches":
        """Return an object that makes batches of resized pictures with their boxes."""
        from ppll_cli.data.scenes.batches import SceneBatches

        return SceneBatches(self, splits, batch_size, seed, device)

    def draw_samples(self, predict: Predict, folder: Path) -> None:
        """Create `folder`; write the first test pictures there with true and detected boxes."""
        import torch

        from ppll_cli.data.scenes.samples import PICTURES, drawn

        scenes = self.load()["test"]
        batches = self.batches(self.load(), 1, 0, torch.device("cpu"))
        folder.mkdir()
        for number in range(min(PICTURES, len(scenes))):
            found = self._found(predict, batches.evaluation("test", number, 1))
            scene = scenes[number]
            file = scene.pixels if isinstance(scene.pixels, Path) else None
            drawn(scene, found, self.class_names).save(folder / sample_name(number, file))

    def inputs(self, picture: "Image", image: ImageSpec, device: "torch.device") -> Tensors:
        """Resize, normalise and pad a user's picture, and return a batch with only this picture.

        The batch has `IMAGE`, float32 [1, 3, H, W], and `FRAME` (see `tasks.detection`).
        """
        from ppll_cli.tasks.detection import FRAME

        pixels = np.asarray(picture.convert("RGB"))[None]
        alone = Scenes.all(pixels, Objects.of([Found(picture.height, picture.width, ())]))
        values = self.batches({"train": alone}, 1, 0, device).evaluation("train", 0, 1)
        return {name: values[name] for name in (IMAGE, FRAME)}

    def predicted(self, predict: Predict, picture: "Image", inputs: Tensors) -> Prediction:
        """Return all boxes that the model detects in a picture, and a drawing of the best."""
        from ppll_cli.data.scenes.samples import found_in

        return found_in(picture.convert("RGB"), self._found(predict, inputs), self.class_names)

    def _found(self, predict: Predict, inputs: Tensors) -> "Detections":
        from ppll_cli.tasks.detection import FRAME

        (found,) = self.task.detections(predict(inputs[IMAGE]), inputs[FRAME])
        return found


def _files(scenes: Scenes) -> list[Path]:
    # `sizes` is None for pictures that the program paints itself. These have no files.
    files = () if scenes.sizes is None else scenes.pixels
    return [file for file in files if isinstance(file, Path)]
