"""The auxiliary network of decoupled greedy learning (DGL)."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.dgl import DGL, AdaptivePool
from ppll_cli.local.method import Site
from ppll_cli.tasks.classification import Classification
from tests.local.conftest import Train, assert_gradients


@pytest.mark.parametrize("hidden", [None, 20])
def test_everything_is_trained(site: Site, train: Train, hidden: int | None) -> None:
    torch.manual_seed(0)  # with some other seeds, a ReLU could zero a whole layer
    assert_gradients(*train(DGL(hidden=hidden), site))


def test_the_feature_is_not_changed_in_place(site: Site, shape: tuple[int, ...]) -> None:
    """The network's ReLUs work in place, but the next module reads the same feature."""
    feature = torch.randn(6, *shape)
    before = feature.clone()
    DGL().criterion(site).head(feature)
    assert torch.equal(feature, before)


def layers(site: Site, hidden: int | None = None) -> list[tuple[int, ...]]:
    modules = DGL(hidden=hidden).criterion(site).modules()
    return [tuple(m.weight.shape) for m in modules if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("shape", [(8, 16, 12)])
def test_the_network_has_the_published_layers(site: Site) -> None:
    convolutions = [(8, 8, 1, 1)] * 3
    assert layers(site) == [*convolutions, (32, 8 * 4), (32, 32), (32, 32), (5, 32)]
    assert layers(site, hidden=20) == [*convolutions, (20, 8 * 4), (20, 20), (20, 20), (5, 20)]


@pytest.mark.parametrize(
    ("channels", "side", "parameters"),
    [(16, 32, 14_378), (16, 28, 14_378), (32, 14, 54_858), (64, 8, 214_154), (64, 7, 214_154)],
)
@pytest.mark.parametrize("shape", [(8, 16, 12)])
def test_parameters_are_those_of_the_authors_network(
    site: Site, channels: int, side: int, parameters: int
) -> None:
    """The numbers are those of "mlp-sr" in github.com/eugenium/DGL, for ten classes, by hand."""
    here = replace(
        site,
        features=[ValueSpec((channels, side, side), torch.float32)] * 2,
        task=Classification(10),
    )
    width = 4 * channels
    by_hand = 3 * (channels**2 + 2 * channels) + 3 * (width**2 + 3 * width) + 10 * width + 10
    found = sum(p.numel() for p in DGL().criterion(here).parameters())
    assert found == by_hand == parameters


@pytest.mark.parametrize(("side", "pooled"), [(32, 8), (28, 7), (14, 4), (8, 2), (7, 2), (5, 2)])
@pytest.mark.parametrize("shape", [(8, 16, 12)])
def test_convolutions_see_a_quarter_of_the_side_rounded_up(
    site: Site, side: int, pooled: int
) -> None:
    """Rounding down once made a single pixel of maps of 7. Fashion-MNIST's last stage has these."""
    here = replace(site, features=[ValueSpec((8, side, side), torch.float32)] * 2)
    seen: list[torch.Size] = []
    network = DGL().criterion(here).head
    convolution = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[0].shape))
    network(torch.randn(2, 8, side, side))
    assert seen == [(2, 8, pooled, pooled)]


@pytest.mark.parametrize("shape", [(8, 16, 12)])
@pytest.mark.parametrize(
    ("spatial", "pooled"), [((8, 8), 4), ((8, 4), 2), ((4, 7), 2), ((4, 4), 1), ((1, 16), 2)]
)
def test_what_the_perceptron_reads_of_a_small_map(
    site: Site, spatial: tuple[int, int], pooled: int
) -> None:
    small = replace(site, features=[ValueSpec((8, *spatial), torch.float32)] * 2)
    assert layers(small)[3] == (8 * pooled, 8 * pooled)


@pytest.mark.parametrize("hidden", [0, -4])
def test_hidden_must_be_positive(hidden: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"^local\.hidden={hidden}: must be greater than or equal"
    ):
        DGL(hidden=hidden)


@pytest.mark.parametrize(
    ("pool", "size", "expected"),
    [
        (AdaptivePool(divisor=4), (16, 12), (4, 3)),
        (AdaptivePool(divisor=4), (7, 3), (2, 1)),
        (AdaptivePool(size=2), (4, 3), (2, 2)),
        (AdaptivePool(size=2), (1, 3), (1, 2)),
        (AdaptivePool(size=2), (1, 1), (1, 1)),
        (AdaptivePool(size=2), (7, 4), (2, 2)),
        (AdaptivePool(divisor=4), (14, 11), (4, 3)),
    ],
)
def test_pooling_never_enlarges(
    pool: AdaptivePool, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, *size)
    y = pool(x)
    assert y.shape == (2, 3, *expected)
    torch.testing.assert_close(y, F.adaptive_avg_pool2d(x, expected))


def test_pooling_needs_no_adaptive_pooling() -> None:
    """On CUDA, deterministic=true refuses the backward of torch's adaptive pooling."""
    x = torch.randn(2, 3, 7, 5, requires_grad=True)
    y = AdaptivePool(size=2)(x)
    assert "Adaptive" not in str(y.grad_fn)
    torch.testing.assert_close(y, F.adaptive_avg_pool2d(x, (2, 2)))
