"""Measurements of pictures, whole or in tiles, and the heads that make pictures."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.data.pictures.tiles import spans
from ppll_cli.errors import ConfigError
from ppll_cli.tasks.classification import classes_of
from ppll_cli.tasks.picture_heads import ToLevels, ToPictures, Upsampler
from ppll_cli.tasks.super_resolution import (
    BICUBIC,
    TARGET,
    TILE,
    SuperResolution,
    super_resolution_of,
)

TASK = SuperResolution(scale=2, patch=8, mean=(0.4, 0.5, 0.6), overlap=4)
SIDE = 40


def whole(picture: int, made: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return the values of a picture that is one tile."""
    height, width = wanted.shape[2:]
    bounds = [b for border in (2, 7) for side in (height, width) for b in (border, side - border)]
    return {
        "made": made,
        TARGET: wanted,
        TILE: torch.tensor([[picture, *bounds]]),
        BICUBIC: torch.tensor([[30.0 + picture, 0.5]], dtype=torch.float64),
    }


def test_scores_are_averaged_over_pictures() -> None:
    parts = []
    for number, size in enumerate((SIDE, SIDE + 10)):
        wanted = torch.rand(1, 3, size, size)
        parts.append(whole(number, wanted + 0.1 * (number + 1), wanted))
    rows = [TASK.measure(values.pop("made"), values, training=False) for values in parts]
    scores = [TASK.score(each) for each in rows]
    both = TASK.score(torch.cat(rows))
    assert list(both) == ["psnr", "ssim", "bicubic_psnr", "bicubic_ssim", "rgb_psnr"]
    assert both["psnr"] == pytest.approx((scores[0]["psnr"] + scores[1]["psnr"]) / 2)
    assert both["ssim"] == pytest.approx((scores[0]["ssim"] + scores[1]["ssim"]) / 2)
    assert both["bicubic_psnr"] == 30.5
    assert scores[0]["psnr"] > scores[1]["psnr"]


