"""Draws pictures with their true boxes and with the boxes that a model detects."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from ppll_cli.data.drawing import (
    INK,
    PAPER,
    Colour,
    Font,
    Rectangle,
    draw_border,
    draw_label,
    draw_lead,
    font_of,
    free_place,
    label_size,
    shortened,
    text_size,
)
from ppll_cli.data.scenes.index import Scene
from ppll_cli.data.source import Prediction
from ppll_cli.leaves.printable import printable
from ppll_cli.tasks.boxes import Detections

PICTURES = 8
"""Number of test pictures that are drawn, from the first one on."""

LEAST_SCORE = 0.3
"""Smallest score of detections that are drawn."""

MOST_DETECTIONS = 20
"""Largest number of detections that are drawn into a picture; more would hide each other."""

_LEAST_SIDE = 640
"""Pictures whose longer side has fewer pixels are enlarged, by an integer factor."""

Colours = tuple[Colour, Colour]
"""Colours of the dashes of a box; if they are equal, the line is solid."""

TRUE: Colours = ((255, 255, 255), (0, 0, 0))
IGNORED: Colours = ((160, 160, 160), (80, 80, 80))
"""Colours of true boxes. `IGNORED` is for those that training and scoring leave out."""

FOUND: Colours = ((255, 170, 60),) * 2
"""Colours of the found box in the legend."""


class Mark(NamedTuple):
    """A box to be drawn, and its label."""

    box: Rectangle  # outer border of the box, in pixels of the enlarged picture
    text: str
    colours: Colours  # the first is also the background of the label
    place: Rectangle | None = None  # place of the label; None if not chosen yet or none is free

    @property
    def found(self) -> bool:
        """Whether the model found this box; if not, it is a true box."""
        return self.colours not in (TRUE, IGNORED)


def found_in(picture: Image.Image, found: Detections, classes: Sequence[str]) -> Prediction:
    """Return all detections in a user's picture, and a drawing of the best ones."""
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
    """Return a scene's picture with its true boxes, found boxes and a legend.

    `truth` is False if the true boxes are unknown. The legend then does not explain true boxes.
    """
    picture = scene.picture
    factor = max(1, -(-_LEAST_SIDE // max(picture.size)))
    if factor > 1:
        size = (factor * picture.width, factor * picture.height)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    text = text_size(picture.width)
    font = font_of(text)
    boxes = marks(scene, found, classes, picture.size, factor)
    placed = with_places(boxes, picture.size, font, text)
    line = max(2, text // 6)
    found_boxes = [mark for mark in placed if mark.found]
    # Boxes that are drawn later are on top.
    for mark in (*reversed(found_boxes), *placed[len(found_boxes) :]):
        draw_border(picture, mark.box, mark.colours, line)
    draw = ImageDraw.Draw(picture)
    labels = [(mark, mark.place) for mark in placed if mark.place is not None]
    for mark, place in labels:
        draw_lead(draw, place, mark.box, mark.colours[0], line)
    for mark, place in labels:
        draw_label(draw, place, mark.text, font, mark.colours[0])
    return _with_legend(picture, legend(placed, truth), font, text)


def marks(
    scene: Scene, found: Detections, classes: Sequence[str], size: tuple[int, int], factor: int
) -> list[Mark]:
    """Return the boxes to draw: first the best detections, then all true boxes.

    Detections are sorted by score, from the highest. There are at most `MOST_DETECTIONS`, with
    scores of `LEAST_SCORE` or more.

    Args:
        scene: The scene with its true boxes.
        found: The model's detections.
        classes: Names of the classes.
        size: Width and height of the enlarged picture, in pixels.
        factor: Factor by which the scene's picture was enlarged.
    """
    names = [printable(name) for name in classes]
    rows = zip(*(each.tolist() for each in found), strict=True)
    kept = sorted((row for row in rows if row[1] >= LEAST_SCORE), key=lambda row: -row[1])
    result = []
    for box, score, label in kept[:MOST_DETECTIONS]:
        colour = ImageColor.getrgb(f"hsv({round(360 * label / len(classes))}, 67%, 100%)")[:3]
        result.append(Mark(_on(size, box, factor), f"{names[label]} {score:.2f}", (colour, colour)))
    truth = (scene.boxes.tolist(), scene.labels.tolist(), scene.ignored.tolist())
    for box, label, ignored in zip(*truth, strict=True):
        result.append(Mark(_on(size, box, factor), names[label], IGNORED if ignored else TRUE))
    return result


def with_places(boxes: Sequence[Mark], size: tuple[int, int], font: Font, text: int) -> list[Mark]:
    """Choose a place for each label, inside the picture and without covering another label.

    If no place is free, the label's place is None. Labels wider than the picture are shortened.
    `size` is the picture's width and height, and `text` the font size, all in pixels.
    """
    placed: list[Mark] = []
    for mark in boxes:
        short = shortened(mark.text, font, text, size[0])
        taken = [other.place for other in placed if other.place is not None]
        room = label_size(short, font, text)
        place = free_place(room, mark.box, size, taken, below=not mark.found)
        placed.append(mark._replace(text=short, place=place))
    return placed


def legend(placed: Sequence[Mark], truth: bool = True) -> list[tuple[Colours | None, str]]:
    """Return the lines of the legend: the colours of a box, and the words that explain it.

    The colours are None for a line without a box.
    """
    lines: list[tuple[Colours | None, str]] = [(TRUE, "true box, with its class")] if truth else []
    if any(mark.colours == IGNORED for mark in placed):
        lines.append((IGNORED, "true box that evaluation ignores"))
    if any(mark.found for mark in placed):
        lines.append((FOUND, f"found box, with class and score ({LEAST_SCORE:g} or more)"))
    else:
        lines.append((None, f"no box found with score {LEAST_SCORE:g} or more"))
    if missing := sum(mark.place is None for mark in placed):
        lines.append((None, f"no room for {missing} label{'' if missing == 1 else 's'}"))
    return lines


def _with_legend(
    picture: Image.Image, lines: Sequence[tuple[Colours | None, str]], font: Font, text: int
) -> Image.Image:
    line, height = max(2, text // 6), 2 * text
    swatch = 20 * line
    width = max(picture.width, *(swatch + label_size(words, font, text)[0] for _, words in lines))
    paper = Image.new("RGB", (width, picture.height + len(lines) * height), PAPER)
    paper.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(paper)
    for row, (colours, words) in enumerate(lines):
        middle = picture.height + row * height + height // 2
        if colours:
            box = (line, middle - 4 * line, swatch - 3 * line, middle + 4 * line)
            draw_border(paper, box, colours, line)
        draw.text((swatch, middle), words, fill=INK, font=font, anchor="lm")
    return paper


def _on(size: tuple[int, int], box: Sequence[float], factor: int) -> Rectangle:
    edges = np.round(np.multiply(box, factor)).astype(int)
    # At least one pixel of the box remains.
    left, top = np.clip(edges[:2], 0, np.subtract(size, 1)).tolist()
    right, bottom = np.clip(edges[2:], (left + 1, top + 1), size).tolist()
    return left, top, right, bottom
