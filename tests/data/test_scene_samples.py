"""The pictures with found boxes that are drawn at the end of a run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ppll_cli.data.drawing import font_of, overlap, text_size
from ppll_cli.data.scenes.index import Scene
from ppll_cli.data.scenes.samples import (
    FOUND,
    IGNORED,
    LEAST_SCORE,
    MOST_DETECTIONS,
    TRUE,
    drawn,
    legend,
    marks,
    with_places,
)
from ppll_cli.tasks.boxes import Detections
from ppll_cli.tasks.detection import Detection
from tests.data.scene_files import HEIGHT, WIDTH
from tests.data.small_voc import MakeVoc

Draw = Callable[..., list[Path]]


@pytest.fixture
def draw(make_voc: MakeVoc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Return a function that makes a data set with these options and draws its samples.

    In every picture, a dog is found with a high score and a horse with a low one.
    """

    def detections(task: Detection, prediction: Tensor, frame: Tensor) -> list[Detections]:
        assert prediction.shape == (1, 3)
        assert frame.tolist() == [[60, 75, 1.5, 1.5]]
        boxes = torch.tensor([[10.0, 20, 30, 35], [0, 0, 50, 40]])
        return [Detections(boxes, torch.tensor([0.9, 0.2]), torch.tensor([11, 12]))]

    def drawn(**options: object) -> list[Path]:
        folder = tmp_path / "samples"
        make_voc(**options).draw_samples(lambda images: images.mean((2, 3)), folder)
        return sorted(folder.iterdir())

    monkeypatch.setattr(Detection, "detections", detections)
    return drawn


def test_samples_are_drawn_with_found_boxes(draw: Draw) -> None:
    files = draw()
    assert [path.name for path in files] == [f"{n}-test{n + 1:06}.png" for n in range(4)]
    file = Image.open(files[0])
    assert file.mode == "RGB"  # no transparency
    picture = np.array(file)
    factor = -(-640 // WIDTH)
    assert picture.shape[1] == factor * WIDTH  # enlarged, so that it is legible
    assert picture.shape[0] > factor * HEIGHT  # with a legend below
    dog, person = picture[factor * 4, factor * 8 : factor * 30], factor * 39 - 1
    assert {tuple(pixel) for pixel in dog.tolist()} >= {(255, 255, 255), (0, 0, 0)}  # dashes
    assert {tuple(each) for each in picture[person, factor * 20 : factor * 48].tolist()} >= {
        (160, 160, 160),
        (80, 80, 80),
    }
    upper = {tuple(pixel) for pixel in picture[factor * 20, factor * 10 : factor * 30].tolist()}
    colours = {pixel for pixel in upper if max(pixel) == 255 and min(pixel) < 120}
    (colour,) = colours  # the colour of the found dog
    assert (picture == colour).all(axis=2).sum() > 2 * 2 * factor * 15  # also behind its name


CLASSES = ("dress", "ankle boot", "a class with a name that is as long as names ever are")


def crowded(number: int, least: float = 0.3) -> tuple[Scene, Detections]:
    """Return a picture with true and found boxes that are close together."""
    random = np.random.RandomState(number)
    corners = random.randint(0, 30, (12, 2))
    boxes = np.concatenate((corners, corners + random.randint(4, 34, (12, 2))), 1)
    labels = random.randint(0, 3, 12)
    pixels = random.randint(0, 256, (64, 64, 3)).astype(np.uint8)
    scene = Scene(pixels, boxes.astype(np.float32), labels, np.arange(12) == 3)
    twice = torch.from_numpy(np.concatenate((boxes, boxes)).astype(np.float32))
    scores = torch.linspace(least, least + 0.5, 24)
    return scene, Detections(twice, scores, torch.from_numpy(np.tile(labels, 2)))


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("side", [640, 200, 90])
def test_labels_do_not_overlap(number: int, side: int) -> None:
    """Labels are inside the picture. If there is no room for some, the legend says so."""
    scene, found = crowded(number)
    size, text = (side, side), text_size(side)
    drawn_marks = marks(scene, found, CLASSES, size, side // 64)
    assert len(drawn_marks) == MOST_DETECTIONS + 12
    placed = with_places(drawn_marks, size, font_of(text), text)
    places = [mark.place for mark in placed if mark.place is not None]
    for nth, place in enumerate(places):
        assert min(place) >= 0
        assert max(place) <= side
        assert not any(overlap(place, other) for other in places[:nth])
    missing = len(placed) - len(places)
    assert (missing == 0) == (side == 640)
    assert [words for _, words in legend(placed) if "no room" in words] == (
        [f"no room for {missing} labels"] if missing else []
    )


def test_true_boxes_have_names_and_their_own_style() -> None:
    scene, found = crowded(0)
    drawn_marks = marks(scene, found, CLASSES, (640, 640), 10)
    true = [mark for mark in drawn_marks if not mark.found]
    assert [mark.text for mark in true] == [CLASSES[label] for label in scene.labels]
    assert [mark.colours == IGNORED for mark in true] == scene.ignored.tolist()
    seen = [mark for mark in drawn_marks if mark.found]
    assert seen[0].text == f"{CLASSES[int(found.labels[-1])]} 0.80"  # the best score comes first
    assert [colours for colours, _ in legend(drawn_marks)[:3]] == [TRUE, IGNORED, FOUND]
    words = [words for _, words in legend(drawn_marks)]
    assert words[0] == "true box, with its class"
    assert words[2] == f"found box, with class and score ({LEAST_SCORE:g} or more)"


def test_the_legend_says_that_nothing_was_found() -> None:
    scene, found = crowded(0, least=-0.25)
    drawn_marks = marks(scene, found, CLASSES, (640, 640), 10)
    assert not any(mark.found for mark in drawn_marks)
    placed = with_places(drawn_marks, (640, 640), font_of(14), 14)
    assert (None, f"no box found with score {LEAST_SCORE:g} or more") in legend(placed)
    with_words = np.array(drawn(scene, found, CLASSES))
    band = with_words[640:]
    assert (band[-1] == 255).all()
    assert band.min() < 80


@pytest.mark.parametrize("shape", [(40, 400), (400, 40), (900, 1200), (8, 8)])
def test_a_picture_of_any_shape_is_drawn(shape: tuple[int, int]) -> None:
    """If the legend is wider than a narrow picture, the drawing is as wide as the legend."""
    pixels = np.full((*shape, 3), 90, np.uint8)
    box = np.array([[1, 1, 7, 7]], np.float32)
    scene = Scene(pixels, box, np.array([2]), np.array([False]))
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    made = drawn(scene, nothing, CLASSES)
    factor = max(1, -(-640 // max(shape)))
    assert made.width >= factor * shape[1]
    assert made.height > factor * shape[0]
    assert max(made.size) >= 640


def test_detections_at_the_border_are_drawn_inside(make_voc: MakeVoc) -> None:
    scene = make_voc().load()["test"][1]
    for box in ([-5.0, -5, 60, 60], [49.9, 39.9, 50, 40], [0, 0, 0, 0]):
        found = Detections(torch.tensor([box]), torch.tensor([0.5]), torch.tensor([0]))
        # The data set's names of classes do not matter here.
        made = drawn(scene, found, ("a name",) * 20)
        assert made.width == -(-640 // WIDTH) * WIDTH
        assert made.height > -(-640 // WIDTH) * HEIGHT


def test_samples_are_of_the_limited_test_set(draw: Draw) -> None:
    assert [path.name for path in draw(eval_limit=1)] == ["0-test000001.png"]
