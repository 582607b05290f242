"""What all data sets have, whatever is in their files: a folder, splits, and what checks them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.cache import cache_folder

if TYPE_CHECKING:  # torch takes seconds to import, and a wrong option is refused without it
    pass

Part = Literal["train", "test"]
"""What the files of a data set are divided into; `val` is a piece of `train`."""

PARTS: tuple[Part, ...] = ("train", "test")
_LONGEST_STEM = 50  # characters of up to 4 bytes; file systems allow 255 bytes a name
_HOLD_OUT_SEED = 20240607  # any number, but never another: it decides which samples are `val`


def cache_root() -> Path:
    """The user's cache folder for data, which `data.root=null` stands for; it may not exist yet.

    Raises:
        ConfigError: The user has no home folder.
    """
    folder = cache_folder()
    if folder is None:
        raise ConfigError(
            "data.root", "null", "there is no home folder to keep data in", "set HOME, or a root"
        )
    return folder / "data"


@dataclass(frozen=True, kw_only=True)
class Files:
    """What all data sets have, whatever is in their files.

    Attributes:
        root: Folder with the files; None is `cache_root()`.
        download: Missing files may be downloaded into the root.
        val_fraction: Part of the training set, in [0, 1), that is held out as `val`.
        drop_last: The last training batch of an epoch is left out where it is shorter.
        eval_limit: How many samples `val` and `test` have at most; None is all.

    Raises:
        ConfigError: A value cannot be.
    """

    root: str | None
    download: bool
    val_fraction: float
    drop_last: bool
    eval_limit: int | None

    def __post_init__(self) -> None:
        if self.root is not None and not readable(self.root):
            raise ConfigError(
                "data.root", self.root, "is no folder that can be read", "create it, or give null"
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(
                "data.val_fraction", self.val_fraction, "is out of range", "give 0 <= fraction < 1"
            )
        if self.eval_limit is not None:
            check_at_least("eval_limit", self.eval_limit, 1, "or null for all")

    @property
    def folder(self) -> Path:
        """Where the files are, or will be downloaded to."""
        return cache_root() if self.root is None else Path(os.path.expanduser(self.root))

    @property
    def given_root(self) -> str:
        """The root as the user would write it."""
        return "null" if self.root is None else self.root

    def fault(
        self, source: object, problem: str, remedy: str = "put the published file there"
    ) -> ConfigError:
        """The error for a file that is not what it should be."""
        return ConfigError("data.root", self.given_root, f"{source}: {problem}", remedy)


def fixed_random(seed: int) -> np.random.RandomState:
    """A generator for what is the same in every run.

    NumPy has frozen the stream of this old class, which it promises for none of its newer ones.
    """
    return np.random.RandomState(seed)


def hold_out(samples: int, fraction: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which training samples are kept, in order, and which are `val`.

    What is held out stays in drawn order: its first n are fair too.

    Raises:
        ConfigError: Nothing would be left on one side.
    """
    count = round(fraction * samples)
    if not 0 < count < samples:
        raise ConfigError(
            "data.val_fraction",
            fraction,
            f"holds out {count} of {samples} training samples",
            "give a fraction that leaves a sample on both sides, or 0 for no `val`",
        )
    held_out = fixed_random(_HOLD_OUT_SEED).permutation(samples)[:count]
    return np.setdiff1d(np.arange(samples), held_out), held_out


def check_at_least(key: str, value: int, least: int, otherwise: str = "") -> None:
    """Refuses a smaller value of `data.<key>`.

    Raises:
        ConfigError: It is smaller.
    """
    if not value >= least:
        raise ConfigError(
            f"data.{key}", value, "is too small", f"give at least {least} {otherwise}".rstrip()
        )


def sample_name(number: int, file: Path | None) -> str:
    """The name of a picture in samples/, which is no other one's.

    Args:
        number: Number of the picture in the test split.
        file: Where the picture comes from, if it is from a file.
    """
    stem = "" if file is None else file.stem[:_LONGEST_STEM]
    clean = "".join(each if each.isprintable() else "_" for each in stem)
    return f"{number}-{clean}.png" if clean else f"{number}.png"


def readable(root: str) -> bool:
    """Whether it is a folder whose files can be listed."""
    folder = os.path.expanduser(root)
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)
