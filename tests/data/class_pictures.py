"""Writes pictures of one colour in folders of classes."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image


def plain(colour: int, side: int = 12) -> Image.Image:
    """Return a grey picture, a little higher than wide."""
    return Image.new("RGB", (side, side + side // 3), (colour, colour, colour))


def write_classes(folder: Path, classes: Mapping[str, Iterable[int]]) -> None:
    """Write a folder for each class, with a plain picture (000.png and so on) for each colour."""
    for name, colours in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, colour in enumerate(colours):
            plain(colour).save(folder / name / f"{number:03}.png")
