"""Properties of every data set for detection: splits, batches, and pictures drawn at the end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ppll_cli.data.scenes.index import Found, Index
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import spec_of
from ppll_cli.models.unit import IMAGE, ImageSpec
from ppll_cli.tasks.detection import BOXES, COUNT, FRAME, IGNORED, LABELS, NUMBER
from tests.data.scene_files import HEIGHT, WIDTH
from tests.data.small_voc import CPU, MakeVoc, batches_of
from tests.no_waiting import DEVICE, NoWaiting

PAD = [0.0, 0.0, 1.0, 1.0]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_has_the_tensors_of_the_task(make_voc: MakeVoc) -> None:
    dataset = make_voc()
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
    make_voc: MakeVoc, height: int, width: int, wanted: tuple[int, int]
) -> None:
    assert make_voc().fitted(height, width) == wanted


def test_pictures_are_resized_normalised_and_padded(make_voc: MakeVoc, tmp_path: Path) -> None:
    dataset = make_voc()
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


def test_boxes_are_resized_with_their_pictures(make_voc: MakeVoc) -> None:
    """Width and height have their own factors, because both sides are rounded."""
    batch = batches_of(make_voc(short_side=47)).evaluation("test", 0, 4)
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


def test_evaluation_batches_are_in_order(make_voc: MakeVoc) -> None:
    batches = batches_of(make_voc())
    parts = [batches.evaluation("test", number, 3) for number in range(2)]
    assert [part[NUMBER].tolist() for part in parts] == [[0, 1, 2], [3]]
    whole = batches.evaluation("test", 0, 4)
    for name in whole:
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])


def test_training_batches_have_no_ignored_boxes(make_voc: MakeVoc) -> None:
    batch = batches_of(make_voc()).train(0, 0)
    of = {number: row for row, number in enumerate(batch[NUMBER].tolist())}
    assert sorted(of) == [0, 1, 2, 3]
    assert [batch[COUNT][of[number]].item() for number in range(4)] == [1, 0, 1, 1]
    assert batch[LABELS][of[0]].tolist() == [11, 0]
    assert batch[BOXES][of[0], 1].tolist() == PAD
    assert not batch[IGNORED].any()


def test_ignored_boxes_may_come_first(make_voc: MakeVoc) -> None:
    dataset = make_voc()
    splits = dataset.load()
    splits["train"].objects.ignored[0] = True  # ignore the dog, which precedes the difficult person
    splits["train"].objects.ignored[1] = False
    batch = dataset.batches(splits, 4, 0, CPU).train(0, 0)
    row = batch[NUMBER].tolist().index(0)
    assert batch[LABELS][row].tolist() == [14, 0]
    assert batch[BOXES][row, 0].tolist() == [30, 15, 72, 58.5]


def test_batches_depend_only_on_seed_epoch_and_number(make_voc: MakeVoc) -> None:
    flipping = make_voc(flip=True)
    one, other = batches_of(flipping, batch_size=3), batches_of(flipping, batch_size=3)
    other.train(0, 0)
    assert one.steps_per_epoch == 2
    assert same(one.train(1, 1), other.train(1, 1))
    assert len(one.train(0, 1)[COUNT]) == 1
    assert batches_of(make_voc(drop_last=True), batch_size=3).steps_per_epoch == 1
    orders = {
        tuple(batches_of(flipping, seed).train(epoch, 0)[NUMBER].tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) > 4
    seen = torch.cat([one.train(5, number)[NUMBER] for number in range(2)])
    assert sorted(seen.tolist()) == [0, 1, 2, 3]


def test_half_of_the_training_pictures_are_mirrored_with_their_boxes(make_voc: MakeVoc) -> None:
    straight, flipping = batches_of(make_voc()), batches_of(make_voc(flip=True))
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


def test_pictures_are_held_out_and_limited(make_voc: MakeVoc) -> None:
    splits = make_voc(val_fraction=0.5, eval_limit=1).load()
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "val": 1, "test": 1}
    everything = make_voc(val_fraction=0.5).load()
    files = [
        str(everything[name][number].pixels) for name in ("train", "val") for number in range(2)
    ]
    assert len(set(files)) == 4
    assert batches_of(make_voc(val_fraction=0.5)).evaluation("val", 0, 2)[NUMBER].tolist() == [0, 1]
    with pytest.raises(ConfigError, match="holds out 0 of 4"):
        make_voc(val_fraction=0.01).load()


def test_a_broken_picture_is_refused_by_name(make_voc: MakeVoc, tmp_path: Path) -> None:
    path = tmp_path / "root/VOCdevkit/VOC2007/JPEGImages/test000002.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ConfigError, match=f"{path}: cannot be read as a picture"):
        batches_of(make_voc()).evaluation("test", 0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_side": 31}, "data.short_side=31: must be greater than or equal to 32"),
        ({"long_side": 59}, "data.long_side=59: must be at least data.short_side=60"),
        ({"anchor": 0}, "data.anchor=0: must be greater than or equal to 1"),
        ({"mean": [0.5, 0.5]}, r"data.mean=\[0.5, 0.5\]: has 2 values"),
        ({"std": [0.0, 1, 1]}, "must be greater than 0"),
        ({"val_fraction": 1.0}, "data.val_fraction=1.0: must be less than 1"),
        ({"eval_limit": 0}, "data.eval_limit=0: must be greater than or equal to 1, or null"),
        ({"root": "/nowhere/at/all"}, "data.root=/nowhere/at/all: is not a folder"),
    ],
)
def test_impossible_options_are_refused(
    make_voc: MakeVoc, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_voc(**changes)


def test_making_a_batch_never_waits_for_the_device(
    make_voc: MakeVoc, no_waiting: NoWaiting
) -> None:
    dataset = make_voc(flip=True)
    batches = dataset.batches(dataset.load(), 2, 0, DEVICE)
    with no_waiting:
        for made in (batches.train(0, 0), batches.evaluation("test", 0, 1)):
            assert {tensor.device for tensor in made.values()} == {DEVICE}
    assert no_waiting.staged_copies >= 2 * len(dataset.task.targets)


def test_a_picture_with_boxes_outside_is_refused_by_name() -> None:
    """The picture is also refused if a part of each box is inside, so that no box is dropped."""
    bad = Found(10, 10, [(6.0, 0.0, 16.0, 10.0, 0, False)])
    problem = r"^1 of 1 boxes lie mostly outside .*; bad\.jpg has such boxes$"
    with pytest.raises(ValueError, match=problem):
        Index.of(["a"], ["good.jpg", "bad.jpg"], [Found(10, 10, []), bad])
