"""Folders of pictures; by default wallpapers that Debian and Ubuntu have packages of."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ppll_cli.data.files import Part, readable
from ppll_cli.data.pictures.cache import Source
from ppll_cli.data.pictures.dataset import PictureDataset
from ppll_cli.errors import ConfigError

TEST_PICTURES = 3
SUFFIXES = (".png", ".jpg", ".jpeg")
PACKAGES = "apt-get install lomiri-wallpapers-16.04 mate-backgrounds"


@dataclass(frozen=True, kw_only=True)
class Photos(PictureDataset):
    """All pictures in some folders, not below them; the last three by name are for the test.

    Names are compared in lower case, as a file manager lists them.

    Attributes:
        folders: With .png and .jpg files.
        longest_side: Larger pictures are reduced so that the longer side has so many pixels: a
            photograph is sharper so than as it was taken. None: as they are.
    """

    folders: list[str]
    longest_side: int | None

    @property
    def longest(self) -> int | None:  # noqa: D102
        return self.longest_side

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest_side is not None and self.longest_side < 1:
            raise ConfigError(
                "data.longest_side", self.longest_side, "must be at least 1", "or null"
            )

    def sources(self, part: Part) -> Sequence[Source]:  # noqa: D102
        paths: list[Path] = []
        for folder in self._folders():
            # A link to nowhere or a named pipe is refused later, as no readable picture.
            files = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
            paths += [path for path in files if not path.is_dir()]
        paths.sort(key=lambda path: (path.name.lower(), str(path)))
        if len(paths) <= TEST_PICTURES:
            raise ConfigError(
                "data.folders",
                self._given,
                f"has {len(paths)} pictures ({', '.join(SUFFIXES)}), of which the last "
                f"{TEST_PICTURES} by name are for the test",
                f"name folders with more, or install the default ones: {PACKAGES}",
            )
        chosen = paths[:-TEST_PICTURES] if part == "train" else paths[-TEST_PICTURES:]
        return [Source(path) for path in chosen]

    def _folders(self) -> list[Path]:
        """The folders; each of them can be read, and is listed once."""
        seen: dict[str, str] = {}
        for folder in self.folders:
            if not readable(folder):
                problem = f"there is no folder {folder} that can be read"
                remedy = f"name folders of pictures, or install the default ones: {PACKAGES}"
                raise ConfigError("data.folders", self._given, problem, remedy)
            real = os.path.realpath(os.path.expanduser(folder))
            if real in seen:
                problem = f"{folder} is the same folder as {seen[real]}"
                raise ConfigError("data.folders", self._given, problem, "list each folder once")
            seen[real] = folder
        return [Path(os.path.expanduser(folder)) for folder in self.folders]

    @property
    def _given(self) -> str:
        """The folders as the user would write them."""
        return f"[{','.join(self.folders)}]"
