"""The program of a loader, a process that decodes pictures into memory shared with a worker.

It does not import torch, so it starts in a fraction of a second and needs little memory.
"""

import ctypes
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from mmap import mmap
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.pictures.files import Box, cut_out
from ppll_cli.errors import PpllError, RunFailedError
from ppll_cli.leaves.programs import STOPPING

TRIES = 10
"""Largest number of random pieces that are tried before a piece in the middle is used."""

RATIOS = (3 / 4, 4 / 3)
"""Smallest and largest ratio of a random piece's width to its height."""

Draw = Sequence[float]
"""Four random numbers in [0, 1) for the area, the ratio, and the left and top edge of a piece."""


@dataclass(frozen=True)
class Wanted:
    """A picture to decode, and the part of it that becomes the image.

    The part is a square in the middle or, if there are `draws`, a `random_piece`.
    """

    path: str
    part: float = 1.0  # side of the square in the middle, as a fraction of the shorter side
    scale: tuple[float, float] = (1.0, 1.0)  # smallest and largest area for `random_piece`
    draws: Sequence[Draw] = ()  # random numbers for `random_piece`; empty for the middle

    def box(self, width: int, height: int) -> Box:
        """Return the box, in pixels, to cut out of a picture of `width` x `height` pixels."""
        if self.draws:
            return random_piece(width, height, self.scale, self.draws)
        return middle(width, height, self.part)


def middle(width: int, height: int, part: float) -> Box:
    """Return the square in a picture's middle whose side is `part` times the shorter side.

    `width` and `height` of the picture, and the edges of the square, are in pixels.
    """
    side = part * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_piece(width: int, height: int, scale: tuple[float, float], draws: Sequence[Draw]) -> Box:
    """Return the box, in pixels, of a piece of random area, ratio and position.

    The pieces are those of Inception's training. The method is from arXiv 1409.4842.
    torchvision's RandomResizedCrop does the same, but rounds to whole pixels.

    Args:
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        scale: Smallest and largest area of a piece, as fractions of the picture's area.
        draws: Random numbers for several pieces. The first piece that fits into the picture is
            used. If none fits, the largest piece in the middle with a ratio in `RATIOS` is used.
    """
    low, high = (log(ratio) for ratio in RATIOS)
    for area, ratio, left, top in draws:
        wanted = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        shape = exp(low + (high - low) * ratio)
        wide, tall = sqrt(wanted * shape), sqrt(wanted / shape)
        if wide <= width and tall <= height:
            left, top = left * (width - wide), top * (height - tall)
            return left, top, left + wide, top + tall
    wide, tall = min(width, height * RATIOS[1]), min(height, width / RATIOS[0])
    left, top = (width - wide) / 2, (height - tall) / 2
    return left, top, left + wide, top + tall


def image_of(wanted: Wanted, side: int) -> NDArray[np.uint8]:
    """Decode a picture and return the wanted piece as an image, uint8 [3, side, side].

    The image is not contiguous in memory.

    Raises:
        ConfigError: The file cannot be read as a picture.
    """
    return np.asarray(cut_out(Path(wanted.path), side, wanted.box)).transpose(2, 0, 1)


def serve(requests: Connection, images: NDArray[np.uint8]) -> None:
    """Answer requests to decode pictures, until the connection is closed.

    A request is a list of up to N `Wanted`. Their images are written to `images`, which is shared
    memory, uint8 [N, 3, side, side]. The answer is None, or the error of the first picture that
    cannot be decoded.
    """
    while True:
        try:
            request: Sequence[Wanted] = requests.recv()
        except EOFError:
            return
        requests.send(_load(request, images))


def _load(request: Sequence[Wanted], images: NDArray[np.uint8]) -> PpllError | None:
    for wanted, image in zip(request, images, strict=False):
        try:
            image[:] = image_of(wanted, image.shape[1])
        except PpllError as error:
            return error
        except Exception as error:  # for example when memory runs out
            return RunFailedError(f"{wanted.path}: {type(error).__name__}: {error}")
    return None


def shared_images(memory: int, side: int) -> NDArray[np.uint8]:
    """Map the shared memory with file descriptor `memory` to an array, uint8 [N, 3, side, side]."""
    return np.frombuffer(mmap(memory, 0), np.uint8).reshape(-1, 3, side, side)


def main(requests: int, memory: int, side: int) -> None:
    """Run a loader.

    `requests` is the file descriptor of the connection to the worker, and `memory` that of the
    shared memory for the images. `side` is height and width of the images, in pixels.
    """
    for number in STOPPING:  # ignore signals, because the worker ends its loaders
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # Linux kills this process when its parent thread ends
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    try:
        serve(Connection(requests), shared_images(memory, side))
    except (BrokenPipeError, ConnectionError):  # the worker has ended
        return
