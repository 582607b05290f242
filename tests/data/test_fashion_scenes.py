"""Scenes painted with items of Fashion-MNIST: equal on all machines, tight boxes of all sizes."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ppll_cli.data import fashion_scenes
from ppll_cli.data.fashion_mnist import DEBIAN
from ppll_cli.data.fashion_scenes import FashionScenes
from ppll_cli.data.files import fixed_random
from ppll_cli.data.scenes import canvas
from ppll_cli.data.scenes.canvas import VISIBLE, Cutout, _around, _common, _cutout, _fits, paint
from ppll_cli.errors import ConfigError
from tests.data.scene_files import write_fashion
from tests.data.shipped import shipped

Make = Callable[..., FashionScenes]


@pytest.fixture
def make(tmp_path: Path, cache: Path) -> Make:
    """Return a function that makes the data set with a few scenes of discs, with changes."""
    root = write_fashion(tmp_path / "root")
    few = {"root": str(root), "pictures": 6, "test_pictures": 3, "side": 96}
    return lambda **changes: FashionScenes(**shipped("fashion_scenes", **(few | changes)))


def test_scenes_do_not_depend_on_global_random_numbers(
    make: Make, cache: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    make().prepare()
    first = contents(cache)
    for name in first:
        os.unlink(cache / name)
    for folder in (cache / "fashion_scenes").iterdir():
        folder.rmdir()
    np.random.seed(2)
    make().prepare()
    assert contents(cache) == first
    assert len(first) == 4  # pixels and objects of both parts, and no unfinished files
    assert make().evaluation_form(make().load()) is None  # all scenes have one size


def test_painted_scenes_are_kept_and_used_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().prepare()
    monkeypatch.setattr(fashion_scenes, "paint", lambda *_: pytest.fail("painted again"))
    splits = make().load()
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "test": 3}
    assert isinstance(splits["train"][0].pixels, np.memmap)
    assert splits["train"][0].pixels.shape == (96, 96, 3)
    assert make().task.boxes <= 8


def test_more_scenes_do_not_change_the_first_ones(make: Make) -> None:
    few, many = make(pictures=2).load()["train"], make(pictures=4).load()["train"]
    for number in range(2):
        assert (np.array(few[number].pixels) == np.array(many[number].pixels)).all()
        assert (few[number].boxes == many[number].boxes).all()
    assert (np.array(many[0].pixels) != np.array(many[1].pixels)).any()


def test_training_and_test_scenes_have_different_items(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    brightest = []

    def spied(random, items, labels, side):  # type: ignore[no-untyped-def]
        brightest.append(int(items.max()))
        return paint(random, items, labels, side)

    monkeypatch.setattr(fashion_scenes, "paint", spied)
    make(pictures=1, test_pictures=1).prepare()
    assert brightest == [200, 160]  # the test items are darker than the training items


def test_boxes_are_inside_the_scene_and_have_all_sizes() -> None:
    """No two boxes are so similar that a detector would keep only one of them."""
    discs = np.where(np.hypot(*(np.mgrid[:28, :28] - 13.5)) < 12, 200, 0).astype(np.uint8)[None]
    sides = []
    for number in range(60):
        scene = paint(fixed_random(number), discs, np.zeros(1, np.int64), 160)
        assert 1 <= len(scene.objects) <= 8
        boxes = [found[:4] for found in scene.objects]
        for position, (left, top, right, bottom) in enumerate(boxes):
            assert 0 <= left < right <= 160
            assert 0 <= top < bottom <= 160
            sides.append(max(right - left, bottom - top))
            assert all(_common(boxes[position], other) <= 0.4 for other in boxes[:position])
    assert min(sides) >= 12
    assert max(sides) <= 120
    assert np.histogram(sides, [12, 24, 48, 100])[0].min() > 30


@pytest.mark.parametrize("size", [12.0, 30.0, 75.5])
def test_boxes_enclose_their_items_tightly(size: float) -> None:
    """The first and last row and column of a cutout contain a pixel of the item."""
    item = np.zeros((28, 28), np.uint8)
    item[4:20, 9:17] = 220
    item[8:12, 11:15] = 0  # a dark spot inside the item belongs to it
    cutout = _cutout(item, size, 120, mirrored=False)
    assert cutout is not None
    solid = cutout.cover >= 0.5
    assert all(edge.any() for edge in (solid[0], solid[-1], solid[:, 0], solid[:, -1]))
    assert solid.shape == pytest.approx((size * 2**0.5, size / 2**0.5), abs=1)
    assert solid.all()
    assert cutout.grey.min() < 0.3
    longest = _cutout(item, size, 20, mirrored=False)
    assert longest is not None
    assert max(longest.grey.shape) <= 20


def test_painted_pixels_are_inside_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ground is even, without noise and fragments.

    So the box contains all pixels that differ from it.
    """
    ground = np.full((96, 96, 3), 128.0, np.float32)
    monkeypatch.setattr(canvas, "_background", lambda *_: ground.copy())
    monkeypatch.setattr(canvas, "_paint_fragment", lambda *_: None)
    monkeypatch.setattr(canvas, "MOST", 1)
    monkeypatch.setattr(canvas, "_NOISE", 0)
    ring = np.hypot(*(np.mgrid[:28, :28] - 13.5))
    rings = np.where((ring < 12) & (ring > 4), 200, 0).astype(np.uint8)[None]
    for number in range(10):
        scene = paint(fixed_random(number), rings, np.array([7]), 96)
        ((*box, label, ignored),) = scene.objects
        rows, columns = _around((np.abs(scene.pixels.astype(int) - 128) > 25).any(axis=2))
        seen = (columns.start, rows.start, columns.stop, rows.stop)
        assert box == pytest.approx(seen, abs=1)
        assert (label, ignored) == (7, False)


