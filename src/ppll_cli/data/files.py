"""Settings that all data sets share, and functions that check and divide their files."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ppll_cli.config.targets import check_options
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.cache import cache_folder
from ppll_cli.leaves.limits import Count, Fraction

Part = Literal["train", "test"]
"""The two sets into which a data set's files are divided. `val` is later held out of `train`."""

PARTS: tuple[Part, ...] = ("train", "test")
PUBLISHED = "put the published file there"
"""The advice of error messages if a file of a published data set is missing or wrong."""

_LONGEST_STEM = 50  # characters of up to 4 bytes each; a whole file name may have 255 bytes
_HOLD_OUT_SEED = 20240607  # never change it: it decides which samples are `val`


def cache_root() -> Path:
    """Return the cache folder for data. `data.root=null` means this folder. It may not exist.

    Raises:
        ConfigError: There is no cache folder, because the user has no home folder.
    """
    folder = cache_folder()
    if folder is None:
        raise ConfigError(
            "data.root", None, "there is no home folder to keep data in", "set HOME or data.root"
        )
    return folder / "data"


@dataclass(frozen=True, kw_only=True)
class Files:
    """The settings that all data sets share.

    Attributes:
        root: Folder with the files; None for `cache_root()`.
        download: Whether missing files may be downloaded into the root.
        val_fraction: Fraction of the training set that is held out as `val`.
        drop_last: Whether a shorter last training batch of an epoch is left out.
        eval_limit: Largest number of samples in `val`, and in `test`; None for no limit.

    Raises:
        ConfigError: A value does not fit its field, or `root` is not a folder that can be read.
    """

    root: str | None
    download: bool
    val_fraction: Fraction
    drop_last: bool
    eval_limit: Count | None

    def __post_init__(self) -> None:
        check_options("data", self)
        if self.root is not None and not readable(self.root):
            problem = "is not a folder that can be read"
            remedy = "give an existing folder that you can read, or null"
            raise ConfigError("data.root", self.root, problem, remedy)

    @property
    def folder(self) -> Path:
        """The folder where the files are, or into which they are downloaded."""
        return cache_root() if self.root is None else Path(os.path.expanduser(self.root))

    @property
    def given_root(self) -> str:
        """The value of `data.root` as the user writes it; `null` if `root` is None."""
        return "null" if self.root is None else self.root

    def fault(self, source: object, problem: str, remedy: str = PUBLISHED) -> ConfigError:
        """Return the error for `source`, a missing or wrong file or folder.

        `problem` says what is wrong with it, for example "has no labels", and `remedy` what the
        user can do.
        """
        given = self.root is not None and source == self.folder
        problem = problem if given else f"{source}: {problem}"
        return ConfigError("data.root", self.given_root, problem, remedy)


def fixed_random(seed: int) -> np.random.RandomState:
    """Return a generator for random choices that must be the same in every run.

    NumPy promises that the numbers of this old class never change.
    """
    return np.random.RandomState(seed)


def hold_out(
    samples: int, fraction: float, needed: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Choose training samples to hold out; return the indices of the kept and held-out samples.

    The choice is the same in every run. Kept indices ascend. Held-out indices are in random order,
    so the first n of them are a random sample.

    Args:
        samples: Number of training samples.
        fraction: Fraction of the samples to hold out.
        needed: Whether the data have no other samples for tests. Then the error message does not
            suggest a fraction of 0.

    Raises:
        ConfigError: No sample would be held out, or none would be kept.
    """
    count = round(fraction * samples)
    if not 0 < count < samples:
        problem = f"holds out {count} of {samples} training samples"
        remedy = "give a fraction that leaves samples in both parts"
        remedy += "" if needed else ", or 0 for no `val`"
        raise ConfigError("data.val_fraction", fraction, problem, remedy)
    held_out = fixed_random(_HOLD_OUT_SEED).permutation(samples)[:count]
    return np.setdiff1d(np.arange(samples), held_out), held_out


def sample_name(number: int, file: Path | None) -> str:
    """Return the name of a drawing: `3-cat.png` for test picture number 3 from `cat.jpg`.

    If the picture has no file, the name is `3.png`. Long names are shortened.
    """
    stem = "" if file is None else file.stem[:_LONGEST_STEM]
    clean = "".join(each if each.isprintable() else "_" for each in stem)
    return f"{number}-{clean}.png" if clean else f"{number}.png"


Place = tuple[str, int]
"""Where a file is listed: the name of a part or split, and the file's index there."""


def repeated(parts: Mapping[str, Iterable[str | Path]]) -> Iterator[tuple[Place, Place]]:
    """Find files that are listed more than once, under the same path or through links.

    Two links to one file are allowed within the same split.

    Args:
        parts: The files of each split.

    Yields:
        For each repetition, its place in `parts`, and the place where the file is listed first.
    """
    real_folder = cache(os.path.realpath)  # resolve each folder only once
    seen: dict[str, tuple[Place, bool]] = {}
    for part, files in parts.items():
        for number, file in enumerate(files):
            is_link, (folder, name) = os.path.islink(file), os.path.split(file)
            real = os.path.realpath(file) if is_link else f"{real_folder(folder)}/{name}"
            here = (part, number)
            first, first_is_link = seen.setdefault(real, (here, is_link))
            # Some programs store equal files only once, and make links to them.
            if first != here and not (is_link and first_is_link and part == first[0]):
                yield here, first


def readable(root: str) -> bool:
    """Return whether `root` is a folder whose files can be listed and opened."""
    folder = os.path.expanduser(root)
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)
