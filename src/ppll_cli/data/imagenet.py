"""ImageNet (ILSVRC 2012): 1.28 million training and 50,000 test photographs, 1000 classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat

from ppll_cli.data.labelled.dataset import LabelledPictures
from ppll_cli.data.labelled.listing import (
    Classes,
    ListingError,
    Parts,
    class_folders,
    from_csv,
    from_folders,
)
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Count

KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")
"""Folder of the pictures in Kaggle's archive."""

SOLUTION = "LOC_val_solution.csv"
"""Kaggle's list of the pictures of val: each picture's name, class and boxes."""


@dataclass(frozen=True, kw_only=True)
class ImageNet(LabelledPictures):
    """ImageNet from folders `train` and `val` with a folder per class, or from Kaggle's archive.

    `val` is the test set. Training uses random pieces of the pictures, or the square in the middle
    of each picture if `augment=none`. Evaluation uses this square. Classes are named by WordNet's
    ids; a subset of the classes is allowed.

    Attributes:
        crop_scale: Smallest and largest area of a random piece, as fractions of the picture's area.
        middle_part: Side of the square in the middle, as a fraction of the picture's shorter side:
            0.875 is 224 of 256 pixels.
        loaders: Number of loaders, at least 1. None means the number of cores minus one (at least
            1, at most 16).
    """

    crop_scale: tuple[float, float]
    middle_part: Annotated[FiniteFloat, Field(gt=0, le=1)]
    loaders: Count | None = None

    resident = False  # each epoch may use other pieces, so loaders decode the pictures every time

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            remedy = "give [low, high] with 0 < low <= high <= 1"
            raise ConfigError("data.crop_scale", self.crop_scale, "is not a range of areas", remedy)

    @property
    def middle(self) -> float:  # noqa: D102
        return self.middle_part

    @property
    def scale(self) -> tuple[float, float] | None:  # noqa: D102
        return None if self.augment == "none" else self.crop_scale

    def find(self) -> Parts:  # noqa: D102
        base = self.folder
        if not (base / "train").is_dir() and (base / KAGGLE / "train").is_dir():
            base = base / KAGGLE
        if not (base / "train").is_dir():
            remedy = "ImageNet cannot be downloaded: put train/CLASS and val/CLASS there yourself"
            raise ListingError(self.folder, "has no folder train", remedy)
        train, val = base / "train", base / "val"
        solution = self.folder / SOLUTION
        evaluated = from_csv(solution, val, meant=_kaggle) if solution.is_file() else _sorted(val)
        return {"train": (train, from_folders(train)), "test": (val, evaluated)}


def _kaggle(name: str, boxes: str) -> tuple[str, str]:
    # An example of `boxes` is "n01440764 85 1 499 272": the class, and a box.
    return f"{name}.JPEG", boxes.split()[0]


def _sorted(val: Path) -> Classes:
    if val.is_dir() and not class_folders(val):
        remedy = (
            f"sort its pictures into val/CLASS, as valprep.sh does, or put Kaggle's {SOLUTION} "
            "into the root"
        )
        raise ListingError(val, "has no folders of classes", remedy)
    return from_folders(val)
