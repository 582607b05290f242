"""Draws pictures with their true boxes and with the boxes that a model detects.

Legend: H height, W width (pixels).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ppll_cli.data.drawing import (
    INK,
    PAPER,
    Colour,
    Font,
    Rectangle,
    dashed_rectangle,
    draw_label,
    draw_lead,
    font_of,
    free_place,
    label_size,
    shortened,
    text_size,
)
from ppll_cli.data.files import sample_name
from ppll_cli.data.scenes.index import Scene, Scenes
from ppll_cli.data.source import BatchMaker, Predict, Prediction
from ppll_cli.leaves.printable import printable
from ppll_cli.models.unit import IMAGE
from ppll_cli.tasks.boxes import Detections
from ppll_cli.tasks.detection import FRAME, Detection

PICTURES = 8
"""Number of test pictures that are drawn, from the first one on."""

LEAST_SCORE = 0.3
"""Smallest score of detections that are drawn."""

MOST_DETECTIONS = 20
"""Largest number of detections that are drawn into a picture; more would hide each other."""

NOTHING = f"nothing above {LEAST_SCORE:g}"

_LEAST_SIDE = 640
"""Pictures whose longer side has fewer pixels are enlarged, by an integer factor."""

_DASHES: tuple[Colour, Colour] = ((255, 255, 255), (0, 0, 0))
_IGNORED_DASHES: tuple[Colour, Colour] = ((160, 160, 160), (80, 80, 80))
_EXAMPLE: Colour = (255, 170, 60)  # colour of the found box in the legend


class Mark(NamedTuple):
    """A box to be drawn, and its label."""

    box: Rectangle  # outer border of the box, in pixels of the enlarged picture
    text: str
    colour: Colour | None  # colour of a found box; None for a true box, which is dashed
    ignored: bool = False  # whether training and scoring leave out the (true) box
    place: Rectangle | None = None  # place of the label; None if not chosen yet or none is free

    @property
    def ground(self) -> Colour:
        """Background colour of the label."""
        return self.colour or self.dashes[0]

    @property
    def dashes(self) -> tuple[Colour, Colour]:
        """Colours of the dashes of a true box."""
        return _IGNORED_DASHES if self.ignored else _DASHES


def write_samples(
    scenes: Scenes, batches: BatchMaker, task: Detection, predict: Predict, folder: Path
) -> None:
    """Write a PNG file for each of the first `PICTURES` pictures into a new folder."""
    folder.mkdir()
    for number in range(min(PICTURES, len(scenes))):
        values = batches.evaluation("test", number, 1)
        (found,) = task.detections(predict(values[IMAGE]), values[FRAME])
        scene = scenes[number]
        file = scene.pixels if isinstance(scene.pixels, Path) else None
        drawn(scene, found, task.classes).save(folder / sample_name(number, file))


def found_in(picture: Image.Image, found: Detections, classes: Sequence[str]) -> Prediction:
    """Return all detections in a picture, and a drawing. The picture's true boxes are unknown."""
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_)
    rows = zip(*(each.tolist() for each in found), strict=True)
    boxes = [
        {"label": label, "class": classes[label], "score": score, "box": box}
        for box, score, label in rows
    ]
    return Prediction(
        {"boxes": boxes}, drawn(Scene(np.asarray(picture), *nothing), found, classes, truth=False)
    )


