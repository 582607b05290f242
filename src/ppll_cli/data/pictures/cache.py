"""Pictures, decoded once and kept as bytes that are mapped into memory.

Legend: H height, W width (pixels of the large picture), s scale.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image

from ppll_cli.errors import ConfigError

_VERSION = 1  # of what is kept: another number makes everything anew

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
    if not (place / "index.json").exists():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=place.parent, prefix=".making-") as scratch:
                made = Path(scratch, "made")
                made.mkdir()
                _make(made, sources, scale, longest, measured)
                if not place.exists():  # another run may have been quicker
                    os.replace(made, place)
        except OSError as error:
            problem = f"decoded pictures cannot be kept there ({error.strerror})"
            raise ConfigError("data.cache", folder, problem, "name another folder") from error
    index = json.loads((place / "index.json").read_text())
    high, low = (
        _views(np.load(place / f"{name}.npy", mmap_mode="r"), index[name])
        for name in ("high", "low")
    )
    return Pictures(high, low, [(p, s) for p, s in index["quality"]] if measured else None)


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return str(path.absolute()), status.st_size, status.st_mtime_ns


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    return ConfigError("data", path, f"cannot be read as a picture ({reason})", "remove or mend it")


def _make(
    place: Path, sources: Sequence[Source], scale: int, longest: int | None, measured: bool
) -> None:
    sizes = [_size(source.high, scale, longest) for source in sources]
    shapes = {
        "high": [(height, width, 3) for height, width in sizes],
        "low": [(height // scale, width // scale, 3) for height, width in sizes],
    }
    views = {}
    for name, each in shapes.items():
        total = sum(int(np.prod(shape)) for shape in each)
        flat = open_memmap(place / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(total,))
        views[name] = _views(flat, each)
    quality = []
    for number, source in enumerate(sources):
        height, width = sizes[number]
        high = decoded(source.high)
        if longest is not None and max(high.size) > longest:
            high = high.resize(_reduced(high.size, longest), Image.Resampling.BICUBIC)
        high = high.crop((0, 0, width, height))
        small = (width // scale, height // scale)
        if source.low is None:
            low = high.resize(small, Image.Resampling.BICUBIC)
        else:
            low = decoded(source.low)
            if low.size[0] < small[0] or low.size[1] < small[1]:
                problem = f"measures {low.size}, and {source.high.name} divided by {scale} {small}"
                raise ConfigError("data.scale", scale, f"{source.low} {problem}")
            low = low.crop((0, 0, *small))
        views["high"][number][:], views["low"][number][:] = np.asarray(high), np.asarray(low)
        if measured:
            enlarged = low.resize((width, height), Image.Resampling.BICUBIC)
            quality.append(_quality(np.array(enlarged), np.array(high), scale))
    (place / "index.json").write_text(json.dumps({**shapes, "quality": quality}))


def _views(flat: Bytes, shapes: Sequence[Sequence[int]]) -> list[Bytes]:
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=False)]


def _size(path: Path, scale: int, longest: int | None) -> tuple[int, int]:
    """(height, width) of a large picture as it is kept; the file is not decoded for that."""
    try:
        with Image.open(path) as opened:
            size = opened.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    width, height = _reduced(size, longest) if longest is not None and max(size) > longest else size
    return height - height % scale, width - width % scale


def _reduced(size: tuple[int, int], longest: int) -> tuple[int, int]:
    width, height = (max(1, round(side * longest / max(size))) for side in size)
    return width, height


def decoded(path: Path) -> Image.Image:
    """The picture in a file, in colour.

    Raises:
        ConfigError: It is none.
    """
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _quality(made: Bytes, wanted: Bytes, scale: int) -> tuple[float, float]:
    """PSNR and SSIM, without a border of `scale` pixels."""
    import torch

    from ppll_cli.tasks.picture_quality import luma, psnr, ssim_map

    inner = (slice(None), slice(scale, -scale), slice(scale, -scale))
    one, other = (
        luma(torch.from_numpy(each).permute(2, 0, 1)[None].float() / 255)[inner]
        for each in (made, wanted)
    )
    error = float((one - other).double().square().sum())
    return psnr(error, one.numel()), float(ssim_map(one, other).mean())
