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


def both(root: Path, more: str = "") -> None:
    """Write two classes, and a folder for a third class if a name is given."""
    write_classes(root / "train", {"a": [10], "b": [20]})
    write_classes(root / "test", {"a": [30], "b": [40]})
    if more:
        write_classes(root, {more: [50]})


def broken(root: Path, path: str, content: bytes) -> None:
    """Write two classes, and a file with these bytes."""
    both(root)
    (root / path).write_bytes(content)


def listed(root: Path, text: str, part: str = "train") -> None:
    """Write two classes, and a CSV file for a part."""
    both(root)
    (root / f"{part}.csv").write_text(text)


def cut_off(root: Path) -> None:
    """Write two classes, and a picture whose file ends in its middle."""
    both(root)
    plain(70, 64).save(root / "test" / "a" / "cut.jpg")
    content = (root / "test" / "a" / "cut.jpg").read_bytes()
    (root / "test" / "a" / "cut.jpg").write_bytes(content[: len(content) // 2])
