"""A small data set for object detection: painted scenes with items of Fashion-MNIST."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from ppll_cli.data.fashion_mnist import CLASSES, FashionMnist
from ppll_cli.data.files import Part, cache_root, fixed_random
from ppll_cli.data.kept import kept_folder, pixels_file, place, stamp
from ppll_cli.data.scenes.canvas import paint
from ppll_cli.data.scenes.dataset import DetectionDataset
from ppll_cli.data.scenes.index import Found, Objects, Scenes
from ppll_cli.data.source import EvaluationForm

_SEEDS = {"train": 10_000_000, "test": 20_000_000}  # seed of each part's first scene
PAINTER = 1
"""Version of the painting code. Increase it with each change of painted scenes, so that older
scenes in the cache folder are not used.
"""

Number = Annotated[int, Field(ge=1, le=1_000_000)]  # type of a part's number of scenes


@dataclass(frozen=True, kw_only=True)
class FashionScenes(DetectionDataset):
    """Scenes painted with items of Fashion-MNIST; every machine paints the same scenes.

    They are painted once and stored in the cache folder. Training scenes contain only training
    items of Fashion-MNIST, test scenes only test items.

    Attributes:
        pictures: Number of training scenes.
        test_pictures: Number of test scenes. With a larger number, the first scenes stay the same.
        side: Height and width of a scene, in pixels.
    """

    pictures: Number
    test_pictures: Number
    side: Annotated[int, Field(ge=32)]

    class_names = CLASSES

    def prepare(self) -> None:  # noqa: D102
        self._items.prepare()
        super().prepare()

    def read(self, part: Part) -> Scenes:  # noqa: D102
        files = self._items.files()
        if files is None:
            raise self.fault(self.folder, "has no files of Fashion-MNIST")
        count = self.pictures if part == "train" else self.test_pictures
        stamps = [stamp(path) for path in files.values()]
        recipe = [PAINTER, stamps, part, count, self.side]
        return kept_folder(
            place(cache_root() / "fashion_scenes", recipe),
            lambda made: self._paint(made, part, count),
            lambda kept: self._painted(kept, count),
        )

    def evaluation_form(self, splits: Mapping[str, Scenes]) -> EvaluationForm | None:
        """Return None: scenes have the same size in training and in evaluation."""
        return None

    def _paint(self, folder: Path, part: Part, count: int) -> None:
        split = self._items.load()[part]
        items, labels = split.images[:, 0].numpy(), split.labels.numpy()
        found = []
        with pixels_file(folder / "pixels.npy", count, self.side, self.side, 3) as file:
            for number in range(count):
                scene = paint(fixed_random(_SEEDS[part] + number), items, labels, self.side)
                file.write(scene.pixels.tobytes())
                found.append(Found(self.side, self.side, scene.objects))
        np.savez(folder / "objects.npz", **vars(Objects.of(found)))

    def _painted(self, folder: Path, count: int) -> Scenes:
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        # Open the file here: np.load does not close a damaged file that it has opened itself.
        with (folder / "objects.npz").open("rb") as file, np.load(file) as stored:
            objects = Objects(**stored)
        if pixels.dtype != np.uint8 or pixels.shape != (count, self.side, self.side, 3):
            raise ValueError(f"its pixels are {pixels.dtype} {pixels.shape}")
        return Scenes.all(pixels, objects)

    @property
    def _items(self) -> FashionMnist:
        return FashionMnist(
            root=self.root,
            download=self.download,
            val_fraction=0.0,
            drop_last=False,
            eval_limit=None,
            mean=[0.5],
            std=[0.5],
            pad=0,
            pad_mode="zeros",
            flip=False,
        )