def drawn(
    scene: Scene, found: Detections, classes: Sequence[str], *, truth: bool = True
) -> Image.Image:
    """Draw a picture with dashed true boxes (if `truth`), found boxes and a legend."""
    picture = scene.picture
    factor = max(1, -(-_LEAST_SIDE // max(picture.size)))
    if factor > 1:
        size = (factor * picture.width, factor * picture.height)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    text = text_size(picture.width)
    font = font_of(text)
    boxes = marks(scene, found, classes, picture.size, factor)
    placed = with_places(boxes, picture.size, font, text)
    draw = ImageDraw.Draw(picture)
    line = max(2, text // 6)
    found_boxes = [mark for mark in placed if mark.colour is not None]
    true_boxes = [mark for mark in placed if mark.colour is None]
    for mark in [*reversed(found_boxes), *true_boxes]:  # boxes that are drawn later are on top
        if mark.colour is None:
            dashed_rectangle(draw, mark.box, mark.dashes, line)
        else:
            left, top, right, bottom = mark.box
            draw.rectangle((left, top, right - 1, bottom - 1), outline=mark.colour, width=line)
    for mark in placed:
        if mark.place is not None:
            draw_lead(draw, mark.place, mark.box, mark.ground, line)
    for mark in placed:
        if mark.place is not None:
            draw_label(draw, mark.place, mark.text, font, mark.ground)
    return _with_legend(picture, legend(placed, truth), font, text)


def marks(
    scene: Scene, found: Detections, classes: Sequence[str], size: tuple[int, int], factor: int
) -> list[Mark]:
    """Return the boxes to draw: found boxes in order of falling score, then all true boxes.

    Found boxes are the best detections, up to `MOST_DETECTIONS`, with scores of `LEAST_SCORE` or
    more. `size` is width and height, in pixels, of the picture after its enlargement by `factor`.
    """
    names = [printable(name) for name in classes]
    rows = zip(*(each.tolist() for each in found), strict=True)
    kept = sorted((row for row in rows if row[1] >= LEAST_SCORE), key=lambda row: -row[1])
    result = [
        Mark(_on(size, box, factor), f"{names[label]} {score:.2f}", _colour(label, len(classes)))
        for box, score, label in kept[:MOST_DETECTIONS]
    ]
    truth = (scene.boxes.tolist(), scene.labels.tolist(), scene.ignored.tolist())
    for box, label, ignored in zip(*truth, strict=True):
        result.append(Mark(_on(size, box, factor), names[label], None, ignored))
    return result


def with_places(boxes: Sequence[Mark], size: tuple[int, int], font: Font, text: int) -> list[Mark]:
    """Choose a place for each label, inside the picture and without covering another label.

    Labels wider than the picture are shortened. `size` is width and height of the picture, and
    `text` the font size, in pixels.
    """
    placed: list[Mark] = []
    for mark in boxes:
        short = shortened(mark.text, font, text, size[0])
        taken = [other.place for other in placed if other.place is not None]
        room = label_size(short, font, text)
        place = free_place(room, mark.box, size, taken, below=mark.colour is None)
        placed.append(mark._replace(text=short, place=place))
    return placed


def legend(placed: Sequence[Mark], truth: bool = True) -> list[tuple[str, str]]:
    """Return the entries of the legend: the kind of a box, and the text that explains it.

    The kind is "" for a text without a box.
    """
    lines = [("true", "true box, with its class")] if truth else []
    if any(mark.ignored for mark in placed):
        lines.append(("ignored", "true box that evaluation ignores"))
    if any(mark.colour for mark in placed):
        lines.append(("found", f"found box, with class and score ({LEAST_SCORE:g} or more)"))
    else:
        lines.append(("", f"found: {NOTHING}"))
    if missing := sum(mark.place is None for mark in placed):
        lines.append(("", f"no room for {missing} label{'' if missing == 1 else 's'}"))
    return lines


def _with_legend(
    picture: Image.Image, lines: Sequence[tuple[str, str]], font: Font, text: int
) -> Image.Image:
    """Extend a picture by a legend below it; widen it if the legend is wider."""
    line = max(2, text // 6)
    swatch, height = 20 * line, 2 * text
    widths = [label_size(words, font, text)[0] + (swatch if kind else 0) for kind, words in lines]
    width = max(picture.width, *widths)
    places = list(_flow(widths, width, gap=text))
    paper = Image.new("RGB", (width, picture.height + (1 + places[-1][1]) * height), PAPER)
    paper.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(paper)
    for (kind, words), (left, row) in zip(lines, places, strict=True):
        middle = picture.height + row * height + height // 2
        box = (left + line, middle - 4 * line, left + swatch - 3 * line, middle + 4 * line)
        if kind == "found":
            draw.rectangle((*box[:2], box[2] - 1, box[3] - 1), outline=_EXAMPLE, width=line)
        elif kind:
            dashed_rectangle(draw, box, _DASHES if kind == "true" else _IGNORED_DASHES, line)
        start = left + (swatch if kind else text // 4)
        draw.text((start, middle), words, fill=INK, font=font, anchor="lm")
    return paper


def _flow(widths: Sequence[int], most: int, gap: int) -> Iterator[tuple[int, int]]:
    """Put items of these widths into rows of width `most`; yield each item's left edge and row."""
    left, row = 0, 0
    for width in widths:
        if left and left + width > most:
            left, row = 0, row + 1
        yield left, row
        left += width + gap


def _on(size: tuple[int, int], box: Sequence[float], factor: int) -> Rectangle:
    """Enlarge a box by `factor` and clip it to the picture, but keep at least one pixel of it."""
    low: list[int] = []
    high: list[int] = []
    for first, last, side in zip(box[:2], box[2:], size, strict=True):
        start = min(max(round(factor * first), 0), side - 1)
        low.append(start)
        high.append(min(max(round(factor * last), start + 1), side))
    return low[0], low[1], high[0], high[1]


def _colour(label: int, classes: int) -> Colour:
    """Return the light colour of a class; the hues of the classes are evenly spaced."""
    hue = Image.new("HSV", (1, 1), (round(255 * label / classes), 170, 255))
    red, green, blue = hue.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return red, green, blue
