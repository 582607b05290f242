"""The smallest auxiliary head, which is one Linear layer."""

import torch
from torch import nn

from ppll_cli.local.greedy import Greedy
from ppll_cli.local.method import Site
from tests.local.conftest import CLASSES, Train, assert_gradients


def test_everything_is_trained(site: Site, train: Train) -> None:
    assert_gradients(*train(Greedy(), site))


def test_the_head_is_one_linear_layer_on_the_mean(site: Site, shape: tuple[int, ...]) -> None:
    criterion = Greedy().criterion(site)
    assert sum(parameter.numel() for parameter in criterion.parameters()) == 8 * CLASSES + CLASSES
    (linear,) = (module for module in criterion.modules() if isinstance(module, nn.Linear))
    feature = torch.randn(3, *shape)
    axes = {1: (), 2: (1,), 3: (2, 3)}[len(shape)]
    mean = feature.mean(dim=axes) if axes else feature
    torch.testing.assert_close(criterion.head(feature), linear(mean))
