"""Pictures compared with their annotations: sizes must agree, and boxes lie where objects are."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.pictures.files import Header, header
from ppll_cli.errors import ConfigError

Boxes = NDArray[np.float32]


def on_upright(path: Path, size: tuple[int, int], boxes: Boxes) -> Boxes:
    """Boxes in pixels of the upright picture, which `ppll_cli.data.pictures.files.decoded` makes.

    Annotations are of the upright picture where its size is theirs. Else they may be of the picture
    as it is stored, before EXIF turns it: the boxes are turned with it then.

    Args:
        path: The picture's file.
        size: Width and height that the annotation says.
        boxes: Left, top, right and bottom as the annotation has them, float32 [n, 4].

    Raises:
        ConfigError: The file cannot be read as a picture, or has another size.
    """
    found = header(path)
    if size == found.upright:
        return boxes
    if size == found.size:
        return _turned(boxes, found)
    width, height = found.upright
    problem = f"measures {width}x{height} pixels, and its annotation says {size[0]}x{size[1]}"
    raise ConfigError("data", path, problem, "mend the annotation (width x height)")


def _turned(boxes: Boxes, found: Header) -> Boxes:
    """Boxes of a stored picture that EXIF turns by a quarter, so that its sides are exchanged."""
    left, top, right, bottom = boxes.T
    width, height = (np.float32(side) for side in found.size)
    sides = {
        5: (top, left, bottom, right),
        6: (height - bottom, left, height - top, right),
        7: (height - bottom, width - right, height - top, width - left),
        8: (top, width - right, bottom, width - left),
    }
    return np.stack(sides[found.orientation], axis=1)
