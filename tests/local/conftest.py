"""What the tests of local methods share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.classification import Classification
from ppll_cli.values import ValueSpec

CLASSES = 5
BATCH = 6

SHAPES = {
    "map": (8, 16, 12),
    "odd map": (8, 7, 5),
    "small map": (8, 2, 3),
    "pixel": (8, 1, 1),
    "patches": (16, 8),
    "patches and class token": (17, 8),
    "tokens that are no square": (7, 8),
    "one token": (1, 8),
    "vector": (8,),
}


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Of a feature, without the batch."""
    shape: tuple[int, ...] = request.param
    return shape


@pytest.fixture
def site(shape: tuple[int, ...]) -> Site:
    """The end of the first of two modules."""
    return Site(
        module=0,
        modules=(range(1), range(1, 2)),
        units=[Unit("first", nn.Identity, writes=("feature",)), Unit("second", nn.Identity)],
        features=[ValueSpec(shape, torch.float32)] * 2,
        image=ImageSpec(1, 8, 8, (0.25,), (0.5,)),
        task=Classification(CLASSES),
    )


Train = Callable[[LocalMethod, Site], tuple[Criterion, Tensor]]


@pytest.fixture
def train() -> Train:
    """One backward pass through a method's criterion, after its outputs were checked.

    Returns the criterion and the feature, both with gradients.
    """

    def train(method: LocalMethod, site: Site) -> tuple[Criterion, Tensor]:
        criterion = method.criterion(site)
        feature = torch.randn(BATCH, *site.spec.shape, requires_grad=True)
        values = {site.feature: feature, "label": torch.arange(BATCH) % CLASSES}
        assert set(criterion.reads) == values.keys()
        loss, prediction = criterion(values)
        assert prediction.shape == (BATCH, CLASSES)
        torch.testing.assert_close(loss, site.task.loss(prediction, values))
        loss.backward()
        return criterion, feature

    return train
