"""Makes images of one size from pictures once, and stores them in the cache folder."""

import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.files import cache_root
from ppll_cli.data.kept import kept_folder, pixels_file, place
from ppll_cli.data.labelled.loader import Wanted, image_of
from ppll_cli.data.labelled.loaders import Loaders, Loading
from ppll_cli.data.pictures.cache import stamped

AT_ONCE = 128
"""Largest number of pictures in a call of `Loaders.begin`."""

_FEW = 200
"""Up to this number of pictures are decoded without loaders, because loaders start slowly."""

_SAID = 5000
"""If more images than this number are to be made, a log message announces it."""

log = logging.getLogger(__name__)


def kept_images(wanted: Sequence[Wanted], side: int, processes: int) -> NDArray[np.uint8]:
    """Return the images of N pictures from the cache; loaders make them first if they are missing.

    The result, uint8 [N, 3, side, side], is mapped from a file. Changes to the result are not
    written to the file.

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
        images: NDArray[np.uint8] = np.load(folder / "images.npy", mmap_mode="c")
        if images.dtype != np.uint8 or images.shape != shape:
            raise ValueError(f"it holds {images.dtype} {images.shape}")
        return images

    stamps = [stamped(Path(each.path)) for each in wanted]
    pieces = sorted({each.part for each in wanted})
    return kept_folder(place(cache_root() / "images", [side, pieces, stamps]), make, read)


def images_of(
    wanted: Sequence[Wanted], side: int, processes: int
) -> Generator[NDArray[np.uint8], None, None]:
    """Yield arrays with the images of pictures. Each array is valid until the next one is yielded.

    If there are at most `_FEW` pictures, this process itself decodes them, and each array is one
    image, uint8 [3, side, side]. Otherwise loaders decode the pictures, and each array has up to
    `AT_ONCE` images, uint8 [n, 3, side, side].
    """
    if len(wanted) <= _FEW:
        yield from (image_of(each, side) for each in wanted)
        return
    begun: deque[Loading] = deque()
    with closing(Loaders(processes, side)) as loaders:
        for first in range(0, len(wanted), AT_ONCE):
            begun.append(loaders.begin(wanted[first : first + AT_ONCE]))
            if len(begun) > 1:
                yield from _taken(begun.popleft())
        for loading in begun:
            yield from _taken(loading)


def _taken(loading: Loading) -> Iterator[NDArray[np.uint8]]:
    yield loading.images()
    loading.release()
