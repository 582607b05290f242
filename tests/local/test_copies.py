"""Copies of the model's units that read other features than the original units."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.copies import copies_of, later_units
from ppll_cli.local.method import Site
from ppll_cli.models.drop_path import DropPath
from ppll_cli.models.resnet import BasicUnit, CifarResNet, Head
from ppll_cli.models.unit import IMAGE, ImageSpec, Unit
from ppll_cli.tasks.classification import Classification
from tests.local.conftest import site_over

TASK = Classification(5)
IMAGES = ImageSpec(3, 16, 16)


def of(units: list[Unit], image: ImageSpec = IMAGES) -> Site:
    """Return the site behind the first unit."""
    return site_over(units, image, TASK, [1])


def resnet(image: ImageSpec = IMAGES) -> Site:
    """Return the site behind the stem. Behind it are layer1.0, layer2.0, layer3.0 and the head."""
    return of(list(CifarResNet(depth=8).units(image, TASK)), image)


def shapes(network: nn.Sequential, x: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the shape of each part's output."""
    found = []
    for part in network:
        x = part(x)
        found.append(tuple(x.shape[1:]))
    return found


def units_of(site: Site, indices: Sequence[int], method: str) -> nn.Sequential:
    """Return the copies as a sequence."""
    return nn.Sequential(*copies_of(site, indices, method).units)


def test_later_units_are_those_before_the_head() -> None:
    site = resnet()
    assert later_units(site) == range(1, 4)
    whole = Site(0, (range(4), range(4, 5)), site.units, site.features, IMAGES, TASK)
    assert not later_units(whole)


def test_a_unit_that_fits_is_copied_without_adapt() -> None:
    site = resnet()
    network = units_of(site, [1, 2, 3], "test")
    built = [site.units[index].build() for index in (1, 2, 3)]
    assert [str(copy) for copy in network] == [str(unit) for unit in built]
    assert shapes(network, torch.randn(2, 16, 16, 16)) == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]


def test_a_unit_may_be_copied_several_times() -> None:
    network = units_of(resnet(), [1, 1, 1], "test")
    assert shapes(network, torch.randn(2, 16, 16, 16)) == [(16, 16, 16)] * 3
    first, second = (unit.state_dict()["conv1.weight"] for unit in network[:2])
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("index", "rate"), [(1, set()), (2, {0.15}), (3, {0.3})])
def test_a_copy_keeps_its_units_stochastic_depth(index: int, rate: set[float]) -> None:
    """The last two units are adapted to the maps of the stem."""
    model = CifarResNet(depth=8, drop_path=0.3)
    (copy,) = units_of(of(list(model.units(IMAGES, TASK))), [index], "test")
    found = {layer._rate for layer in copy.modules() if isinstance(layer, DropPath)}
    assert found == rate


def test_a_unit_that_does_not_fit_is_adapted() -> None:
    """layer3.0 usually reads [32, 8, 8].

    Its copy reads the stem's [16, 16, 16], and halves it once.
    """
    network = units_of(resnet(), [3], "test")
    assert isinstance(network[0], BasicUnit)
    assert shapes(network, torch.randn(2, 16, 16, 16)) == [(64, 8, 8)]


def test_each_copy_is_adapted_to_the_output_of_the_previous_copy() -> None:
    """The second copy of layer3.0 reads maps that are too large for it. The third one does not."""
    network = units_of(resnet(), [3, 3, 3], "test")
    assert shapes(network, torch.randn(2, 16, 16, 16)) == [(64, 8, 8), (64, 4, 4), (64, 4, 4)]


