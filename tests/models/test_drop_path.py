"""Stochastic depth removes branches, but changes no weights, FLOPs or costs."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.drop_path import DropPath, rates
from ppll_cli.models.resnet import BasicUnit, BottleneckUnit, CifarResNet, ResNet
from ppll_cli.models.retinanet import RetinaNet
from ppll_cli.models.trace import trace
from ppll_cli.models.unit import IMAGE, ImageSpec, Unit, build_unit
from ppll_cli.models.vit import Block, ViT
from ppll_cli.predict.fingerprint import structure
from ppll_cli.tasks.classification import Classification
from ppll_cli.tasks.detection import Detection
from tests.conftest import assert_same

IMAGES, TASK = ImageSpec(3, 32, 32), Classification(10)
FINDING = Detection(("a", "b"), boxes=1, height=32, width=32, anchor=16)
MODELS: dict[str, Callable[..., ViT | CifarResNet | ResNet | RetinaNet]] = {
    "vit": partial(ViT, dim=8, depth=8, heads=2, patch=8),
    "cifar": partial(CifarResNet, depth=14),
    "basic": partial(ResNet, depth=18),
    "bottleneck": partial(ResNet, depth=50),
    "retinanet": partial(RetinaNet, width=8),
}
SURE = 1 - 1e-9
"""A probability so near 1 that every sample is zeroed."""


def units_of(name: str, drop_path: float) -> Sequence[Unit]:
    return MODELS[name](drop_path=drop_path).units(IMAGES, FINDING if name == "retinanet" else TASK)


def rates_of(unit: Unit) -> set[float]:
    """Return the rates of a unit's branches."""
    return {m._rate for m in build_unit(unit, 0).modules() if isinstance(m, DropPath)}


def test_a_branch_is_dropped_for_whole_samples_and_scaled_for_others() -> None:
    x = torch.rand(400, 3, 4, 4).to(memory_format=torch.channels_last)
    layer = DropPath(0.25)
    made = layer(x)
    assert made.is_contiguous(memory_format=torch.channels_last)
    left_out = made.flatten(1).eq(0).all(1)
    assert 70 < left_out.sum() < 130
    assert torch.equal(made[~left_out], x[~left_out] * (1 / torch.tensor(0.75)))
    assert not torch.equal(layer(x), made)
    assert layer.eval()(x) is x


def test_drop_path_keeps_the_dtype() -> None:
    assert DropPath(0.5)(torch.rand(4, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("last", "blocks", "expected"),
    [(0.3, 4, [0.0, 0.1, 0.2, 0.3]), (0.3, 1, [0.0]), (0.0, 3, [0.0] * 3), (0.5, 2, [0.0, 0.5])],
)
def test_rates_increase_evenly(last: float, blocks: int, expected: list[float]) -> None:
    assert rates(last, blocks) == pytest.approx(expected)
    assert rates(last, blocks)[-1] in (last, 0.0)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "bottleneck")) for n in MODELS]
)
def test_rates_increase_from_the_first_block_to_the_last(name: str) -> None:
    units = units_of(name, 0.2)
    blocks = [unit for unit in units if unit.name.startswith(("blocks", "layer"))]
    assert len(blocks) >= 6
    assert not rates_of(blocks[0])
    each = [rate for block in blocks[1:] for rate in rates_of(block)]
    assert each == pytest.approx([0.2 * (i + 1) / (len(blocks) - 1) for i in range(len(each))])
    assert each[-1] == 0.2
    assert not any(rates_of(unit) for unit in units if unit not in blocks)
    assert not any(map(rates_of, units_of(name, 0.0)))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("vit", "cifar"))) for n in MODELS],
)
def test_drop_path_changes_no_weights_flops_or_costs(name: str) -> None:
    without, dropping = units_of(name, 0.0), units_of(name, 0.2)
    batch = {IMAGE: ValueSpec((3, 32, 32), torch.float32)}
    assert trace(dropping, batch) == trace(without, batch)
    for one, other in zip(dropping, without, strict=True):
        built = build_unit(one, 0)
        assert_same(built.state_dict(), build_unit(other, 0).state_dict())


def test_blocks_that_differ_only_in_the_rate_have_the_same_structure() -> None:
    blocks = units_of("vit", 0.2)[2:-1]
    assert len({structure(build_unit(unit, 0)) for unit in blocks}) == 1


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (partial(Block, 8, 2, 16, 0.0, 0.0), (3, 5, 8)),
        (partial(BasicUnit, 8, 8, 1), (3, 8, 4, 4)),
        (partial(BottleneckUnit, 8, 2, 1), (3, 8, 4, 4)),
    ],
    ids=["transformer", "basic", "bottleneck"],
)
def test_a_block_without_its_branches_is_its_skip(
    block: partial[nn.Module], shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    skip = x if len(shape) == 3 else x.relu()
    network = block(rate=SURE)
    assert torch.equal(network(x), skip)
    assert not torch.equal(network.eval()(x), skip)
    assert not torch.equal(block()(x), skip)


def test_a_shortcut_is_never_dropped() -> None:
    """If a unit changes the shape, the shortcut is its skip."""
    unit = BasicUnit(4, 8, 2, rate=SURE)
    x = torch.rand(3, 4, 6, 6)
    made = unit(x)
    assert unit.downsample is not None
    assert torch.equal(made, unit.downsample(x).relu())


def test_an_adapted_unit_keeps_its_rate() -> None:
    """Auxiliary networks copy a unit for larger maps."""
    (*_, last, _) = units_of("cifar", 0.2)
    assert last.adapt is not None
    copy = last.adapt((32, 16, 16), (64, 8, 8))
    assert {m._rate for m in copy.modules() if isinstance(m, DropPath)} == {0.2}


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", MODELS)
def test_a_rate_that_is_no_probability_below_1_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^model.drop_path={value}: must be "):
        units_of(name, value)
