"""Reads headers of picture files, and decodes pictures: upright, RGB, 8 bits per channel."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ppll_cli.errors import ConfigError

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes a stored picture upright, by EXIF orientation. Orientations 5 to 8 swap
width and height."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, in pixels."""

_GAP = 2.0
"""`cut_out` may decode a large JPEG at a reduced size. The shorter side of the piece is then still
at least this many times as long as the side of the result, so that no difference is visible."""

_MOST_16_BIT = 0xFFFF
_QUIET = Lock()  # all threads share the warning filters, so one thread at a time changes them


class Header(NamedTuple):
    """The header of a picture's file."""

    size: tuple[int, int]  # width and height in pixels, before EXIF turns the picture
    orientation: int  # EXIF orientation, from 1 to 8; 1 is upright

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the upright picture that `decoded` returns, in pixels."""
        width, height = self.size
        return (height, width) if self.orientation >= 5 else (width, height)


def header(path: Path) -> Header:
    """Read the header of a picture without decoding its pixels.

    Raises:
        ConfigError: The file cannot be read as a picture.
    """
    with _opened(path) as (_, found):
        return found


def decoded(path: Path) -> Image.Image:
    """Decode a picture's first frame to RGB, and turn it upright by EXIF.

    16-bit channels keep their upper 8 bits. Transparency is dropped without changing colours.

    Raises:
        ConfigError: The file cannot be read as a picture.
    """
    with _opened(path) as (image, found):
        image.load()
        return _upright(image, found)


def in_memory(image: Image.Image) -> Image.Image:
    """Return a copy of a Pillow picture like one of `decoded`: in RGB, and upright by EXIF.

    Raises:
        ValueError: The picture's pixels are floating-point numbers, or have more than 16 bits.
        OSError: The picture was opened from a file, and its pixels cannot be decoded.
    """
    copy = image.copy()  # decodes the pixels; Pillow turns a TIFF upright then
    turned = Header(copy.size, _orientation(image))
    return _upright(copy, turned)


def cut_out(path: Path, side: int, box_in: Callable[[int, int], Box]) -> Image.Image:
    """Decode a picture as `decoded` does, and return a piece of it, resized to a square.

    To save time, a JPEG that is much larger than needed is decoded at a reduced size. The
    difference is not visible.

    Args:
        path: The picture's file.
        side: Side of the resulting square, in pixels.
        box_in: Takes width and height of the upright picture, and returns the box of the piece.

    Raises:
        ConfigError: The file cannot be read as a picture.
    """
    with _opened(path) as (image, found):
        width, height = found.upright
        box = box_in(width, height)
        needed = _GAP * side / min(box[2] - box[0], box[3] - box[1])
        if needed < 1:
            image.draft(None, (int(image.width * needed) + 1, int(image.height * needed) + 1))
        image.load()
        picture = _upright(image, found)
        ratios = (picture.width / width, picture.height / height) * 2
        edges = zip(box, ratios, picture.size * 2, strict=True)
        left, top, right, bottom = (min(edge * ratio, end) for edge, ratio, end in edges)
        inner = (left, top, right, bottom)
        return picture.resize((side, side), Image.Resampling.BILINEAR, box=inner)


def unreadable(path: Path, error: Exception) -> ConfigError:
    """Return the error for a file that cannot be read as a picture."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    problem = f"cannot be read as a picture ({' '.join(reason.split())})"
    return ConfigError("data", path, problem, "remove or repair it")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, Header]]:
    try:
        path.stat()  # raises an error with the reason; is_file() would only return False
        if not path.is_file():  # opening a named pipe would wait for its writer
            raise ValueError("it is not a regular file")
        with _QUIET, warnings.catch_warnings():
            # Hide PIL's warnings (corrupt EXIF, very large picture): they do not name the file.
            warnings.simplefilter("ignore")
            image = Image.open(path)
            orientation = _orientation(image)
        with image:
            yield image, Header(image.size, orientation)
    except Exception as error:  # PIL raises exceptions of any kind for a damaged file
        raise unreadable(path, error) from error


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # PIL turns these pictures upright itself
        return 1
    try:
        # PngImageFile.getexif would decode the pixels to find EXIF data behind them.
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data, which is ignored, raises exceptions of any kind
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def _upright(image: Image.Image, found: Header) -> Image.Image:
    picture = _in_colour(image)
    turn = _TURNS.get(found.orientation)
    return picture if turn is None else picture.transpose(turn)


def _in_colour(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;"):
        greys = np.asarray(image)
        if greys.min() < 0 or greys.max() > _MOST_16_BIT:
            raise ValueError("its grey values have more than 16 bits")
        # convert() would clip all values above 255.
        return Image.fromarray((greys >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its grey values are floating-point numbers, whose range is not known")
    image.info.pop("transparency", None)  # convert() would drop it with a warning
    return image.convert("RGB")