def test_scores_do_not_depend_on_the_order_of_rows() -> None:
    """Replicas and a resume change this order."""
    rows = torch.rand(100, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[:, 0] = 0  # one picture
    orders = [torch.randperm(100, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    scores = [TASK.score(rows[order]) for order in orders]
    assert all(each == scores[0] for each in scores)


def test_the_border_of_a_picture_is_not_measured() -> None:
    wanted = torch.full((1, 3, SIDE, SIDE), 0.5)
    made = wanted.clone()
    made[:, :, :2], made[:, :, :, -2:] = 0, 1
    values = whole(0, made, wanted)
    score = TASK.score(TASK.measure(made, values, training=False))
    assert score["psnr"] == pytest.approx(88.13, abs=0.01)
    assert score["ssim"] == pytest.approx(1)


def test_training_patches_have_only_a_psnr() -> None:
    wanted = torch.rand(3, 3, 16, 16)
    values = {TARGET: wanted, TILE: torch.empty(3, 0), BICUBIC: torch.empty(3, 0)}
    black, white = torch.zeros(3, 3, 16, 16), torch.ones(3, 3, 16, 16)
    measured = TASK.measure(wanted, values, training=True)
    assert measured.tolist() == [[0, 0, 3 * 16 * 16, 0, 0, 0, 0, 0, 0]]
    measured = TASK.measure(black, {**values, TARGET: white}, training=True)
    assert TASK.score(measured) == {"psnr": pytest.approx(1.33, abs=0.01)}
    assert TASK.loss(black, {TARGET: white}) == 1


def test_tiles_have_targets_of_other_shapes() -> None:
    shapes = {name: spec.shape for name, spec in TASK.targets.items()}
    assert shapes == {TARGET: (3, 16, 16), TILE: (0,), BICUBIC: (0,)}
    shapes = {name: spec.shape for name, spec in TASK.tile_targets(20, 30).items()}
    assert shapes == {TARGET: (3, 40, 60), TILE: (9,), BICUBIC: (2,)}


@pytest.mark.parametrize("length", [5, 16, 17, 23, 24, 25, 100])
def test_each_pixel_counts_in_one_tile(length: int) -> None:
    pieces = list(spans(length, tile=16, overlap=4))
    counted = [pixel for piece in pieces for pixel in range(piece.first, piece.behind)]
    assert counted == list(range(length))
    for piece in pieces:
        assert 0 <= piece.start < piece.stop <= length
        assert piece.stop - piece.start == min(length, 16)
        assert piece.start == 0 or piece.first - piece.start >= 4
        assert piece.stop == length or piece.stop - piece.behind >= 4


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_heads_return_pictures_enlarged_by_the_scale(scale: int) -> None:
    task = replace(TASK, scale=scale)
    x = torch.rand(2, 4, 5, 7)
    for head in (task.smallest_head((4, 5, 7)), Upsampler(4, scale, task.mean)):
        assert head(x).shape == (2, 3, 5 * scale, 7 * scale)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(head(x)[0, :, 0, 0], torch.tensor(task.mean))
    assert not any("mean" in name for name in head.state_dict())


def test_heads_and_models_compute_with_levels_up_to_255() -> None:
    """Levels go from 0 to 255.

    If the last layer returns one level more, the picture has 1/255 more.
    """
    picture = torch.rand(1, 3, 5, 7)
    levels = ToLevels(TASK.mean)(picture)
    mean = torch.tensor(TASK.mean)[:, None, None]
    # Near the mean, two numbers of up to 255 cancel, and their rounding errors remain.
    torch.testing.assert_close(levels, 255 * picture - 255 * mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(ToPictures(TASK.mean)(levels), picture)
    for head in (TASK.smallest_head((4, 5, 7)), Upsampler(4, 2, TASK.mean)):
        last = [m for m in head.modules() if isinstance(m, nn.Conv2d)][-1]
        x = torch.rand(2, 4, 5, 7)
        before = head(x)
        assert last.bias is not None
        with torch.no_grad():
            last.bias += 51
        torch.testing.assert_close(head(x), before + 0.2)


def test_levels_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert ToPictures(TASK.mean)(torch.rand(1, 3, 2, 2).bfloat16()).dtype == torch.float32


def test_rgb_psnr_equals_that_of_edsrs_authors() -> None:
    """The PSNR has 8 bits of all three channels, without a border of scale + 6 pixels."""
    wanted = torch.rand(1, 3, SIDE, SIDE + 6)
    made = wanted + 0.1 * torch.randn_like(wanted)
    score = TASK.score(TASK.measure(made, whole(0, made, wanted), training=False))
    levels = [p.mul(255).clamp(0, 255).round() / 255 for p in (made, wanted)]
    error = (levels[0] - levels[1])[..., 8:-8, 8:-8].pow(2).mean()
    assert score["rgb_psnr"] == pytest.approx(-10 * error.log10().item(), abs=1e-4)
    assert score["rgb_psnr"] != pytest.approx(score["psnr"], abs=0.1)


def test_rgb_psnr_leaves_out_the_authors_border() -> None:
    wanted = torch.full((1, 3, SIDE, SIDE), 0.5)
    made = wanted.clone()
    made[..., :8, :], made[..., -8:, :], made[..., :8], made[..., -8:] = 0, 1, 0, 1
    score = TASK.score(TASK.measure(made, whole(0, made, wanted), training=False))
    assert score["rgb_psnr"] == pytest.approx(88.13, abs=0.01)
    made[0, :, 8, 8] = 0
    score = TASK.score(TASK.measure(made, whole(0, made, wanted), training=False))
    assert score["rgb_psnr"] < 60


def test_tiles_leave_out_the_pictures_border_but_not_their_own() -> None:
    """The picture is compared with two tiles of it. They meet behind its 20th column."""
    wanted = torch.rand(1, 3, SIDE, SIDE)
    made = (wanted + 0.1 * torch.randn_like(wanted)).clamp(0, 1)
    one = TASK.score(TASK.measure(made, whole(0, made, wanted), training=False))
    parts = []
    for columns, psnr_bounds, ssim_bounds in (
        (slice(0, 30), (2, 20), (7, 20)),
        (slice(10, SIDE), (10, SIDE - 12), (10, SIDE - 17)),
    ):
        values = whole(0, made[..., columns], wanted[..., columns])
        bounds = [2, SIDE - 2, *psnr_bounds, 7, SIDE - 7, *ssim_bounds]
        values[TILE] = torch.tensor([[0, *bounds]])
        parts.append(TASK.measure(values["made"], values, training=False))
    parts[1][:, -2:] = 0  # only the first tile of a picture has bicubic's values
    assert TASK.score(torch.cat(parts)) == pytest.approx(one)


def test_wrong_shapes_and_other_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="local=greedy: makes pictures from maps"):
        TASK.smallest_head((8,))
    with pytest.raises(ConfigError, match="local=dgl: is for classification"):
        classes_of(TASK, "dgl", key="local")
    assert super_resolution_of(TASK, "edsr") is TASK
