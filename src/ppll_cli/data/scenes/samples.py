"""Pictures with their boxes and with what a model detects.

Legend: n detections of a picture, H height, W width (pixels).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ppll_cli.data.dataset import sample_name
from ppll_cli.data.scenes.batches import SceneBatches, decode
from ppll_cli.data.scenes.index import Scene, Scenes
from ppll_cli.models.unit import IMAGE
from ppll_cli.tasks.boxes import Detections
from ppll_cli.tasks.detection import FRAME, Detection

PICTURES = 8
"""So many of the first test pictures are drawn."""

LEAST_SCORE = 0.3
MOST_DETECTIONS = 20
"""Of a picture: what is drawn can still be told apart."""

_LEAST_SIDE = (
    320  # a picture is enlarged by a whole number until its longer side has so many pixels
)
_TRUE, _IGNORED = (255, 255, 255), (160, 160, 160)
_TEXT = 12  # pixels


def write_samples(
    scenes: Scenes,
    batches: SceneBatches,
    task: Detection,
    predict: Callable[[Tensor], Tensor],
    folder: Path,
) -> None:
    """Writes a PNG for each of the first pictures, named by its number and its file.

    Args:
        scenes: The test pictures.
        batches: Makes batches of them.
        task: Knows what a prediction says.
        predict: The model: float32 [1, 3, H, W], normalised, to a prediction.
        folder: To be made.
    """
    folder.mkdir()
    for number in range(min(PICTURES, len(scenes))):
        values = batches.evaluation("test", number, 1)
        (found,) = task.detections(predict(values[IMAGE]), values[FRAME])
        scene = scenes[number]
        file = scene.pixels if isinstance(scene.pixels, Path) else None
        drawn(scene, found, task.classes).save(folder / sample_name(number, file))


def drawn(scene: Scene, found: Detections, classes: Sequence[str]) -> Image.Image:
    """A picture with its boxes, thin and white, grey where ignored, and detections in colours.

    Args:
        scene: The picture.
        found: Detections; of low scores, or too many, none is drawn.
        classes: Names of the classes.
    """
    picture = decode(scene.pixels)
    factor = max(1, -(-_LEAST_SIDE // max(picture.size)))
    if factor > 1:
        size = (factor * picture.width, factor * picture.height)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for box, ignored in zip(scene.boxes.tolist(), scene.ignored.tolist(), strict=True):
        draw.rectangle(_on(picture, box, factor), outline=_IGNORED if ignored else _TRUE)
    font = ImageFont.load_default(_TEXT)
    rows = zip(*(each.tolist() for each in found), strict=True)
    kept = sorted((row for row in rows if row[1] >= LEAST_SCORE), key=lambda row: -row[1])
    for box, score, label in reversed(kept[:MOST_DETECTIONS]):  # the surest on top
        colour = _colour(label, len(classes))
        left, top, right, bottom = _on(picture, box, factor)
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        text = f"{classes[label]} {score:.2f}"
        width = draw.textlength(text, font)
        corner = (max(0, min(left, picture.width - width - 4)), max(0, top - _TEXT - 3))
        draw.rectangle((*corner, corner[0] + width + 3, corner[1] + _TEXT + 3), fill=colour)
        draw.text((corner[0] + 2, corner[1]), text, fill=(0, 0, 0), font=font)
    return picture


def _on(
    picture: Image.Image, box: Sequence[float], factor: int
) -> tuple[float, float, float, float]:
    """The pixels of a box's border, which lie inside of the picture."""
    left, top, right, bottom = (factor * side for side in box)
    right, bottom = min(right, picture.width) - 1, min(bottom, picture.height) - 1
    left, top = (min(max(side, 0), end) for side, end in ((left, right), (top, bottom)))
    return left, top, right, bottom


def _colour(label: int, classes: int) -> tuple[int, int, int]:
    """As far from those of other classes as can be: hues around the circle, light enough."""
    hue = Image.new("HSV", (1, 1), (round(255 * label / classes), 170, 255))
    red, green, blue = hue.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return red, green, blue
