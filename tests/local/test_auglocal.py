"""Auxiliary networks that copy later units of the model."""

from fractions import Fraction
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.auglocal import AugLocal, NormedHead
from ppll_cli.local.method import Site
from ppll_cli.models.resnet import BasicUnit, CifarResNet, ResNet
from ppll_cli.models.resnet import Head as ResNetHead
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.models.vit import Block, ViT
from ppll_cli.models.vit import Head as ViTHead
from ppll_cli.tasks.classification import Classification
from tests.conftest import Runner
from tests.local.conftest import CLASSES, Train, assert_gradients, site_over

TASK = Classification(CLASSES)
GREY = ImageSpec(1, 28, 28)
ODD = ImageSpec(3, 33, 33)
SMALL = ImageSpec(3, 12, 12)
TOKENS = ImageSpec(1, 8, 8)
SMALL_VIT = ViT(dim=8, depth=6, heads=2, patch=4, mlp_ratio=2.0)
LINEAR = partial(nn.Linear, 8, 8)


def sites(model: CifarResNet | ResNet | ViT, image: ImageSpec) -> list[Site]:
    """Return sites at which each unit is a module. The last unit has no auxiliary network."""
    site = site_over(model.units(image, TASK), image, TASK)
    return [site.at(module) for module in range(len(site.units) - 1)]


def row(units: int, *stops: int) -> list[Site]:
    """Return the sites of modules that end before the units `stops`, in a chain of equal units."""
    row = [Unit(f"unit.{n}", LINEAR, writes=("x",)) for n in range(units)]
    row.append(Unit("head", partial(nn.Linear, 8, CLASSES), writes=("prediction",)))
    modules = tuple(range(a, b) for a, b in pairwise([0, *stops, units + 1]))
    features = [ValueSpec((8,), torch.float32)] * (units + 1)
    site = Site(0, modules, row, features, GREY, TASK)
    return [site.at(module) for module in range(len(stops))]


@pytest.mark.parametrize(
    ("depth", "chosen"),
    [
        (1, [7]),
        (2, [4, 7]),  # 4.5 and 7; halves are rounded to the even number
        (3, [4, 5, 7]),  # 3.67, 5.33, 7
        (4, [3, 4, 6, 7]),  # 3.25, 4.5, 5.75, 7
        (5, [3, 4, 5, 6, 7]),
        (9, [3, 4, 5, 6, 7]),
    ],
)
def test_units_are_chosen_at_equal_distances(depth: int, chosen: list[int]) -> None:
    """Behind units 0 to 2 there are five units, 3 to 7."""
    (site,) = row(8, 3)
    assert AugLocal(depth=depth)._chosen(site) == chosen


def published(end: int, last: int, depth: int) -> list[int]:
    """Return the units that the paper's code copies: round(j + i (L - j) / d), computed exactly."""
    if depth >= last - end:
        return list(range(end + 1, last + 1))
    chosen = []
    for number in range(1, depth + 1):
        twice = Fraction(2 * (end * depth + number * (last - end)), depth)
        below, odd = divmod(twice.numerator // twice.denominator, 2)
        # more than a half, or a half after an odd number
        if odd and (twice.denominator > 1 or below % 2):
            below += 1
        chosen.append(below)
    return chosen


@pytest.mark.parametrize(("last", "cases", "moved"), [(15, 135, 6), (54, 486, 98)])
def test_the_whole_index_is_rounded_and_not_the_distance(last: int, cases: int, moved: int) -> None:
    """On ResNet-32 and ResNet-110, rounding the distance gave other units in some cases."""
    seen = other = 0
    for end in range(last):
        (site,) = row(last + 1, end + 1)
        for depth in range(1, 10):
            found = AugLocal(depth=depth)._chosen(site)
            assert found == published(end, last, depth), (end, depth)
            distance = (last - end) / depth
            distances = [end + round(distance * number) for number in range(1, depth + 1)]
            seen += 1
            other += depth < last - end and found != distances
    assert (seen, other) == (cases, moved)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70))
def test_units_are_those_of_the_formula(units: int, stop: int, depth: int) -> None:
    (site,) = row(units, min(stop, units))
    expected = published(min(stop, units) - 1, units - 1, depth)
    assert AugLocal(depth=depth)._chosen(site) == expected


def test_after_the_last_unit_only_the_head_is_copied() -> None:
    (site,) = row(8, 8)
    assert AugLocal(depth=3)._chosen(site) == []
    network = AugLocal(depth=3).criterion(site).head
    assert isinstance(network, nn.Sequential)
    assert len(network) == 1


@pytest.mark.parametrize(
    ("depth", "tau", "depths"),
    [
        (2, 0.5, [2, 2, 2, 2, 2]),
        # 6, 5.375, 4.75, 4.125, 3.5; halves are rounded to the even number
        (6, 0.5, [6, 5, 5, 4, 4]),
        (4, 0.0, [4, 4, 4, 4, 4]),
        (4, 1.0, [4, 3, 2, 2, 1]),
        (1, 0.5, [1, 1, 1, 1, 1]),
    ],
)
def test_depth_falls_along_the_modules(depth: int, tau: float, depths: list[int]) -> None:
    found = row(40, 1, 2, 3, 4, 5)  # there are enough units behind each module
    method = AugLocal(depth=depth, tau=tau)
    assert [len(method._chosen(site)) for site in found] == depths