def test_an_item_must_remain_mostly_visible() -> None:
    """Pixels that several other items hide are counted together."""
    owner = np.full((10, 10), -1)
    owner[:, :5] = 0
    areas = [50]
    left, solid = (slice(0, 10), slice(0, 2)), np.ones((10, 2), bool)
    assert VISIBLE == 0.6
    assert _fits(owner, left, solid, areas)
    owner[left] = 1
    assert not _fits(owner, (slice(0, 10), slice(2, 3)), np.ones((10, 1), bool), [50, 20])


def test_an_empty_item_is_not_an_object() -> None:
    assert _cutout(np.zeros((28, 28), np.uint8), 30, 90, mirrored=False) is None
    scene = paint(fixed_random(0), np.zeros((3, 28, 28), np.uint8), np.arange(3), 64)
    assert not scene.objects


def test_a_tint_contrasts_with_its_background() -> None:
    behind = np.full((4, 4, 3), 128, np.float32)
    cutout = Cutout(np.ones((4, 4), np.float32), np.ones((4, 4), np.float32))
    for number in range(20):
        tint = canvas._tint(fixed_random(number), behind, cutout)
        assert np.abs(tint - 128).mean() >= 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 31}, "data.side=31: must be greater than or equal to 32"),
        ({"pictures": 0}, "data.pictures=0: must be greater than or equal to 1"),
        (
            {"test_pictures": 2_000_000},
            "data.test_pictures=2000000: must be less than or equal",
        ),
    ],
)
def test_impossible_options_are_refused(make: Make, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_missing_fashion_mnist_files_are_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"data.root=.*no FashionMNIST/raw/train-images.*false"):
        make(root=str(tmp_path / "empty"), download=False).prepare()


def test_a_cache_that_cannot_be_written_is_refused_by_name(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be written to .* set XDG_CACHE_HOME"):
        make().prepare()


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"there is no {DEBIAN} on this machine")
def test_scenes_can_be_painted_from_debians_files(make: Make) -> None:
    dataset = make(root=None, pictures=20, side=160)
    dataset.prepare()
    scenes = dataset.load()["train"]
    assert sum(len(scenes[number].labels) for number in range(20)) > 40
