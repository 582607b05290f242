"""Compares the size of a picture with its annotation, and turns boxes if EXIF turns the picture."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.pictures.files import Header, header
from ppll_cli.errors import ConfigError

Boxes = NDArray[np.float32]
"""Left, top, right and bottom of n boxes, in pixels, float32 [n, 4]."""


def on_upright(path: Path, size: tuple[int, int], boxes: Boxes) -> Boxes:
    """Return boxes in pixels of the upright picture that `pictures.files.decoded` returns.

    `size` is width and height in the annotation. If it fits the upright picture, the boxes are not
    changed. If it fits the stored picture, which EXIF turns, the boxes are turned as well.

    Raises:
        ConfigError: The file cannot be read, or `size` fits neither of the two pictures.
    """
    found = header(path)
    if size == found.upright:
        return boxes
    if size == found.size:
        return _turned(boxes, found)
    width, height = found.upright
    problem = f"measures {width}x{height} pixels, but its annotation says {size[0]}x{size[1]}"
    raise ConfigError("data", path, problem, "correct the annotation (width x height)")


def _turned(boxes: Boxes, found: Header) -> Boxes:
    """Turn boxes as EXIF turns their stored picture."""
    left, top, right, bottom = boxes.T
    width, height = (np.float32(side) for side in found.size)
    sides = {
        5: (top, left, bottom, right),
        6: (height - bottom, left, height - top, right),
        7: (height - bottom, width - right, height - top, width - left),
        8: (top, width - right, bottom, width - left),
    }
    return np.stack(sides[found.orientation], axis=1)
