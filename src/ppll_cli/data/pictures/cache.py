"""Decodes pictures only once: keeps their pixels in files, and maps these files into memory.

Legend: H height, W width (pixels of the large picture), s scale.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppll_cli.data.kept import kept_folder, pixels_file, place, stamp
from ppll_cli.data.pictures.files import decoded, header, unreadable
from ppll_cli.errors import ConfigError

Bytes = NDArray[np.uint8]
"""Pixels, uint8; the pixels of a picture are [height, width, 3]."""


@dataclass(frozen=True)
class Source:
    """The files of a picture."""

    high: Path  # the large picture
    low: Path | None = None  # the small picture; None if it is made from the large picture


@dataclass(frozen=True)
class Pictures:
    """The pictures of a split."""

    high: Sequence[Bytes]  # large pictures, uint8 [H, W, 3] each
    low: Sequence[Bytes]  # small pictures, uint8 [H / s, W / s, 3] each
    quality: Sequence[tuple[float, float]] | None  # PSNR (dB) and SSIM of bicubic enlargement

    def __len__(self) -> int:
        return len(self.high)


def kept(
    folder: Path, sources: Sequence[Source], scale: int, longest: int | None, measured: bool
) -> Pictures:
    """Return pictures from files of decoded pixels; make these files first if they are missing.

    Large pictures are cropped so that their sides are multiples of the scale. A small picture
    without a file is made from the large one with PIL's bicubic filter. This filter is antialiased
    like MATLAB's imresize, and computes with 8 bits per channel.

    The files are kept in `folder`, which may not exist yet. `longest` limits the longer side of
    large pictures, in pixels; larger pictures are reduced to it. If `measured`, the quality of
    bicubic enlargement is measured too.
    """

    def refused(_: Path, error: OSError) -> ConfigError:
        problem = f"decoded pictures cannot be written there ({error.strerror})"
        return ConfigError("data.cache", folder, problem, "name another folder")

    stamps = [stamped(path) for source in sources for path in (source.high, source.low) if path]
    return kept_folder(
        place(folder, stamps, scale, longest, measured),
        lambda made: _make(made, sources, scale, longest, measured),
        lambda there: _read(there, len(sources), scale, measured),
        refused,
    )


def stamped(path: Path) -> tuple[str, int, int]:
    """Return path, size and modification time of a picture's file, or raise a ConfigError."""
    try:
        return stamp(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _make(
    folder: Path, sources: Sequence[Source], scale: int, longest: int | None, measured: bool
) -> None:
    sizes = [large_size(source.high, scale, longest) for source in sources]
    shapes = {
        "high": [(height, width, 3) for height, width in sizes],
        "low": [(height // scale, width // scale, 3) for height, width in sizes],
    }
    quality = []
    with (
        pixels_file(folder / "high.npy", sum(map(prod, shapes["high"]))) as large,
        pixels_file(folder / "low.npy", sum(map(prod, shapes["low"]))) as small,
    ):
        for source, (height, width) in zip(sources, sizes, strict=True):
            high, low = _pair(source, width, height, scale, longest)
            large.write(high.tobytes())
            small.write(low.tobytes())
            if measured:
                enlarged = low.resize((width, height), Image.Resampling.BICUBIC)
                quality.append(_quality(np.array(enlarged), np.array(high), scale))
    (folder / "index.json").write_text(json.dumps({**shapes, "quality": quality}))


def _pair(
    source: Source, width: int, height: int, scale: int, longest: int | None
) -> tuple[Image.Image, Image.Image]:
    """Return a large picture, reduced and cropped, and its small picture."""
    high = decoded(source.high)
    if longest is not None and max(high.size) > longest:
        high = high.resize(_reduced(high.size, longest), Image.Resampling.BICUBIC)
    high = high.crop((0, 0, width, height))
    size = (width // scale, height // scale)
    if source.low is None:
        return high, high.resize(size, Image.Resampling.BICUBIC)
    low = decoded(source.low)
    if low.size[0] < size[0] or low.size[1] < size[1]:
        problem = f"measures {low.size}, but {source.high.name} divided by {scale} measures {size}"
        raise ConfigError(
            "data.scale", scale, f"{source.low} {problem}", "give the scale of the small pictures"
        )
    return high, low.crop((0, 0, *size))


def _read(folder: Path, count: int, scale: int, measured: bool) -> Pictures:
    index = json.loads((folder / "index.json").read_text())
    high, low = (_views(folder / f"{name}.npy", index[name]) for name in ("high", "low"))
    quality = [(float(p), float(s)) for p, s in index["quality"]]
    wanted = [tuple(scale * side for side in each.shape[:2]) for each in low]
    if len(low) != count or len(quality) != count * measured:
        raise ValueError(f"it holds {len(low)} pictures, not {count}")
    if [each.shape[:2] for each in high] != wanted:
        raise ValueError("its large and small pictures do not match")
    return Pictures(high, low, quality if measured else None)


def _views(path: Path, shapes: Iterable[Any]) -> list[Bytes]:
    """Return the pictures in a file of pixels, which has one picture after the other."""
    flat, sizes = np.load(path, mmap_mode="r"), [tuple(map(int, shape)) for shape in shapes]
    ends = np.cumsum([prod(size) for size in sizes], dtype=np.int64)
    whole = flat.dtype == np.uint8 and flat.ndim == 1 and len(flat) == ends[-1]
    if not whole or any(len(size) != 3 or size[2] != 3 or min(size) < 1 for size in sizes):
        raise ValueError(f"{path.name} holds {flat.dtype} {flat.shape}")
    parts = np.split(flat, ends[:-1])
    return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]


def large_size(path: Path, scale: int, longest: int | None) -> tuple[int, int]:
    """Return a large picture's height and width after reducing and cropping; read only its header.

    `longest` is the largest length of its longer side, in pixels, or None for no limit.
    """
    size = header(path).upright
    width, height = _reduced(size, longest) if longest is not None and max(size) > longest else size
    return height - height % scale, width - width % scale


def _reduced(size: tuple[int, int], longest: int) -> tuple[int, int]:
    width, height = (max(1, round(side * longest / max(size))) for side in size)
    return width, height


def _quality(made: Bytes, wanted: Bytes, scale: int) -> tuple[float, float]:
    """Return PSNR in dB and SSIM of two pictures; a border of `scale` pixels does not count."""
    import torch

    from ppll_cli.tasks.picture_quality import inner_luma, psnr, ssim_map

    one, other = (inner_luma(torch.from_numpy(each), scale) for each in (made, wanted))
    error = float((one - other).double().square().sum())
    return psnr(error, one.numel()), float(ssim_map(one, other).mean())
