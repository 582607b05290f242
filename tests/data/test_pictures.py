"""Pictures for super-resolution: their files, the cache, patches and tiles."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ppll_cli.data.div2k import Div2k
from ppll_cli.data.photos import Photos
from ppll_cli.data.pictures.dataset import PictureDataset
from ppll_cli.data.pictures.patches import PatchBatches, _turned
from ppll_cli.data.pictures.samples import SIDE, captioned, views
from ppll_cli.errors import ConfigError
from ppll_cli.tasks.super_resolution import BICUBIC, TARGET, TILE
from tests.data.picture_files import picture, write_div2k, write_photos
from tests.data.shipped import shipped
from tests.no_waiting import DEVICE, NoWaiting

SMALL = {"patch": 8, "patches_per_epoch": 10, "tile": 16, "overlap": 3}

Make = Callable[..., Photos]


@pytest.fixture
def photos(tmp_path: Path) -> Make:
    """Return a function that makes the data set of six small pictures, with changes."""
    folder = write_photos(tmp_path / "photos")
    given = {"folders": [str(folder)], "cache": str(tmp_path / "cache"), **SMALL}
    return lambda **changes: Photos(**shipped("photos", **(given | changes)))


def batches_of(dataset: PictureDataset, seed: int = 0, batch_size: int = 4) -> PatchBatches:
    return dataset.batches(dataset.load(), batch_size, seed, torch.device("cpu"))


def as_picture(picture: Any) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def test_the_last_three_pictures_by_name_are_the_test_set(photos: Make) -> None:
    dataset = photos()
    names = {part: [s.high.name for s in dataset.sources(part)] for part in ("train", "test")}
    assert names == {"train": ["0.png", "1.png", "2.png"], "test": ["3.png", "4.png", "5.png"]}
    splits = dataset.load()
    assert {name: len(split) for name, split in splits.items()} == {"train": 10, "test": 3 * 4}
    assert len(photos(eval_limit=1).load()["test"]) == 4


def test_a_root_without_effect_is_named(
    photos: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos().prepare()
    assert not caplog.text
    photos(root=str(tmp_path)).prepare()
    assert f"data.root={tmp_path} has no effect: the pictures are in data.folders=[" in caplog.text


def test_val_fraction_holds_out_pictures(photos: Make) -> None:
    splits = photos(val_fraction=0.34).load()
    assert [len(split.pictures) for split in splits.values()] == [2, 1, 3]
    with pytest.raises(ConfigError, match="holds out 0 of 3"):
        photos(val_fraction=0.01).load()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_small_pictures_are_bicubic_reductions_of_large_ones(photos: Make, scale: int) -> None:
    split = photos(scale=scale).load()["test"]
    high, low = split.pictures.high[0], split.pictures.low[0]
    width, height = 51 - 51 % scale, 37 - 37 % scale
    assert high.shape == (height, width, 3)
    assert low.shape == (height // scale, width // scale, 3)
    reduced = Image.fromarray(np.array(high)).resize(low.shape[1::-1], Image.Resampling.BICUBIC)
    assert (np.array(reduced) == low).all()
    assert split.pictures.quality is not None
    psnr, ssim = split.pictures.quality[0]
    assert 15 < psnr < 60
    assert 0.5 < ssim < 1


def test_kept_pictures_are_used_until_the_files_change(photos: Make, tmp_path: Path) -> None:
    first = photos().load()["train"].pictures
    assert isinstance(first.high[0], np.memmap)
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    photos().prepare()
    assert {path.name for path in (tmp_path / "cache").iterdir()} == kept
    Image.new("RGB", (60, 60)).save(tmp_path / "photos" / "0.png")
    assert not photos().load()["train"].pictures.high[0].any()


def test_longest_side_reduces_large_pictures(photos: Make) -> None:
    pictures = photos(longest_side=32).load()["train"].pictures
    assert [max(high.shape) for high in pictures.high] == [32, 32, 32]


def test_small_and_large_patches_are_aligned(photos: Make) -> None:
    """The small patch is the reduced large patch.

    Near the border they differ, because bicubic reads pixels outside of the patch.
    """
    batch = batches_of(photos()).train(0, 0)
    image, target = batch["image"], batch[TARGET]
    assert image.shape == (4, 3, 8, 8)
    assert target.shape == (4, 3, 16, 16)
    assert batch[TILE].shape == batch[BICUBIC].shape == (4, 0)
    averaged = torch.nn.functional.avg_pool2d(target, 2)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert (averaged[inner] - image[inner]).abs().mean() < 0.03
    shifted = averaged.roll(1, dims=3)
    assert (shifted[inner] - image[inner]).abs().mean() > 0.05


def test_batches_depend_only_on_seed_epoch_and_number(photos: Make) -> None:
    one, other = batches_of(photos()), batches_of(photos())
    other.train(0, 0)
    assert torch.equal(one.train(1, 2)[TARGET], other.train(1, 2)[TARGET])
    assert len(one.train(0, 2)[TARGET]) == 2  # 10 = 4 + 4 + 2
    assert one.steps_per_epoch == 3
    assert batches_of(photos(drop_last=True)).steps_per_epoch == 2
    different = [one.train(0, 1), one.train(1, 0), batches_of(photos(), seed=1).train(0, 0)]
    assert not any(torch.equal(one.train(0, 0)[TARGET], each[TARGET]) for each in different)


def test_flip_turns_patches_in_eight_ways(photos: Make) -> None:
    """Patches are rotated and mirrored."""
    square = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    ways = {_turned(square, turn).tobytes() for turn in range(8)}
    assert len(ways) == 8
    straight, turned = (batches_of(photos(flip=flip)).train(0, 0)[TARGET] for flip in (False, True))
    assert not torch.equal(straight, turned)


def test_tiles_cover_each_pixel_once(photos: Make) -> None:
    """Each pixel inside the border counts exactly once."""
    dataset = photos()
    splits = dataset.load()
    batches = batches_of(dataset)
    pictures = splits["test"].pictures
    form = dataset.evaluation_form(splits)
    counts = [np.zeros(high.shape[:2], dtype=int) for high in pictures.high]
    for number, tile in enumerate(splits["test"].tiles):
        batch = batches.evaluation("test", number, 1)
        assert batch[TARGET].shape[2:] == tuple(2 * side for side in batch["image"].shape[2:])
        assert batch["image"].shape[2] <= form.image.specs["image"].shape[1]
        picture, *rectangles = batch[TILE][0].tolist()
        top, bottom, left, right = rectangles[:4]
        down, across = 2 * tile.rows.start, 2 * tile.columns.start
        counts[picture][down + top : down + bottom, across + left : across + right] += 1
        wanted = pictures.high[picture][down : down + 32, across : across + 32]
        assert torch.equal(batch[TARGET][0], as_picture(wanted))
    for count in counts:
        assert (count[2:-2, 2:-2] == 1).all()
        assert count.sum() == count[2:-2, 2:-2].size


def test_the_quality_of_tiles_is_that_of_whole_pictures(photos: Make) -> None:
    """SSIM is compared too, although its windows extend beyond the counted pixels."""
    scores = []
    for tile in (16, 64):
        dataset = photos(tile=tile)
        batches, task = batches_of(dataset), dataset.task
        rows = []
        for number in range(len(batches.splits["test"])):
            values = batches.evaluation("test", number, 1)
            made = torch.nn.functional.interpolate(values["image"], scale_factor=2)
            rows.append(task.measure(made, values, training=False))
        scores.append(task.score(torch.cat(rows)))
    # The two sums differ only in the order of their float64 additions.
    assert scores[0] == pytest.approx(scores[1], rel=1e-9)
    assert scores[0]["bicubic_psnr"] > scores[0]["psnr"]


@pytest.mark.parametrize("scale", [2, 4])
def test_div2k_is_read_in_its_published_layout(tmp_path: Path, scale: int) -> None:
    root = write_div2k(tmp_path / "root" / "DIV2K", scale).parent
    dataset = div2k(tmp_path, root, scale=scale)
    splits = dataset.load()
    assert [len(split.pictures) for split in splits.values()] == [5, 2]
    low = splits["train"].pictures.low[0]
    file = root / f"DIV2K/DIV2K_train_LR_bicubic/X{scale}/0001x{scale}.png"
    assert (np.array(Image.open(file)) == low).all()  # the published file is used, none is made
    assert batches_of(dataset).train(0, 0)[TARGET].shape == (4, 3, 8 * scale, 8 * scale)


def div2k(tmp_path: Path, root: Path | None, **changes: object) -> Div2k:
    given = {"root": str(root), "cache": str(tmp_path / "cache"), **SMALL, **changes}
    return Div2k(**shipped("div2k", **given))


def test_missing_div2k_files_are_named_with_their_place(tmp_path: Path) -> None:
    message = r"data.root=.*no pictures in .*DIV2K_train_HR; unpack .*data.vision.ee.ethz.ch"
    with pytest.raises(ConfigError, match=message):
        div2k(tmp_path, tmp_path).load()
    root = write_div2k(tmp_path / "DIV2K", 2)
    with pytest.raises(ConfigError, match=r"0001.png has no .*X3/0001x3.png"):
        div2k(tmp_path, root, scale=3).load()


@pytest.mark.parametrize(("side", "fits"), [(20, True), (21, True), (19, False), (22, False)])
def test_small_pictures_of_another_scale_are_refused(tmp_path: Path, side: int, fits: bool) -> None:
    """A small picture that was too large was once cut, so it showed a part of the large picture."""
    root = write_div2k(tmp_path / "DIV2K", 2)
    picture(0, 41, 49).save(root / "DIV2K_train_HR/0001.png")
    picture(0, side, 24).save(root / "DIV2K_train_LR_bicubic/X2/0001x2.png")
    with nullcontext() if fits else pytest.raises(ConfigError, match=r"X2/0001x2.png measures"):
        div2k(tmp_path, root).load()


def test_missing_folders_are_refused_by_name(photos: Make, tmp_path: Path) -> None:
    message = r"there is no folder .*nowhere.*apt-get install lomiri-wallpapers-16.04 mate-backgr"
    with pytest.raises(ConfigError, match=message):
        photos(folders=[str(tmp_path / "nowhere")]).load()
    with pytest.raises(ConfigError, match=r"has 3 pictures .* the last 3 by name are the test set"):
        photos(folders=[str(write_photos(tmp_path / "few", count=3))]).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 5}, "data.scale=5: must be 2, 3 or 4"),
        ({"patch": 1}, "data.patch=1: must be greater than or equal to 8"),
        ({"tile": 6}, "data.tile=6: must be more than twice data.overlap=3"),
        ({"mean": [0.5]}, r"data.mean=\[0.5\]: must have at least 3 items"),
        ({"longest_side": 0}, "data.longest_side=0: must be greater than or equal to 1, or null"),
        ({"val_fraction": 1.0}, "data.val_fraction=1.0: must be less than 1"),
        ({"eval_limit": 0}, "data.eval_limit=0: must be greater than or equal to 1, or null"),
    ],
)
def test_impossible_options_are_refused(
    photos: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        photos(**changes)


def test_unusable_pictures_are_refused_by_name(photos: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0.png: has 24x20 pixels .* too few for data.patch=21"):
        photos(patch=21).load()
    (tmp_path / "photos" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"0.png: cannot be read as a picture"):
        photos().load()


def test_the_views_of_a_picture_are_aligned() -> None:
    """The model doubles each pixel, so its view equals the first one."""
    high = np.array(picture(0, 300, 320))
    low = np.array(Image.fromarray(high).resize((150, 160), Image.Resampling.BICUBIC))
    seen = []

    def double(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape))
        return torch.nn.functional.interpolate(image, scale_factor=2)

    repeated, bicubic, made, original = (view.pixels for view in views(low, high, 2, 7, double))
    assert seen == [(1, 3, 110, 110)]
    assert (repeated == made).all()
    assert (original == high[64:256, 54:246]).all()
    assert np.abs(bicubic.astype(int) - original).mean() < 8


def test_captions_name_each_view_and_its_psnr() -> None:
    high = np.array(picture(0, 60, 48))
    low = np.array(Image.fromarray(high).resize((30, 24), Image.Resampling.BICUBIC))
    double = partial(torch.nn.functional.interpolate, scale_factor=2)
    found = views(low, high, 2, 3, double)
    names = [view.caption.partition(":")[0] for view in found]
    assert names == ["input, 30x24 pixels", "bicubic", "the model", "original"]
    assert found[0].psnr == found[2].psnr  # the model repeats each pixel
    assert found[1].caption == f"bicubic: PSNR {found[1].psnr:.2f} dB"
    assert found[3].caption == "original"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_captions_have_the_psnr_of_the_metric(photos: Make, scale: int) -> None:
    """The whole picture is shown, so the caption has the run's own PSNR.

    The same holds for bicubic.
    """
    dataset = photos(scale=scale, tile=SIDE, eval_limit=1)
    double = partial(torch.nn.functional.interpolate, scale_factor=scale, mode="bilinear")
    batches, task = batches_of(dataset), dataset.task
    values = batches.evaluation("test", 0, 1)
    assert (
        batches.splits["test"].pictures.low[0].shape == values["image"].permute(0, 2, 3, 1)[0].shape
    )
    score = task.score(task.measure(double(values["image"]), values, training=False))
    pictures = dataset.load()["test"].pictures
    _, bicubic, made, _ = views(pictures.low[0], pictures.high[0], scale, 3, double)
    assert made.psnr == pytest.approx(score["psnr"], abs=1e-9)
    assert bicubic.psnr == pytest.approx(score["bicubic_psnr"], abs=1e-5)  # float32, in the batch


@pytest.mark.parametrize(("width", "height", "scale"), [(20, 24, 2), (400, 300, 2), (300, 90, 4)])
def test_captions_are_above_their_panels(width: int, height: int, scale: int) -> None:
    """Each pixel becomes a square of whole size. The background is white and opaque."""
    high = np.array(picture(0, scale * width, scale * height))
    low = np.array(Image.fromarray(high).resize((width, height), Image.Resampling.BICUBIC))
    double = partial(torch.nn.functional.interpolate, scale_factor=scale)
    found = views(low, high, scale, 3, double)
    made = captioned(found)
    assert made.mode == "RGB"
    assert 560 <= made.width <= 1100
    pixels = np.array(made)
    band = pixels[:14]
    assert band.min() < 80  # dark text
    assert (np.median(band, axis=(0, 1)) == 255).all()  # on a white background
    sides = [side for side in range(1, 40) if side * found[0].pixels.shape[1] * 2 <= made.width]
    factor = max(sides)
    large = found[3].pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    assert any(
        (pixels[top : top + len(large), left : left + large.shape[1]] == large).all()
        for top in range(made.height // 2, made.height - len(large) + 1)
        for left in range(made.width // 2, made.width - large.shape[1] + 1)
    )


def test_making_a_batch_never_waits_for_the_device(photos: Make, no_waiting: NoWaiting) -> None:
    dataset = photos()
    batches = dataset.batches(dataset.load(), 4, 0, DEVICE)
    with no_waiting:
        for made in (batches.train(0, 0), batches.evaluation("test", 0, 1)):
            assert {tensor.device for tensor in made.values()} == {DEVICE}
    assert no_waiting.staged_copies == 2 * 4
