"""Writes small pictures to files."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, width: int, height: int) -> Image.Image:
    """Return a picture of waves, different for each number."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (3 + number + c)) * np.cos(columns / (2 + number)) for c in range(3)]
    return Image.fromarray((128 + 100 * np.stack(waves, axis=2)).astype(np.uint8))


def write_photos(folder: Path, count: int = 6, width: int = 48, height: int = 40) -> Path:
    """Write a folder with different pictures of about this size, and a file that is no picture."""
    folder.mkdir()
    for number in range(count):
        picture(number, width + number, height - number).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def write_div2k(root: Path, scale: int) -> Path:
    """Write five training and two validation pictures in the published layout."""
    for part, numbers in (("train", range(1, 6)), ("valid", range(801, 803))):
        high, low = root / f"DIV2K_{part}_HR", root / f"DIV2K_{part}_LR_bicubic" / f"X{scale}"
        high.mkdir(parents=True)
        low.mkdir(parents=True)
        for number in numbers:
            made = picture(number % 5, scale * 20, scale * 24)
            made.save(high / f"{number:04}.png")
            made.resize((20, 24)).save(low / f"{number:04}x{scale}.png")
    return root
