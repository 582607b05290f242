"""Fixtures and helpers for tests of local methods."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.trace import trace
from ppll_cli.models.unit import IMAGE, ImageSpec, Unit
from ppll_cli.tasks.classification import LABEL, OTHER_LABEL, SHARE, Classification, with_mixing
from ppll_cli.tasks.task import Task

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


class TokenSpec:
    """Describes data without images."""

    specs: Mapping[str, ValueSpec] = {"tokens": ValueSpec((5,), torch.int64)}


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Return the shape of a feature, without the batch dimension."""
    shape: tuple[int, ...] = request.param
    return shape


@pytest.fixture
def site(shape: tuple[int, ...]) -> Site:
    """Return the end of the first of two modules."""
    return Site(
        module=0,
        modules=(range(1), range(1, 2)),
        units=[Unit("first", nn.Identity, writes=("feature",)), Unit("second", nn.Identity)],
        features=[ValueSpec(shape, torch.float32)] * 2,
        input_spec=ImageSpec(1, 8, 8, (0.25,), (0.5,)),
        task=Classification(CLASSES),
    )


def site_over(
    units: Sequence[Unit], image: ImageSpec, task: Task, starts: Iterable[int] | None = None
) -> Site:
    """Return the site of the first module. Modules 2 to k begin at the units `starts`.

    By default each unit is a module.
    """
    features = [traced.outputs[0] for traced in trace(units, image.specs)]
    edges = [0, *(range(1, len(units)) if starts is None else starts), len(units)]
    modules = tuple(range(start, stop) for start, stop in pairwise(edges))
    return Site(0, modules, units, features, image, task)


def batch_at(site: Site) -> dict[str, Tensor]:
    """Return a feature that requires a gradient, labels, and normalised images."""
    feature = torch.randn(BATCH, *site.spec.shape, requires_grad=True)
    image = site.input_spec
    assert isinstance(image, ImageSpec)
    pixels = torch.rand(BATCH, image.channels, image.height, image.width)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (image.mean, image.std))
    labels = torch.arange(BATCH) % CLASSES
    return {site.feature: feature, LABEL: labels, IMAGE: (pixels - mean) / std}


def mixed(site: Site, values: Mapping[str, Tensor]) -> tuple[Site, dict[str, Tensor]]:
    """Return the same site and batch with mixed images. One of the pairs is of the same class."""
    others = values[LABEL].roll(1)
    others[2] = values[LABEL][2]
    targets = {OTHER_LABEL: others, SHARE: torch.full((BATCH,), 0.7, dtype=torch.float64)}
    task = with_mixing(site.task, {"data.mixup": 0.2})
    return replace(site, task=task), {**values, **targets}


def shares_of(values: Mapping[str, Tensor]) -> list[list[float]]:
    """Return the share of each class in each target, computed in plain Python."""
    rows = []
    for label, other in zip(values[LABEL].tolist(), values[OTHER_LABEL].tolist(), strict=True):
        rows.append([0.7 * (label == n) + 0.3 * (other == n) for n in range(CLASSES)])
    return rows


def assert_trained(criterion: Criterion, values: Mapping[str, Tensor]) -> None:
    """Check that a backward pass gives gradients to every parameter and to the feature."""
    loss, prediction = criterion(values)
    assert prediction.shape == (BATCH, CLASSES)
    loss.backward()
    (feature,) = criterion.features
    assert_gradients(criterion, values[feature])


def assert_gradients(criterion: Criterion, feature: Tensor) -> None:
    """Check that every parameter and the feature have gradients that are not all zero."""
    for name, tensor in [*criterion.named_parameters(), ("the feature", feature)]:
        assert tensor.grad is not None, name
        assert tensor.grad.any(), name


Train = Callable[[LocalMethod, Site], tuple[Criterion, Tensor]]


@pytest.fixture
def train() -> Train:
    """Return a function that checks a criterion's outputs, and runs one backward pass.

    It returns the criterion and the feature, both with gradients.
    """

    def train(method: LocalMethod, site: Site) -> tuple[Criterion, Tensor]:
        criterion = method.criterion(site)
        values = batch_at(site)
        del values[IMAGE]
        assert set(criterion.reads) == values.keys()
        loss, prediction = criterion(values)
        assert prediction.shape == (BATCH, CLASSES)
        torch.testing.assert_close(loss, site.task.loss(prediction, values))
        loss.backward()
        return criterion, values[site.feature]

    return train
