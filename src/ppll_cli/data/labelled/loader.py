"""A loader: a process that decodes pictures into memory that it shares with a worker.

It imports no torch, so it starts in a fraction of a second and needs little memory.
"""

import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.labelled.crops import Draw, middle, random_piece
from ppll_cli.data.pictures.files import Box, cut_out
from ppll_cli.errors import PpllError, RunFailedError
from ppll_cli.leaves.forkserver import STOPPING


@dataclass(frozen=True)
class Wanted:
    """A picture, and which piece of it is wanted.

    Attributes:
        path: The file.
        part: Side of the square in the middle, where the picture's shorter side is 1.
        scale: Least and greatest part of the picture's area, for a random piece.
        draws: What decides on a random piece; none: the square in the middle is wanted.
    """

    path: str
    part: float = 1.0
    scale: tuple[float, float] = (1.0, 1.0)
    draws: tuple[Draw, ...] = ()

    def box(self, width: int, height: int) -> Box:
        """The piece of a picture of this size."""
        if self.draws:
            return random_piece(width, height, self.scale, self.draws)
        return middle(width, height, self.part)


@dataclass(frozen=True)
class Request:
    """What a loader is asked for.

    Attributes:
        wanted: The pictures.
        side: Height and width of their images, in pixels.
        offset: Where the first image goes in the shared memory; the others follow it.
    """

    wanted: tuple[Wanted, ...]
    side: int
    offset: int


def image_of(wanted: Wanted, side: int) -> NDArray[np.uint8]:
    """A picture as an image, uint8 [3, side, side].

    Raises:
        ConfigError: The file cannot be read as a picture.
    """
    pixels = np.asarray(cut_out(Path(wanted.path), side, wanted.box))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def serve(requests: Connection, memory: int) -> None:
    """Do what is asked for, until the other end is closed.

    Args:
        requests: Where requests come from. The answer is None, or the error of a picture.
        memory: Descriptor of the file that is the shared memory.
    """
    while True:
        try:
            request: Request = requests.recv()
        except EOFError:
            return
        requests.send(_load(request, memory))


def _load(request: Request, memory: int) -> PpllError | None:
    offset = request.offset
    for wanted in request.wanted:
        try:
            offset += os.pwrite(memory, image_of(wanted, request.side).data, offset)
        except PpllError as error:
            return error
        except Exception as error:  # as where memory ran out
            return RunFailedError(f"{wanted.path}: {type(error).__name__}: {error}")
    return None


def main(requests: int, memory: int) -> None:
    """Run a loader.

    Args:
        requests: Descriptor of the connection.
        memory: Descriptor of the shared memory.
    """
    for number in STOPPING:  # sent to all processes; the worker decides when loaders end
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # however the worker ends, this process ends with it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    try:
        serve(Connection(requests), memory)
    except (BrokenPipeError, ConnectionError):  # the worker is gone
        return
