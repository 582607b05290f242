"""A user's own pictures, in a folder for each class or listed in CSV files."""

from dataclasses import dataclass
from pathlib import Path

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

PARTS = ("train", "test", "val")


@dataclass(frozen=True, kw_only=True)
class ImageFolder(LabelledPictures):
    """The user's pictures in the data root, which must be given.

    The root has a part `train`, and may have parts `test` and `val`. Each part is a folder with a
    folder for each class, or a CSV file of paths and classes, such as `train.csv`. A root without
    these parts is the training set itself: it has a folder for each class, or one CSV file.

    The test set is the part `test`. If `test` is missing, the test set is the part `val`. If both
    are missing, `val_fraction` of the training pictures is held out as the test set.
    """

    def __post_init__(self) -> None:
        if self.root is None:
            raise ConfigError(
                "data.root",
                None,
                "needs the folder of your pictures",
                "give data.root=FOLDER, with the folders train and test, or with a folder for each "
                "class and data.val_fraction=0.2",
            )
        super().__post_init__()

    @property
    def test_is_held_out(self) -> bool:
        """Whether the test set is a held-out part of the training set."""
        return self._source("test") is None and self._source("val") is None

    def find(self) -> Parts:  # noqa: D102
        sources = {part: source for part in PARTS if (source := self._source(part)) is not None}
        if not sources:
            sources = {"train": self._whole()}
        if "train" not in sources:
            problem = f"has {' and '.join(sources)}, but no train"
            raise ListingError(self.folder, problem, "add the folder train, or train.csv")
        return {part: (at, self._read(part, at)) for part, at in sources.items()}

    def _source(self, part: str) -> Path | None:
        file, folder = self.folder / f"{part}.csv", self.folder / part
        if file.is_file():
            return file
        return folder if folder.is_dir() else None

    def _whole(self) -> Path:
        files = sorted(self.folder.glob("*.csv"))
        if len(files) > 1:
            problem = f"has several CSV files, {files[0].name} and {files[1].name} among them"
            raise ListingError(self.folder, problem, "name them train.csv and test.csv")
        if not files and not class_folders(self.folder):
            problem = "has neither folders of classes nor a CSV file"
            remedy = (
                "put train/CLASS/PICTURE and test/CLASS/PICTURE there, or train.csv and test.csv"
            )
            raise ListingError(self.folder, problem, remedy)
        return files[0] if files else self.folder

    def _read(self, part: str, source: Path) -> Classes:
        if source.is_file():
            return from_csv(source, self.folder, self.folder / part)
        return from_folders(source, empty=part != "train")
