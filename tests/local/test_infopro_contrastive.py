"""InfoPro's contrastive loss."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppll_cli.local.infopro import InfoPro, Loss, contrastive_loss
from ppll_cli.local.method import Site
from ppll_cli.models.unit import IMAGE
from ppll_cli.tasks.classification import LABEL, class_shares
from tests.local.conftest import CLASSES, batch_at, mixed, shares_of
from tests.local.infopro_sites import LOSSES, built, decoding


@pytest.mark.parametrize(("l1", "l2"), [(0.5, 2.0), (0.0, 2.0), (3.0, 0.0)])
def test_the_probes_loss_is_added_to_the_contrastive_loss(site: Site, l1: float, l2: float) -> None:
    values = batch_at(site)
    feature, image = values[site.feature], values[IMAGE]
    criterion = built(InfoPro(loss="contrastive", weights=[l1, l2, 0, 0], temperature=0.2), site)
    loss, prediction = criterion(values)
    vectors = F.normalize(criterion.head(feature), dim=1)
    expected = site.task.loss(prediction, values)
    expected = expected + (l2 or 1.0) * contrastive_loss(
        vectors, class_shares(values, CLASSES), 0.2
    )
    if criterion.decoder is not None:
        expected = expected + l1 * criterion.decoder(feature, image)
    torch.testing.assert_close(loss, expected)


def slow_contrastive(
    vectors: Sequence[Sequence[float]], targets: Sequence[Sequence[float]], temperature: float
) -> float:
    """Return the contrastive loss, computed from each pair of samples."""
    total_loss, counted = 0.0, 0.0
    for anchor, vector in enumerate(vectors):
        others = [n for n in range(len(vectors)) if n != anchor]
        products = {
            n: sum(a * b for a, b in zip(vector, vectors[n], strict=True)) / temperature
            for n in others
        }
        total = sum(math.exp(product) for product in products.values())
        alike = {
            n: sum(a * b for a, b in zip(targets[n], targets[anchor], strict=True)) for n in others
        }
        logs = {n: math.log(math.exp(products[n]) / total) for n in others}
        wanted = sum(alike.values())
        total_loss -= sum(alike[n] * logs[n] for n in others) / max(1, wanted)
        counted += min(1, wanted)
    return total_loss / max(1, counted)


def one_hot(labels: Sequence[int]) -> Tensor:
    return F.one_hot(torch.tensor(labels), CLASSES).float()


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 1, 2], [0, 0, 0, 0], [0, 1, 2, 3, 4, 1], [3, 3]])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_contrastive_loss(labels: list[int], temperature: float) -> None:
    vectors = F.normalize(torch.randn(len(labels), 4), dim=1)
    loss = contrastive_loss(vectors, one_hot(labels), temperature)
    expected = slow_contrastive(vectors.double().tolist(), one_hot(labels).tolist(), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("shape", [(8, 7, 5), (7, 8)])
def test_the_similarity_of_mixed_images_comes_from_their_class_shares(site: Site) -> None:
    site, values = mixed(site, batch_at(site))
    method = InfoPro(loss="contrastive", weights=[0, 2, 0, 2], temperature=0.2)
    criterion = built(method, site)
    assert {*criterion.reads} == {site.feature, *site.task.targets}
    loss, prediction = criterion(values)
    vectors = F.normalize(criterion.head(values[site.feature]), dim=1)
    expected = site.task.loss(prediction, values).item()
    expected += 2 * slow_contrastive(vectors.double().tolist(), shares_of(values), 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_tiny_share_hardly_changes_the_contrastive_loss() -> None:
    """If no two images have more than this share in common, the loss and its gradient are tiny."""
    vectors = F.normalize(torch.randn(4, 5), dim=1).requires_grad_()
    for share in (1e-6, 1e-20, 1e-38, 1e-44, 1e-60):
        shares = torch.eye(4) + share * torch.eye(4).roll(1, 1)
        loss = contrastive_loss(vectors, shares, 0.07)
        (found,) = torch.autograd.grad(loss, vectors)
        assert 0 <= loss.item() <= 1e3 * share + 1e-40
        assert found.abs().max().item() <= 1e3 * share + 1e-40


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
# a slower computation is allowed here
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_a_batch_without_two_samples_of_a_class_has_no_contrastive_loss(labels: list[int]) -> None:
    vectors = F.normalize(torch.randn(len(labels), 4), dim=1).requires_grad_()
    with torch.autograd.detect_anomaly():
        loss = contrastive_loss(vectors, one_hot(labels), 0.07)
        loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert vectors.grad is not None
    assert torch.equal(vectors.grad, torch.zeros_like(vectors))


def test_a_low_temperature_does_not_overflow() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    loss = contrastive_loss(vectors, one_hot([0, 1, 0]), 1e-4)
    assert loss.item() == pytest.approx((2 / 1e-4 + math.log(2)) / 2, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_computed_in_float32_under_autocast(site: Site, loss: Loss) -> None:
    values = batch_at(site)
    feature = values[site.feature]
    criterion, decoder = decoding(InfoPro(loss=loss, weights=[2, 3, 0, 0]), site)
    with torch.autocast("cpu", torch.bfloat16):
        found, prediction = criterion(values)
        head, painted = criterion.head(feature), decoder(feature, values[IMAGE])
    assert head.dtype == prediction.dtype == torch.bfloat16
    assert painted.dtype == torch.float32
    expected = 2 * painted.item()
    if loss == "softmax":
        expected += 3 * F.cross_entropy(prediction.double(), values[LABEL]).item()
    else:
        vectors = F.normalize(head.double(), dim=1).tolist()
        expected += F.cross_entropy(prediction.double(), values[LABEL]).item()
        expected += 3 * slow_contrastive(vectors, one_hot(values[LABEL].tolist()).tolist(), 0.07)
    assert found.item() == pytest.approx(expected, rel=1e-4)
