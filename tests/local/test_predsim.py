"""Prediction and similarity matching (predsim)."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import empty
from ppll_cli.local.method import Criterion, Site
from ppll_cli.local.predsim import PredSim, PredSimCriterion, pool_kernel, similarities, summary
from ppll_cli.tasks.classification import LABEL
from tests.local.conftest import CLASSES, assert_trained, batch_at, mixed, shares_of
from tests.other_task import OtherTask


@pytest.mark.parametrize("similarity", [0.0, 0.5, 0.99, 1.0])
def test_everything_is_trained(site: Site, similarity: float) -> None:
    criterion = PredSim(similarity=similarity).criterion(site)
    assert criterion.reads == (site.feature, LABEL)
    assert_trained(criterion, batch_at(site))


def test_the_feature_is_not_changed_in_place(site: Site) -> None:
    values = batch_at(site)
    before = values[site.feature].detach().clone()
    PredSim().criterion(site)(values)
    assert torch.equal(values[site.feature], before)


def rows_alike(rows: list[list[float]]) -> list[list[float]]:
    """Return the cosines of all pairs of rows, after each row's mean is subtracted."""
    centred = [[x - statistics.fmean(row) for x in row] for row in rows]
    lengths = [math.sqrt(sum(x * x for x in row)) for row in centred]
    return [
        [sum(a * b for a, b in zip(one, other, strict=True)) / (m * n)]
        for one, m in zip(centred, lengths, strict=True)
        for other, n in zip(centred, lengths, strict=True)
    ]


def similarity_loss(maps: Tensor, labels: Tensor) -> float:
    """Return the similarity loss of a batch of maps, computed in plain Python from labels."""
    one_hot = [[float(label == n) for n in range(CLASSES)] for label in labels.tolist()]
    return likeness_loss(maps, one_hot)


def likeness_loss(maps: Tensor, targets: list[list[float]]) -> float:
    """Return the similarity loss of a batch of maps, given the class shares of each target."""
    rows = []
    for channels in maps.double().flatten(2).tolist():
        if len(channels[0]) > 1:
            rows.append([statistics.stdev(channel) for channel in channels])
        else:
            rows.append([channel[0] for channel in channels])
    pairs = zip(rows_alike(rows), rows_alike(targets), strict=True)
    return statistics.fmean((found - wanted) ** 2 for (found,), (wanted,) in pairs)


@pytest.mark.parametrize(("similarity", "prediction_weight"), [(0.75, 0.25), (1.0, 1.0)])
def test_the_loss_is_the_weighted_sum(
    site: Site, similarity: float, prediction_weight: float
) -> None:
    criterion = PredSim(similarity=similarity).criterion(site)
    assert isinstance(criterion, PredSimCriterion)
    values = batch_at(site)
    loss, prediction = criterion(values)
    expected = prediction_weight * site.task.loss(prediction, values).item()
    compared = criterion.compared(values[site.feature])
    expected += similarity * similarity_loss(compared, values[LABEL])
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [(8, 7, 5), (7, 8)])
def test_the_similarity_of_mixed_images_comes_from_their_class_shares(site: Site) -> None:
    site, values = mixed(site, batch_at(site))
    criterion = PredSim(similarity=0.75).criterion(site)
    assert isinstance(criterion, PredSimCriterion)
    assert {*criterion.reads} == {site.feature, *site.task.targets}
    loss, prediction = criterion(values)
    compared = criterion.compared(values[site.feature])
    expected = 0.25 * site.task.loss(prediction, values).item()
    expected += 0.75 * likeness_loss(compared, shares_of(values))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_weight_0_leaves_out_the_similarity_loss(site: Site) -> None:
    criterion = PredSim(similarity=0.0).criterion(site)
    assert type(criterion) is Criterion
    assert not [m for m in criterion.modules() if isinstance(m, nn.Conv2d)]
    values = batch_at(site)
    loss, prediction = criterion(values)
    assert torch.equal(loss, site.task.loss(prediction, values))


@pytest.mark.parametrize("similarity", [0.99, 1.0])
def test_the_prediction_trains_the_module_only_if_it_has_weight(
    site: Site, similarity: float
) -> None:
    criterion = PredSim(similarity=similarity).criterion(site)
    values = batch_at(site)
    _, prediction = criterion(values)
    (gradient,) = torch.autograd.grad(
        prediction.square().sum(), values[site.feature], allow_unused=True
    )
    assert (gradient is None) == (similarity == 1)


def test_summary_converts_maps_to_vectors() -> None:
    """A map becomes one number per channel if this gives a vector. Otherwise all values stay."""
    many, few, pixel = torch.randn(2, 4, 3, 2), torch.randn(2, 3, 3, 2), torch.randn(2, 4, 1, 1)
    torch.testing.assert_close(summary(many), many.std(dim=(2, 3)))
    assert torch.equal(summary(few), few.flatten(1))
    assert torch.equal(summary(pixel), pixel.flatten(1))