@pytest.mark.parametrize(
    ("depth", "depths"), [(1, [1] * 14), (3, [3] * 6 + [2] * 6), (5, [5] * 3 + [4] * 4 + [3] * 3)]
)
def test_depths_are_those_of_the_papers_commands(depth: int, depths: list[int]) -> None:
    """A command with "K=16" and a pyramid coefficient of 0.5 means 16 - d modules of ResNet-32."""
    model = CifarResNet(depth=32)
    units = model.units(GREY, TASK)
    names = [unit.name for unit in units]
    starts = [names.index(cut) for cut in model.partitions[f"auglocal_d{depth}"]]
    found = row(len(units) - 1, *starts)
    assert [len(AugLocal(depth=depth)._chosen(site)) for site in found] == depths
    assert len(found) + 1 == 16 - depth


def test_a_single_copy_is_followed_by_batch_norm_as_in_the_papers_code() -> None:
    """The paper's code has BatchNorm between pooling and Linear only if there is a single copy."""
    site = sites(CifarResNet(depth=14), GREY)[0]

    def norms(depth: int) -> list[int]:
        network = AugLocal(depth=depth).criterion(site).head
        return [m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm1d)]

    assert (norms(1), norms(2), norms(3)) == ([64], [], [])
    (*copies, head) = AugLocal(depth=1).criterion(site).head.children()
    assert isinstance(head, NormedHead)
    x = 3 + 5 * torch.randn(64, *site.spec.shape)
    for copy in copies:
        x = copy(x)
    vectors = x.mean(dim=(2, 3))
    normed = (vectors - vectors.mean(0)) / (vectors.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), head.head.fc(normed))


def test_convolutions_are_drawn_by_hes_rule() -> None:
    """The standard deviation is sqrt(2 / fan out)."""
    site = sites(CifarResNet(depth=14), GREY)[0]
    layers = AugLocal(depth=5).criterion(site).head.modules()
    found = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert len(found) > 10
    for layer in found:
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_a_single_auxiliary_network_has_the_whole_depth() -> None:
    (site,) = row(40, 5)
    assert len(AugLocal(depth=6, tau=0.0)._chosen(site)) == 6


def everything_is_trained(site: Site, train: Train, depth: int) -> list[nn.Module]:
    """Run a backward pass, check all gradients, and return the parts of the auxiliary network."""
    torch.manual_seed(0)  # with some other seeds, a ReLU could zero a whole layer
    criterion, feature = train(AugLocal(depth=depth), site)
    assert_gradients(criterion, feature)
    return list(criterion.head.children())


@pytest.mark.parametrize(
    ("model", "image", "depth"),
    [
        *((CifarResNet(depth=14), *each) for each in ((GREY, 1), (ODD, 2), (GREY, 5))),
        pytest.param(*(ResNet(depth=18), SMALL, 2), marks=pytest.mark.slow),
    ],
)
def test_residual_networks(
    model: CifarResNet | ResNet, image: ImageSpec, depth: int, train: Train
) -> None:
    for site in sites(model, image):
        *copies, head = everything_is_trained(site, train, depth)
        assert all(isinstance(unit, BasicUnit) for unit in copies)
        normed = [m for m in head.modules() if isinstance(m, nn.BatchNorm1d)]
        assert isinstance(head, NormedHead if normed else ResNetHead)


def test_copies_are_adapted_to_maps_of_any_size() -> None:
    """layer2.1 and layer3.1 are copied behind the stem. Each halves its maps once."""
    stem = sites(CifarResNet(depth=14), ODD)[0]
    assert AugLocal()._chosen(stem) == [3, 6]
    x = torch.randn(2, *stem.spec.shape)
    shapes = []
    for part in AugLocal().criterion(stem).head.children():
        x = part(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(32, 17, 17), (64, 9, 9), (CLASSES,)]


class AwakeHead(ViTHead):
    """A head whose Linear is not zero at first.

    Otherwise no layer before it would get a gradient.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they are
        self.fc.reset_parameters()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_vision_transformers(monkeypatch: pytest.MonkeyPatch, depth: int, train: Train) -> None:
    monkeypatch.setattr("ppll_cli.models.vit.Head", AwakeHead)
    for site in sites(SMALL_VIT, TOKENS):
        *copies, head = everything_is_trained(site, train, depth)
        assert all(isinstance(unit, Block) for unit in copies)
        assert isinstance(head, ViTHead)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "local.depth=0: must be greater than or equal to 1"),
        ({"depth": -2}, "local.depth=-2: must be greater than or equal to 1"),
        ({"tau": -0.1}, "local.tau=-0.1: must be greater than or equal to 0"),
        ({"tau": 1.5}, "local.tau=1.5: must be less than or equal to 1"),
        ({"tau": float("nan")}, "local.tau=nan: must be a finite number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        AugLocal(**options)  # type: ignore[arg-type]  # depth is whole in each
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(["model=resnet", "model.depth=14"], marks=pytest.mark.slow),
        ["model=vit", "model.dim=16", "model.depth=6", "model.heads=2"],
    ],
)
def test_auglocal_trains_in_a_pipeline(run: Runner, model: list[str]) -> None:
    data = ["data=synthetic", "data.size=8", "data.train_samples=24", "data.test_samples=6"]
    options = ["local=auglocal", "local.modules=4", "batch_size=6", "max_steps=4"]
    summary = run(*model, *data, *options).summary
    assert (summary["status"], summary["steps"], summary["modules"]) == ("completed", 4, 4)
    assert [module["aux_params"] > 0 for module in summary["per_module"]] == [True] * 3 + [False]
