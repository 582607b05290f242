"""Decodes pictures once, keeps their pixels in files, and maps these files into memory.

Legend: a picture of H x W pixels (height x width) is the target of super-resolution; the input is
s times smaller (s is the scale).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from operator import le
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppll_cli.data.kept import kept_folder, mapped_pixels, pixels_file, place, stamp
from ppll_cli.data.pictures.files import decoded, header, unreadable
from ppll_cli.errors import ConfigError

Bytes = NDArray[np.uint8]
"""Pixels, uint8; the pixels of a picture are [height, width, 3]."""

Size = tuple[int, int]
"""Height and width of a picture, in pixels."""


@dataclass(frozen=True)
class Source:
    """The file of a large picture and, if there is one, of its small version."""

    high: Path  # the large picture
    low: Path | None = None  # the small picture; None if it is made from the large picture


@dataclass(frozen=True)
class Pictures:
    """The large and the small pictures of a split."""

    high: Sequence[Bytes]  # large pictures, uint8 [H, W, 3] each
    low: Sequence[Bytes]  # small pictures, uint8 [H / s, W / s, 3] each
    quality: Sequence[tuple[float, float]] | None  # PSNR (dB) and SSIM of bicubic enlargement

    def __len__(self) -> int:
        return len(self.high)


def kept(
    folder: Path,
    sources: Sequence[Source],
    sizes: Sequence[Size],
    scale: int,
    longest: int | None,
    measured: bool,
) -> Pictures:
    """Return pictures from the cache; if they are not in it, decode and store them first.

    Large pictures are cropped so that their sides are multiples of the scale. A small picture
    without a file is made from the large one with PIL's bicubic filter. This filter is antialiased
    like MATLAB's imresize, and computes with 8 bits per channel.

    Args:
        folder: The folder of the cache, which may not exist yet.
        sources: The files of the pictures.
        sizes: The `large_size` of each source.
        scale: The scale s.
        longest: The limit for the longer side of large pictures, in pixels. Larger pictures are
            reduced to it. None means no limit.
        measured: Whether to measure the quality of bicubic enlargement too.

    Raises:
        ConfigError: A file cannot be read as a picture, a small picture's size does not fit the
            scale, or the cache cannot be written to.
    """
    shapes = {
        "high": [(height, width, 3) for height, width in sizes],
        "low": [(height // scale, width // scale, 3) for height, width in sizes],
    }

    def make(made: Path) -> None:
        quality = []
        with (
            pixels_file(made / "high.npy", sum(map(prod, shapes["high"]))) as large,
            pixels_file(made / "low.npy", sum(map(prod, shapes["low"]))) as small,
        ):
            for source, size in zip(sources, sizes, strict=True):
                high, low = _pair(source, size, scale, longest)
                large.write(high.tobytes())
                small.write(low.tobytes())
                if measured:
                    enlarged = low.resize(high.size, Image.Resampling.BICUBIC)
                    quality.append(_quality(np.array(enlarged), np.array(high), scale))
        (made / "index.json").write_text(json.dumps({**shapes, "quality": quality}))

    def read(there: Path) -> Pictures:
        high, low = (_views(there / f"{name}.npy", shapes[name]) for name in ("high", "low"))
        index = json.loads((there / "index.json").read_text())
        quality = [(float(psnr), float(ssim)) for psnr, ssim in index["quality"]]
        if len(quality) != len(sources) * measured:
            raise ValueError(f"it holds the quality of {len(quality)} pictures")
        return Pictures(high, low, quality if measured else None)

    stamps = [stamped(path) for source in sources for path in (source.high, source.low) if path]
    recipe = stamps, scale, longest, measured
    return kept_folder(place(folder, *recipe), make, read, "data.cache", "name another folder")


def stamped(path: Path) -> tuple[str, int, int]:
    """Return the path, size (bytes) and modification time (ns) of a picture's file.

    These show whether the file has changed.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        return stamp(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _pair(
    source: Source, large: Size, scale: int, longest: int | None
) -> tuple[Image.Image, Image.Image]:
    high = decoded(source.high)
    reduced = _reduced(high.size, longest)
    if reduced != high.size:
        high = high.resize(reduced, Image.Resampling.BICUBIC)
    most = tuple(-(-side // scale) for side in high.size)  # a small picture may be rounded up
    high = high.crop((0, 0, large[1], large[0]))
    size = (high.width // scale, high.height // scale)
    if source.low is None:
        return high, high.resize(size, Image.Resampling.BICUBIC)
    low = decoded(source.low)
    if not all(map(le, size, low.size)) or not all(map(le, low.size, most)):
        problem = f"measures {low.size}, but {source.high.name} divided by {scale} measures {size}"
        raise ConfigError(
            "data.scale", scale, f"{source.low} {problem}", "give the scale of the small pictures"
        )
    return high, low.crop((0, 0, *size))


def _views(path: Path, shapes: Sequence[tuple[int, ...]]) -> list[Bytes]:
    ends = np.cumsum([prod(shape) for shape in shapes], dtype=np.int64)
    parts = np.split(mapped_pixels(path, int(ends[-1])), ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def large_size(path: Path, scale: int, longest: int | None) -> Size:
    """Return the size of a large picture after reducing and cropping; read only the file's header.

    Height and width are multiples of `scale`. `longest` limits the longer side, in pixels; None
    means no limit.

    Raises:
        ConfigError: The file cannot be read as a picture.
    """
    width, height = _reduced(header(path).upright, longest)
    return height - height % scale, width - width % scale


def _reduced(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    if longest is None or max(size) <= longest:
        return size
    width, height = (max(1, round(side * longest / max(size))) for side in size)
    return width, height


def _quality(made: Bytes, wanted: Bytes, scale: int) -> tuple[float, float]:
    import torch

    from ppll_cli.tasks.picture_quality import inner_luma, psnr, ssim_map

    one, other = (inner_luma(torch.from_numpy(each), scale) for each in (made, wanted))
    error = float((one - other).double().square().sum())
    return psnr(error, one.numel()), float(ssim_map(one, other).mean())
