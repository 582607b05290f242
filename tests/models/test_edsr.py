"""EDSR: its parameters, and equal results for a whole picture and for its tiles."""

from dataclasses import replace
from math import ceil

import pytest
import torch

from ppll_cli.data.pictures.tiles import spans
from ppll_cli.errors import ConfigError
from ppll_cli.models.edsr import EDSR
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.unit import ImageSpec
from ppll_cli.tasks.classification import Classification
from ppll_cli.tasks.super_resolution import SuperResolution

TASK = SuperResolution(scale=2, patch=48, mean=(0.4, 0.5, 0.6), overlap=72)
IMAGE = ImageSpec(3, 48, 48)


def net(scale: int, **options: int) -> PlainModel:
    return PlainModel(EDSR(**options).units(IMAGE, replace(TASK, scale=scale)))


@pytest.mark.parametrize(("scale", "parameters"), [(2, 1369859), (3, 1554499), (4, 1517571)])
def test_the_baseline_has_the_papers_number_of_parameters(scale: int, parameters: int) -> None:
    """The numbers are those of the authors' code. Its fixed mean shifts are not counted."""
    with torch.device("meta"):
        found = net(scale)
    assert sum(parameter.numel() for parameter in found.parameters()) == parameters


def test_the_large_model_has_41_million_parameters() -> None:
    units = EDSR(depth=32, width=256, res_scale=0.1).units(IMAGE, TASK)
    with torch.device("meta"):
        count = sum(p.numel() for unit in units for p in unit.build().parameters())
    assert count == 40729603  # the paper's 43 million are for scale 3


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_mean_is_subtracted_first_and_added_last(scale: int) -> None:
    """With all weights zero, every pixel of the enlarged picture is the mean."""
    model = net(scale, depth=1, width=4)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    made = model(torch.rand(1, 3, 5, 6))
    assert made.shape == (1, 3, 5 * scale, 6 * scale)
    assert torch.equal(made[0, :, 0, 0], torch.tensor(TASK.mean))


def test_the_network_computes_with_values_up_to_255() -> None:
    """Input and output are in [0, 1]. A network that computes in [0, 1] learns more slowly."""
    model = net(2, depth=1, width=4)
    seen: list[torch.Tensor] = []
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[0]))
    picture = torch.rand(1, 3, 5, 6)
    model(picture)
    mean = torch.tensor(TASK.mean)[:, None, None]
    torch.testing.assert_close(seen[0], 255 * (picture - mean))


def test_weights_of_a_network_that_computed_in_0_to_1_are_refused() -> None:
    """These weights have the same shapes, but would make wrong pictures."""
    model = net(2, depth=1, width=4)
    saved = {k: v for k, v in model.state_dict().items() if not k.endswith("levels.levels")}
    with pytest.raises(RuntimeError, match=r"Missing key.*first\.levels\.levels"):
        model.load_state_dict(saved)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_enlarged_tiles_equal_the_enlarged_whole_picture(scale: int) -> None:
    """A smaller overlap gives other pixels.

    The comparison uses float64, because sums over tiles are added in another order.
    """
    edsr = EDSR(depth=3, width=6)
    reach = edsr.reach(scale)
    tile = 2 * reach + 13  # so that there are at least two tiles in each direction
    units = edsr.units(IMAGE, replace(TASK, scale=scale))
    model = PlainModel(units).double()  # float64: rounding errors stay far below other errors
    picture = torch.rand(1, 3, 40, 55, dtype=torch.float64)

    def joined(overlap: int) -> torch.Tensor:
        pieces = torch.zeros(1, 3, scale * 40, scale * 55, dtype=torch.float64)
        for r in spans(40, tile, overlap):
            for c in spans(55, tile, overlap):
                made = model(picture[:, :, r.start : r.stop, c.start : c.stop])
                counted = made[
                    :,
                    :,
                    scale * (r.first - r.start) : scale * (r.behind - r.start),
                    scale * (c.first - c.start) : scale * (c.behind - c.start),
                ]
                rows = slice(scale * r.first, scale * r.behind)
                pieces[:, :, rows, scale * c.first : scale * c.behind] = counted
        return pieces

    with torch.no_grad():
        whole = model(picture)
        torch.testing.assert_close(joined(reach), whole, rtol=0, atol=1e-13)
        assert (joined(reach - 1) - whole).abs().max() > 1e-10


def test_tiles_that_overlap_too_little_are_refused() -> None:
    edsr = EDSR(depth=16)
    least = edsr.reach(2) + ceil(5 / 2)
    edsr.units(IMAGE, replace(TASK, overlap=least))
    with pytest.raises(ConfigError, match=rf"data.overlap=9: .* use data.overlap={least}, or more"):
        edsr.units(IMAGE, replace(TASK, overlap=9))
    assert least <= 40  # the default overlap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "model.depth=0: must be greater than or equal to 1"),
        ({"width": 0}, "model.width=0: must be greater than or equal to 1"),
        ({"res_scale": 0.0}, "model.res_scale=0.0: must be greater than 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EDSR(**options)  # type: ignore[arg-type]


def test_another_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model=edsr: is for super-resolution; .*data=photos"):
        EDSR().units(IMAGE, Classification(3))
