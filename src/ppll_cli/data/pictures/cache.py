"""Pictures, decoded once and kept as bytes that are mapped into memory.

Legend: H height, W width (pixels of the large picture), s scale.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray
from PIL import Image

from ppll_cli.data.kept import kept_folder, stamp
from ppll_cli.data.pictures.files import decoded as decoded  # where other modules look for it
from ppll_cli.data.pictures.files import header, unreadable
from ppll_cli.errors import ConfigError

_VERSION = 2  # of what is kept: another number makes everything anew

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """Where a picture comes from.

    Attributes:
        high: The file of the large picture.
        low: The file of the small one; None: it is made of the large one.
    """

    high: Path
    low: Path | None = None


@dataclass(frozen=True)
class Pictures:
    """Pictures of a split.

    Attributes:
        high: Large ones, uint8 [H, W, 3].
        low: Small ones, uint8 [H / s, W / s, 3].
        quality: PSNR and SSIM of the small ones enlarged bicubically, for each; None: not known.
    """

    high: Sequence[Bytes]
    low: Sequence[Bytes]
    quality: Sequence[tuple[float, float]] | None

    def __len__(self) -> int:
        return len(self.high)


def kept(
    folder: Path, sources: Sequence[Source], scale: int, longest: int | None, measured: bool
) -> Pictures:
    """The pictures, decoded now or at an earlier time.

    Large pictures are cut to a multiple of the scale. Small ones are made of them by PIL's bicubic
    filter, which takes the mean over what falls together (antialiased, as MATLAB's imresize does),
    on 8 bits.

    Args:
        folder: Where they are kept; it may not exist yet.
        sources: The files.
        scale: s.
        longest: Larger pictures are reduced so that their longer side has so many pixels.
        measured: How good bicubic enlargement is, is measured as well.

    Raises:
        ConfigError: A file is no picture, or a small one does not fit its large one.
    """
    stamps = [_stamp(path) for source in sources for path in (source.high, source.low) if path]
    recipe = json.dumps([_VERSION, stamps, scale, longest, measured])
    place = folder / blake2b(recipe.encode(), digest_size=12).hexdigest()
    try:
        return kept_folder(
            place,
            lambda made: _make(made, sources, scale, longest, measured),
            lambda there: _read(there, len(sources), scale, measured),
        )
    except OSError as error:
        problem = f"decoded pictures cannot be kept there ({error.strerror})"
        raise ConfigError("data.cache", folder, problem, "name another folder") from error


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        return stamp(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _make(
    place: Path, sources: Sequence[Source], scale: int, longest: int | None, measured: bool
) -> None:
    sizes = [large_size(source.high, scale, longest) for source in sources]
    shapes = {
        "high": [(height, width, 3) for height, width in sizes],
        "low": [(height // scale, width // scale, 3) for height, width in sizes],
    }
    quality = []
    with (place / "high.npy").open("wb") as large, (place / "low.npy").open("wb") as small:
        for name, file in (("high", large), ("low", small)):
            shape = (sum(map(prod, shapes[name])),)
            write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for source, (height, width) in zip(sources, sizes, strict=True):
            high, low = _pair(source, width, height, scale, longest)
            # Bytes are written, not mapped: a full disk is an error then, not a crash.
            large.write(high.tobytes())
            small.write(low.tobytes())
            if measured:
                enlarged = low.resize((width, height), Image.Resampling.BICUBIC)
                quality.append(_quality(np.array(enlarged), np.array(high), scale))
        for file in (large, small):
            file.flush()
            os.fsync(file.fileno())
    (place / "index.json").write_text(json.dumps({**shapes, "quality": quality}))


def _pair(
    source: Source, width: int, height: int, scale: int, longest: int | None
) -> tuple[Image.Image, Image.Image]:
    """A large picture, reduced and cut to its size, and the small one."""
    high = decoded(source.high)
    if longest is not None and max(high.size) > longest:
        high = high.resize(_reduced(high.size, longest), Image.Resampling.BICUBIC)
    high = high.crop((0, 0, width, height))
    size = (width // scale, height // scale)
    if source.low is None:
        return high, high.resize(size, Image.Resampling.BICUBIC)
    low = decoded(source.low)
    if low.size[0] < size[0] or low.size[1] < size[1]:
        problem = f"measures {low.size}, and {source.high.name} divided by {scale} {size}"
        raise ConfigError("data.scale", scale, f"{source.low} {problem}")
    return high, low.crop((0, 0, *size))


def _read(place: Path, count: int, scale: int, measured: bool) -> Pictures:
    """What a folder holds.

    Raises:
        Exception: Of any kind; it is damaged.
    """
    index = json.loads((place / "index.json").read_text())
    high, low = (_views(place / f"{name}.npy", index[name]) for name in ("high", "low"))
    quality = [(float(p), float(s)) for p, s in index["quality"]]
    wanted = [tuple(scale * side for side in each.shape[:2]) for each in low]
    if len(low) != count or len(quality) != count * measured:
        raise ValueError(f"it holds {len(low)} pictures, not {count}")
    if [each.shape[:2] for each in high] != wanted:
        raise ValueError("its large and small pictures do not fit")
    return Pictures(high, low, quality if measured else None)


def _views(path: Path, shapes: Iterable[Any]) -> list[Bytes]:
    """The pictures in a file, one behind the other."""
    flat, sizes = np.load(path, mmap_mode="r"), [tuple(map(int, shape)) for shape in shapes]
    ends = np.cumsum([prod(size) for size in sizes], dtype=np.int64)
    whole = flat.dtype == np.uint8 and flat.ndim == 1 and len(flat) == ends[-1]
    if not whole or any(len(size) != 3 or size[2] != 3 or min(size) < 1 for size in sizes):
        raise ValueError(f"{path.name} holds {flat.dtype} {flat.shape}")
    parts = np.split(flat, ends[:-1])
    return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]


def large_size(path: Path, scale: int, longest: int | None) -> tuple[int, int]:
    """(height, width) of a large picture as it is kept; the file is not decoded for that.

    Raises:
        ConfigError: The file cannot be read as a picture.
    """
    size = header(path).upright
    width, height = _reduced(size, longest) if longest is not None and max(size) > longest else size
    return height - height % scale, width - width % scale


def _reduced(size: tuple[int, int], longest: int) -> tuple[int, int]:
    width, height = (max(1, round(side * longest / max(size))) for side in size)
    return width, height


def _quality(made: Bytes, wanted: Bytes, scale: int) -> tuple[float, float]:
    """PSNR and SSIM, without a border of `scale` pixels."""
    import torch

    from ppll_cli.tasks.picture_quality import inner_luma, psnr, ssim_map

    one, other = (inner_luma(torch.from_numpy(each), scale) for each in (made, wanted))
    error = float((one - other).double().square().sum())
    return psnr(error, one.numel()), float(ssim_map(one, other).mean())