def test_constant_vectors_have_similarity_0() -> None:
    """Such a vector has no direction. Neither forward nor backward may divide by zero."""
    x = torch.ones(2, 4, requires_grad=True)
    alike = similarities(x)
    assert torch.equal(alike, torch.zeros(2, 2))
    alike.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_dead_features_do_not_spoil_the_gradient(site: Site) -> None:
    criterion = PredSim().criterion(site)
    values = {**batch_at(site), site.feature: torch.zeros(6, *site.spec.shape, requires_grad=True)}
    loss, _ = criterion(values)
    loss.backward()
    for tensor in (values[site.feature], *criterion.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize(
    ("size", "positions", "kernel"),
    [
        ((8, 8), 64, (1, 1)),
        ((8, 8), 63, (2, 1)),
        ((8, 8), 32, (2, 1)),
        ((8, 8), 16, (2, 2)),
        ((16, 12), 12, (4, 4)),  # 8 x 12, 8 x 6, 4 x 6, 4 x 3
        ((7, 5), 6, (4, 2)),  # 4 x 5, 4 x 3, 2 x 3
        ((4, 4), 1, (4, 4)),
        # there are more channels than values, so the smallest size is used: one position
        ((4, 4), 0, (4, 4)),
        ((5, 1), 1, (5, 1)),
        ((1, 6), 2, (1, 4)),
    ],
)
def test_the_longer_side_is_halved(
    size: tuple[int, int], positions: int, kernel: tuple[int, int]
) -> None:
    assert pool_kernel(*size, positions) == kernel


@pytest.mark.parametrize("shape", [(8, 16, 12), (8, 7, 5), (8, 5, 7), (7, 8), (8,)])
@pytest.mark.parametrize("width", [1, 8, 50, 100, 2048])
def test_the_classifier_reads_means_of_windows(site: Site, width: int) -> None:
    head = PredSim(similarity=0.0, width=width).criterion(site).head
    assert isinstance(head, nn.Sequential)
    as_map, *pool, linear = head
    assert isinstance(linear, nn.Linear)
    assert linear.in_features <= max(width, 8)
    x = as_map(torch.randn(2, *site.spec.shape))
    high, wide = pool_kernel(x.shape[2], x.shape[3], width // 8)
    rows = [x[:, :, row : row + high] for row in range(0, x.shape[2], high)]
    windows = [
        [row[..., column : column + wide].mean(dim=(2, 3)) for column in range(0, x.shape[3], wide)]
        for row in rows
    ]
    expected = torch.stack([torch.stack(row, dim=-1) for row in windows], dim=-2).flatten(1)
    assert linear.in_features == expected.shape[1]
    torch.testing.assert_close(nn.Sequential(*pool)(x), expected)


@pytest.mark.parametrize("similarity", [0.0, 0.99, 1.0])
def test_the_loss_accepts_one_sample_on_the_meta_device(site: Site, similarity: float) -> None:
    with torch.device("meta"):
        criterion = PredSim(similarity=similarity).criterion(site)
    specs = {site.feature: site.spec, **site.task.targets}
    loss, prediction = criterion({name: empty(specs[name]) for name in criterion.reads})
    assert loss.shape == ()
    assert prediction.shape == (1, CLASSES)
    assert loss.is_meta


def test_similarity_is_computed_in_float32_under_autocast(site: Site) -> None:
    criterion = PredSim(similarity=1.0).criterion(site)
    assert isinstance(criterion, PredSimCriterion)
    values = batch_at(site)
    with torch.autocast("cpu", torch.bfloat16):
        loss, prediction = criterion(values)
        compared = criterion.compared(values[site.feature])
    assert compared.dtype == torch.bfloat16
    expected = site.task.loss(prediction, values).item()
    expected += similarity_loss(compared, values[LABEL])
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("similarity", [-0.01, 1.01, math.nan])
def test_similarity_outside_0_to_1_is_refused(similarity: float) -> None:
    with pytest.raises(ConfigError, match=f"^local.similarity={similarity}: must be "):
        PredSim(similarity=similarity)


@pytest.mark.parametrize("width", [0, -8])
def test_width_must_be_positive(width: int) -> None:
    with pytest.raises(ConfigError, match=rf"^local\.width={width}: must be greater than or equal"):
        PredSim(width=width)


@pytest.mark.parametrize("shape", [(8,)])
def test_other_tasks_are_refused(site: Site) -> None:
    with pytest.raises(ConfigError) as caught:
        PredSim().criterion(replace(site, task=OtherTask()))
    assert str(caught.value) == (
        "local=predsim: is for classification; choose a data set with class labels"
    )
