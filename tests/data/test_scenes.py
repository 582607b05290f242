"""Properties of every data set for detection: splits, batches, and pictures drawn at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ppll_cli.data.drawing import font_of, overlap, text_size
from ppll_cli.data.scenes.batches import SceneBatches
from ppll_cli.data.scenes.index import Found, Index, Scene
from ppll_cli.data.scenes.samples import (
    LEAST_SCORE,
    MOST_DETECTIONS,
    drawn,
    legend,
    marks,
    with_places,
    write_samples,
)
from ppll_cli.data.scenes.sizes import fitted
from ppll_cli.data.voc import Voc
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import spec_of
from ppll_cli.models.unit import IMAGE, ImageSpec
from ppll_cli.tasks.boxes import Detections
from ppll_cli.tasks.detection import BOXES, COUNT, FRAME, IGNORED, LABELS, NUMBER, Detection
from tests.conftest import compose_config
from tests.data.scene_files import HEIGHT, WIDTH, write_voc
from tests.no_waiting import DEVICE, NoWaiting

Make = Callable[..., Voc]
CPU = torch.device("cpu")
PAD = [0.0, 0.0, 1.0, 1.0]


@pytest.fixture
def make(tmp_path: Path, cache: Path) -> Make:
    """Return a function that makes a small VOC 2007, with changes.

    Pictures have 50x40 pixels and are enlarged by 1.5.
    """
    root = write_voc(tmp_path / "root", ["2007"])
    config, _ = compose_config(["data=voc", "data.years='07'"])
    shipped = {key: value for key, value in config["data"].items() if key != "_target_"}
    shipped |= {"root": str(root), "short_side": 60, "long_side": 90, "flip": False}
    return lambda **changes: Voc(**(shipped | changes))


def batches_of(dataset: Voc, seed: int = 0, batch_size: int = 4) -> SceneBatches:
    return dataset.batches(dataset.load(), batch_size, seed, CPU)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_has_the_tensors_of_the_task(make: Make) -> None:
    dataset = make()
    for batch in (batches_of(dataset).train(0, 0), batches_of(dataset).evaluation("test", 0, 1)):
        assert {name: spec_of(batch[name]) for name in batch if name != IMAGE} == {
            **dataset.task.targets
        }
        assert batch[IMAGE].dtype == torch.float32
    spec = dataset.image_spec(dataset.load())
    assert spec == ImageSpec(3, 96, 96, tuple(dataset.mean), tuple(dataset.std))
    form = dataset.evaluation_form(dataset.load())
    assert form is not None
    assert (form.image, form.targets, form.samples) == (spec, dataset.task.targets, 1)


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [
        (40, 50, (60, 75)),
        (50, 40, (75, 60)),
        (40, 80, (45, 90)),  # otherwise the longer side would be 120
        (300, 300, (60, 60)),
        (1, 500, (1, 90)),
    ],
)
def test_pictures_are_fitted_to_the_short_and_the_long_side(
    height: int, width: int, wanted: tuple[int, int]
) -> None:
    assert fitted(height, width, 60, 90) == wanted


def test_pictures_are_resized_normalised_and_padded(make: Make, tmp_path: Path) -> None:
    dataset = make()
    batch = batches_of(dataset).evaluation("test", 0, 2)
    images = batch[IMAGE]
    assert images.shape == (2, 3, 64, 96)
    assert batch[FRAME].tolist() == [[60, 75, 1.5, 1.5]] * 2
    assert not images[:, :, 60:].any()
    assert not images[:, :, :, 75:].any()
    file = tmp_path / "root/VOCdevkit/VOC2007/JPEGImages/test000001.jpg"
    resized = Image.open(file).resize((75, 60), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (dataset.mean, dataset.std))
    # float32 in another order of operations
    torch.testing.assert_close(images[0, :, :60, :75], (pixels - mean) / std, rtol=1e-5, atol=1e-6)


def test_boxes_are_resized_with_their_pictures(make: Make) -> None:
    """Width and height have their own factors, because both sides are rounded."""
    batch = batches_of(make(short_side=47)).evaluation("test", 0, 4)
    height, width = 47, 59
    assert batch[FRAME][0].tolist() == pytest.approx([height, width, 47 / 40, 59 / 50])
    x, y = width / WIDTH, height / HEIGHT
    assert batch[BOXES][0].flatten().tolist() == pytest.approx(
        [8 * x, 4 * y, 30 * x, 24 * y, 20 * x, 10 * y, 48 * x, 39 * y]
    )
    assert batch[COUNT].tolist() == [2, 0, 1, 1]
    assert batch[LABELS].tolist() == [[11, 14], [0, 0], [7, 0], [6, 0]]
    assert batch[IGNORED].tolist() == [[False, True]] + [[False, False]] * 3
    assert batch[BOXES][1].tolist() == [PAD, PAD]
    assert batch[BOXES][2, 1].tolist() == PAD
    assert batch[NUMBER].tolist() == [0, 1, 2, 3]


def test_evaluation_batches_are_in_order(make: Make) -> None:
    batches = batches_of(make())
    parts = [batches.evaluation("test", number, 3) for number in range(2)]
    assert [part[NUMBER].tolist() for part in parts] == [[0, 1, 2], [3]]
    whole = batches.evaluation("test", 0, 4)
    for name in whole:
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])


def test_training_batches_have_no_ignored_boxes(make: Make) -> None:
    batch = batches_of(make()).train(0, 0)
    of = {number: row for row, number in enumerate(batch[NUMBER].tolist())}
    assert sorted(of) == [0, 1, 2, 3]
    assert [batch[COUNT][of[number]].item() for number in range(4)] == [1, 0, 1, 1]
    assert batch[LABELS][of[0]].tolist() == [11, 0]
    assert batch[BOXES][of[0], 1].tolist() == PAD
    assert not batch[IGNORED].any()


def test_ignored_boxes_may_come_first(make: Make) -> None:
    dataset = make()
    splits = dataset.load()
    splits["train"].objects.ignored[0] = True  # ignore the dog, which precedes the difficult person
    splits["train"].objects.ignored[1] = False
    batch = dataset.batches(splits, 4, 0, CPU).train(0, 0)
    row = batch[NUMBER].tolist().index(0)
    assert batch[LABELS][row].tolist() == [14, 0]
    assert batch[BOXES][row, 0].tolist() == [30, 15, 72, 58.5]


def test_batches_depend_only_on_seed_epoch_and_number(make: Make) -> None:
    flipping = make(flip=True)
    one, other = batches_of(flipping, batch_size=3), batches_of(flipping, batch_size=3)
    other.train(0, 0)
    assert one.steps_per_epoch == 2
    assert same(one.train(1, 1), other.train(1, 1))
    assert len(one.train(0, 1)[COUNT]) == 1
    assert batches_of(make(drop_last=True), batch_size=3).steps_per_epoch == 1
    orders = {
        tuple(batches_of(flipping, seed).train(epoch, 0)[NUMBER].tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) > 4
    seen = torch.cat([one.train(5, number)[NUMBER] for number in range(2)])
    assert sorted(seen.tolist()) == [0, 1, 2, 3]


def test_half_of_the_training_pictures_are_mirrored_with_their_boxes(make: Make) -> None:
    straight, flipping = batches_of(make()), batches_of(make(flip=True))
    turned = 0
    for epoch in range(10):
        plain, batch = straight.train(epoch, 0), flipping.train(epoch, 0)
        assert torch.equal(plain[NUMBER], batch[NUMBER])
        for row in range(4):
            there = slice(int(plain[COUNT][row]))
            image, boxes = plain[IMAGE][row, :, :60, :75], plain[BOXES][row, there]
            got = batch[IMAGE][row, :, :60, :75]
            if torch.equal(got, image):
                assert torch.equal(batch[BOXES][row, there], boxes)
            else:
                assert torch.equal(got, image.flip(2))
                wanted = torch.stack([75 - boxes[:, 2], boxes[:, 1], 75 - boxes[:, 0], boxes[:, 3]])
                assert torch.equal(batch[BOXES][row, there], wanted.T)
                assert batch[BOXES][row, there.stop :].tolist() == [PAD] * (2 - there.stop)
                turned += 1
    assert 8 <= turned <= 32  # out of 40
    plain, batch = (each.evaluation("test", 0, 4) for each in (straight, flipping))
    assert same(plain, batch)


def test_pictures_are_held_out_and_limited(make: Make) -> None:
    splits = make(val_fraction=0.5, eval_limit=1).load()
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "val": 1, "test": 1}
    everything = make(val_fraction=0.5).load()
    files = [
        str(everything[name][number].pixels) for name in ("train", "val") for number in range(2)
    ]
    assert len(set(files)) == 4
    assert batches_of(make(val_fraction=0.5)).evaluation("val", 0, 2)[NUMBER].tolist() == [0, 1]
    with pytest.raises(ConfigError, match="holds out 0 of 4"):
        make(val_fraction=0.01).load()


def test_a_broken_picture_is_refused_by_name(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "root/VOCdevkit/VOC2007/JPEGImages/test000002.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ConfigError, match=f"{path}: cannot be read as a picture"):
        batches_of(make()).evaluation("test", 0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_side": 31}, "data.short_side=31: is too small; give at least 32"),
        ({"long_side": 59}, r"data.long_side=59: is too small; give at least 60 \(data.short_side"),
        ({"anchor": 0}, "data.anchor=0: is too small"),
        ({"mean": [0.5, 0.5]}, r"data.mean=\[0.5, 0.5\]: has 2 values"),
        ({"std": [0.0, 1, 1]}, "is not positive"),
        ({"val_fraction": 1.0}, "data.val_fraction=1.0: is out of range"),
        ({"eval_limit": 0}, "data.eval_limit=0: is too small"),
        ({"root": "/nowhere/at/all"}, "data.root=/nowhere/at/all: is not a folder"),
    ],
)
def test_impossible_options_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)


class Finds(Detection):
    """Detects in every picture a dog with a high score and a cat with a low one."""

    def detections(self, prediction: Tensor, frame: Tensor) -> list[Detections]:
        assert prediction.shape == (1, 3)
        assert frame.tolist() == [[60, 75, 1.5, 1.5]]
        boxes = torch.tensor([[10.0, 20, 30, 35], [0, 0, 50, 40]])
        return [Detections(boxes, torch.tensor([0.9, 0.2]), torch.tensor([11, 12]))]


FINDS = Finds(
    (*"abcdefghijk", "dog", "cat", "horse", "person"), boxes=1, height=96, width=96, anchor=16
)


def test_samples_are_drawn_with_found_boxes(make: Make, tmp_path: Path) -> None:
    dataset = make()
    batches, folder = batches_of(dataset), tmp_path / "samples"
    scenes = dataset.load()["test"]
    write_samples(scenes, batches, FINDS, lambda images: images.mean((2, 3)), folder)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{number}-test{number + 1:06}.png" for number in range(4)]
    file = Image.open(folder / names[0])
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
    true = [mark for mark in drawn_marks if mark.colour is None]
    assert [mark.text for mark in true] == [CLASSES[label] for label in scene.labels]
    assert [mark.ignored for mark in true] == scene.ignored.tolist()
    seen = [mark for mark in drawn_marks if mark.colour is not None]
    assert seen[0].text == f"{CLASSES[int(found.labels[-1])]} 0.80"  # the best score comes first
    assert [kind for kind, _ in legend(drawn_marks)[:3]] == ["true", "ignored", "found"]
    words = [words for _, words in legend(drawn_marks)]
    assert words[0] == "true box, with its class"
    assert words[2] == f"found box, with class and score ({LEAST_SCORE:g} or more)"


def test_the_legend_says_that_nothing_was_found() -> None:
    scene, found = crowded(0, least=-0.25)
    drawn_marks = marks(scene, found, CLASSES, (640, 640), 10)
    assert all(mark.colour is None for mark in drawn_marks)
    placed = with_places(drawn_marks, (640, 640), font_of(14), 14)
    assert ("", f"found: nothing above {LEAST_SCORE:g}") in legend(placed)
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


def test_detections_at_the_border_are_drawn_inside(make: Make) -> None:
    scene = make().load()["test"][1]
    for box in ([-5.0, -5, 60, 60], [49.9, 39.9, 50, 40], [0, 0, 0, 0]):
        found = Detections(torch.tensor([box]), torch.tensor([0.5]), torch.tensor([0]))
        # The data set's names of classes do not matter here.
        made = drawn(scene, found, ("a name",) * 20)
        assert made.width == -(-640 // WIDTH) * WIDTH
        assert made.height > -(-640 // WIDTH) * HEIGHT


def test_a_data_set_draws_samples_of_its_test_set(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(eval_limit=1)
    monkeypatch.setattr(type(dataset.task), "detections", Finds.detections, raising=False)
    dataset.draw_samples(lambda images: images.mean((2, 3)), tmp_path / "samples")
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["0-test000001.png"]


def test_making_a_batch_never_waits_for_the_device(make: Make, no_waiting: NoWaiting) -> None:
    dataset = make(flip=True)
    batches = dataset.batches(dataset.load(), 2, 0, DEVICE)
    with no_waiting:
        for made in (batches.train(0, 0), batches.evaluation("test", 0, 1)):
            assert {tensor.device for tensor in made.values()} == {DEVICE}
    assert no_waiting.staged_copies >= 2 * len(dataset.task.targets)


def test_a_picture_with_boxes_outside_is_refused_by_name() -> None:
    """The picture is also refused if a part of each box is inside, so that no box is dropped."""
    bad = Found(10, 10, [(6.0, 0.0, 16.0, 10.0, 0, False)])
    with pytest.raises(ValueError, match=r"^1 of 1 boxes lie outside .*; bad\.jpg has such boxes$"):
        Index.of(["a"], ["good.jpg", "bad.jpg"], [Found(10, 10, []), bad])
