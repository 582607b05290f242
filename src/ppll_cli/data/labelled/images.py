"""Makes images of one size from pictures, and stores them in the cache folder for later runs."""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.files import cache_root
from ppll_cli.data.kept import kept_folder, mapped_pixels, pixels_file, place
from ppll_cli.data.labelled.loader import Wanted, image_of
from ppll_cli.data.labelled.loaders import DecodedAhead, Loaders
from ppll_cli.data.pictures.cache import stamped

AT_ONCE = 128

_FEW = 200
"""Largest number of pictures that are decoded without loaders, which start slowly."""

_SAID = 5000
"""Largest number of images that are made without a log message."""

log = logging.getLogger(__name__)


def kept_images(wanted: Sequence[Wanted], side: int, processes: int) -> NDArray[np.uint8]:
    """Return the images of N pictures, uint8 [N, 3, side, side]; make them if the cache has none.

    The result is mapped from a file. Changes to it are not written to the file.

    Raises:
        ConfigError: A file cannot be read as a picture, or the cache folder cannot be written.
    """
    shape = (len(wanted), 3, side, side)

    def make(folder: Path) -> None:
        if len(wanted) > _SAID:
            log.warning("resizing %d pictures once, with %d processes", len(wanted), processes)
        with pixels_file(folder / "images.npy", *shape) as file:
            for images in images_of(wanted, side, processes):
                file.write(images.data)

    def read(folder: Path) -> NDArray[np.uint8]:
        return mapped_pixels(folder / "images.npy", *shape, mode="c")

    stamps = [stamped(Path(each.path)) for each in wanted]
    pieces = sorted({each.part for each in wanted})
    return kept_folder(place(cache_root() / "images", [side, pieces, stamps]), make, read)


def images_of(
    wanted: Sequence[Wanted], side: int, processes: int
) -> Generator[NDArray[np.uint8], None, None]:
    """Yield arrays with the images of pictures. Each array is valid until the next one is yielded.

    Up to `_FEW` pictures are decoded by this process itself; each array is one image,
    uint8 [3, side, side]. More pictures are decoded by loaders; each array has up to `AT_ONCE`
    images, uint8 [n, 3, side, side].
    """
    if len(wanted) <= _FEW:
        yield from (image_of(each, side) for each in wanted)
        return
    starts = range(0, len(wanted), AT_ONCE)
    with closing(Loaders(processes, side)) as loaders:
        ahead = DecodedAhead[int](lambda first: loaders.begin(wanted[first : first + AT_ONCE]))
        for number in range(len(starts)):
            with ahead.images(starts[number : number + 2]) as images:
                yield images
