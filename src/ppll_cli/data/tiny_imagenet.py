"""Tiny ImageNet: 100,000 training and 10,000 test photographs, 64x64 pixels, 200 classes."""

from dataclasses import dataclass
from pathlib import Path

from ppll_cli.data.download import provide
from ppll_cli.data.labelled.dataset import LabelledPictures
from ppll_cli.data.labelled.listing import Parts, from_csv, from_folders

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"
NAMES = "wnids.txt"
ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(LabelledPictures):
    """Tiny ImageNet from its unpacked archive, which is the data root or a folder in it.

    The archive's `val` is the test set, because the labels of its `test` were never published.
    Classes are named by WordNet's ids.
    """

    def prepare(self) -> None:  # noqa: D102
        if not (self.folder / NAMES).is_file():
            provide(self, [f"{FOLDER}/{NAMES}"], URL, _fetch, everything=True)
        super().prepare()

    def find(self) -> Parts:  # noqa: D102
        base = self.folder if (self.folder / NAMES).is_file() else self.folder / FOLDER
        train, val = base / "train", base / "val"
        listed = val / ANNOTATIONS  # missing if somebody has sorted the pictures into folders
        evaluated = from_csv(listed, val / "images") if listed.is_file() else from_folders(val)
        return {"train": (train, from_folders(train)), "test": (val, evaluated)}


def _fetch(folder: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(URL, str(folder), md5=MD5, remove_finished=True)
