"""Folders of pictures; by default wallpapers from packages of Debian and Ubuntu."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ppll_cli.data.files import Part, readable
from ppll_cli.data.pictures.cache import Source
from ppll_cli.data.pictures.dataset import PictureDataset
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Count

log = logging.getLogger(__name__)

TEST_PICTURES = 3
SUFFIXES = (".png", ".jpg", ".jpeg")
PACKAGES = "apt-get install lomiri-wallpapers-16.04 mate-backgrounds"


@dataclass(frozen=True, kw_only=True)
class Photos(PictureDataset):
    """The pictures in some folders, without subfolders; the last three by name are the test set.

    Attributes:
        folders: Folders with .png, .jpg or .jpeg files.
        longest_side: Larger pictures are reduced so that their longer side has this many pixels,
            because reduced photographs are sharper. With None, no picture is reduced.
    """

    folders: list[str]
    longest_side: Count | None

    def prepare(self) -> None:
        """Decode the pictures; warn if the user gave `root`, which has no effect."""
        if self.root is not None:
            given = self.root, ",".join(self.folders)
            log.warning("data.root=%s has no effect: the pictures are in data.folders=[%s]", *given)
        super().prepare()

    @property
    def longest(self) -> int | None:  # noqa: D102
        return self.longest_side

    def sources(self, part: Part) -> Sequence[Source]:  # noqa: D102
        paths: list[Path] = []
        for folder in self._folders():
            # Broken links and named pipes are refused later, as unreadable pictures.
            files = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
            paths += [path for path in files if not path.is_dir()]
        paths.sort(key=lambda path: (path.name.lower(), str(path)))
        if len(paths) <= TEST_PICTURES:
            raise ConfigError(
                "data.folders",
                self._given,
                f"has {len(paths)} pictures ({', '.join(SUFFIXES)}), too few to train on: the last "
                f"{TEST_PICTURES} by name are the test set",
                f"name folders with more, or install the default ones: {PACKAGES}",
            )
        chosen = paths[:-TEST_PICTURES] if part == "train" else paths[-TEST_PICTURES:]
        return [Source(path) for path in chosen]

    def _folders(self) -> list[Path]:
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
        return f"[{','.join(self.folders)}]"