def test_adapt_gets_the_input_and_output_shapes() -> None:
    told: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def adapt(given: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
        told.append((given, wanted))
        return nn.Linear(given[0], wanted[0])

    site = of(
        [
            Unit("first", nn.Sequential, (IMAGE,)),
            Unit("flat", nn.Flatten),
            Unit("wide", partial(nn.Linear, 768, 40)),
            Unit("narrow", partial(nn.Linear, 40, 7), adapt=adapt),
            Unit("head", partial(nn.Linear, 7, 5), writes=("prediction",)),
        ]
    )
    units_of(site, [1, 3], "test")
    assert told == [((768,), (7,))]


def test_copying_no_units_leaves_the_features_unchanged() -> None:
    x = torch.randn(2, 16, 16, 16)
    assert torch.equal(units_of(resnet(), [], "test")(x), x)


def test_the_head_is_the_models_with_fresh_weights() -> None:
    one, other = (copies_of(resnet(), [], "test").head for _ in range(2))
    assert isinstance(one, Head)
    assert one(torch.randn(2, 64, 3, 3)).shape == (2, 5)
    assert not torch.equal(one.state_dict()["fc.weight"], other.state_dict()["fc.weight"])


def test_making_copies_changes_no_statistics_or_gradients() -> None:
    """Copying runs a sample of zeros through the copies, in evaluation mode."""
    network = units_of(resnet(), [1, 3], "test")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert not norm.running_mean.any()
        assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))
        assert norm.num_batches_tracked == 0
    assert all(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_making_copies_draws_random_numbers_only_for_weights() -> None:
    """Otherwise, later random numbers would depend on how shapes are found."""
    units = [
        Unit("first", nn.Identity, (IMAGE,)),
        Unit("dropout", nn.Dropout),
        Unit("head", nn.Flatten, writes=("prediction",)),
    ]
    site = of(units)
    before = torch.random.get_rng_state()
    units_of(site, [1], "test")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("indices", [[1, 2, 3], [3], [2, 3]])
def test_nothing_is_computed_on_the_meta_device(indices: list[int]) -> None:
    with torch.device("meta"):
        network = units_of(resnet(ImageSpec(3, 33, 28)), indices, "test")
        head = copies_of(resnet(), [], "test").head
        assert head(network(torch.empty(2, 16, 33, 28))).shape == (2, 5)
    assert all(parameter.is_meta for parameter in network.parameters())


def test_a_unit_without_adapt_is_refused_if_features_differ() -> None:
    site = of(
        [
            Unit("first", nn.Identity, (IMAGE,)),
            Unit("half", partial(nn.AvgPool2d, 2)),
            Unit("end", partial(nn.Conv2d, 3, 3, 1)),
            Unit("head", nn.Flatten, writes=("prediction",)),
        ]
    )
    assert len(units_of(site, [1, 2], "test")) == 2
    with pytest.raises(ConfigError) as refusal:
        units_of(site, [2], "test")
    assert str(refusal.value) == (
        "local=test: cannot copy 'end', which takes [3, 8, 8], for features [3, 16, 16]; "
        "use local=greedy, or give the Unit `adapt`"
    )


class Pair(nn.Module):
    """Returns two outputs."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@pytest.mark.parametrize(
    "odd",
    [
        Unit("odd", nn.Identity, reads=("x", IMAGE)),
        Unit("odd", nn.Identity, reads=(IMAGE,)),
        Unit("odd", Pair, writes=("x", "skip")),
    ],
    ids=["two inputs", "reads another", "two outputs"],
)
def test_units_and_heads_with_several_inputs_or_outputs_are_refused(odd: Unit) -> None:
    first, head = Unit("first", nn.Identity, (IMAGE,)), Unit("head", nn.Flatten)
    features = [ValueSpec((3, 16, 16), torch.float32)] * 3
    site = Site(0, (range(1), range(1, 3)), [first, odd, head], features, IMAGES, TASK)
    message = (
        "local=test: cannot copy 'odd': copied units have one input, which is the output of the "
        "unit before, and one output; use local=greedy"
    )
    for indices, units in (([1], [first, odd, head]), ([], [first, odd])):
        with pytest.raises(ConfigError) as refusal:
            units_of(replace(site, units=units, features=features[: len(units)]), indices, "test")
        assert str(refusal.value) == message
