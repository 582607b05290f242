"""Picture files: conversion of pixels, rotation by EXIF, and files that are refused."""

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ppll_cli.data.pictures.files import decoded, header
from ppll_cli.data.scenes.index import on_upright
from ppll_cli.errors import ConfigError
from tests.data.picture_files import picture

GREYS = np.arange(256, dtype=np.uint16).reshape(16, 16)


def png_16(colour: int, samples: np.ndarray) -> bytes:
    """Return a PNG file with 16-bit samples [H, W, channels]. PIL cannot write such colours."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = b"\x89PNG\r\n\x1a\n"
    for kind, content in parts:
        check = struct.pack(">I", zlib.crc32(kind + content))
        written += struct.pack(">I", len(content)) + kind + content + check
    return written


@pytest.mark.parametrize("step", [256, 257])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_channels_keep_their_upper_bits(
    tmp_path: Path, step: int, colour: int, channels: int
) -> None:
    """Greys above 255 were once clipped, so that pictures became white."""
    path = tmp_path / "16.png"
    path.write_bytes(png_16(colour, np.repeat((step * GREYS)[..., None], channels, axis=2)))
    assert (np.array(decoded(path)) == GREYS[..., None]).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_greys_of_tiff_files_keep_their_upper_bits(tmp_path: Path, mode: str) -> None:
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    path = tmp_path / "grey.tif"
    Image.frombytes(mode, (16, 16), (257 * GREYS).astype(kind).tobytes()).save(path)
    assert (np.array(decoded(path)) == GREYS[..., None]).all()


def test_greys_of_an_unknown_range_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "grey.tif"
    for pixels, problem in (
        (np.full((4, 4), 70_000, np.int32), "more than 16 bits"),
        (np.full((4, 4), 0.5, np.float32), "floating-point numbers"),
    ):
        Image.fromarray(pixels).save(path)
        with pytest.raises(ConfigError, match=f"{path}: cannot be read as a picture .*{problem}"):
            decoded(path)


def test_transparency_is_dropped_without_a_warning(tmp_path: Path) -> None:
    colour = picture(0, 12, 10)
    palette = colour.quantize(8)
    alpha = colour.copy()
    alpha.putalpha(Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)))
    bits, wanted = colour.convert("1"), {}
    for name, image, becomes in (
        ("palette", palette, palette.convert("RGB")),
        ("alpha", alpha, colour),
        ("bits", bits, bits.convert("L").convert("RGB")),
    ):
        options: dict[str, Any] = {"transparency": bytes(range(8))} if name == "palette" else {}
        image.save(tmp_path / f"{name}.png", **options)
        wanted[name] = np.array(becomes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, pixels in wanted.items():
            assert (np.array(decoded(tmp_path / f"{name}.png")) == pixels).all()


def test_cmyk_is_converted_and_the_first_frame_is_used(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    assert np.abs(np.array(decoded(tmp_path / "red.jpg")).astype(int) - [255, 0, 0]).max() < 9
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (200, 10)]
    frames[0].save(tmp_path / "moving.png", format="GIF", save_all=True, append_images=frames[1:])
    assert (np.array(decoded(tmp_path / "moving.png")) == [200, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["png", "jpg"])
def test_boxes_are_rotated_with_their_picture(tmp_path: Path, orientation: int, form: str) -> None:
    """The box is given in the stored and in the upright picture.

    Both times the result is the white object.
    """
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[8:16, 16:24] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{form}"
    Image.fromarray(stored).save(path, exif=exif, quality=100)
    upright = np.array(decoded(path))
    assert header(path).upright == upright.shape[1::-1]
    rows, columns = np.where(upright[..., 0] > 128)
    there = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    size = (upright.shape[1], upright.shape[0])
    boxes = np.array([there], np.float32)
    assert on_upright(path, size, boxes).tolist() == [there]
    if orientation >= 5:  # otherwise both pictures have the same size
        boxes = np.array([[16, 8, 24, 16]], np.float32)
        assert on_upright(path, (32, 16), boxes).tolist() == [there]
    with pytest.raises(ConfigError, match=rf"{path}: measures {size[0]}x{size[1]} .* says 9x9"):
        on_upright(path, (9, 9), boxes)


def test_an_unreadable_picture_is_named_in_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    picture(0, 40, 40).save(whole)
    huge = png_16(0, np.zeros((1, 1, 1)))
    claim = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 16, 0, 0, 0, 0)
    huge = huge[:12] + claim + struct.pack(">I", zlib.crc32(claim)) + huge[33:]
    contents = {"cut": whole.read_bytes()[:60], "empty": b"", "text": b"no picture", "huge": huge}
    for name, content in contents.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "loop.png", tmp_path / "loop.png")
    (tmp_path / "new\nline\x1b[31m.png").write_bytes(b"")
    for name in (*contents, "pipe", "loop", "missing", "new\nline\x1b[31m"):
        with pytest.raises(ConfigError, match="cannot be read as a picture") as told:
            decoded(tmp_path / f"{name}.png")
        assert "\x1b" not in str(told.value)
        assert name.split("\n", maxsplit=1)[0] in str(told.value)
