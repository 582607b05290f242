"""Classification, compared with sums by hand."""

from math import exp, log

import pytest
import torch

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.tasks.classification import (
    LABEL,
    OTHER_LABEL,
    SHARE,
    Classification,
    Pool,
    class_shares,
    classes_of,
    pooled_width,
    with_mixing,
    with_smoothing,
)
from tests.other_task import OtherTask

TASK = Classification(3)
LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, -1.0], [5.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
LABELS = torch.tensor([2, 0, 1, 1])
OTHERS = torch.tensor([0, 0, 2, 1])
MIXED = {LABEL: LABELS, OTHER_LABEL: OTHERS, SHARE: torch.full((4,), 0.7, dtype=torch.float64)}


def test_the_loss_is_the_mean_cross_entropy() -> None:
    expected = [
        log(sum(exp(logit) for logit in row)) - row[label]
        for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]
    loss = TASK.loss(LOGITS, {LABEL: LABELS, "image": torch.zeros(1)})
    assert loss.shape == ()
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (4, 2), (4,), (4, 3, 1)])
def test_logits_for_another_number_of_classes_are_refused(shape: tuple[int, ...]) -> None:
    """A head with too many outputs was trained, and its confusion matrix was wrong."""
    with pytest.raises(ValueError, match=r"the logits have the shape \[B.*\] instead"):
        TASK.loss(torch.zeros(shape), {LABEL: LABELS})


def test_the_training_loss_uses_smoothed_labels_and_evaluation_plain_ones() -> None:
    """A fraction of 0.3 of each target is distributed over all classes, including the right one."""
    task = with_smoothing(TASK, 0.3)
    logs = LOGITS.log_softmax(1)
    expected = -sum(
        0.7 * logs[row, label] + 0.1 * logs[row].sum() for row, label in enumerate(LABELS)
    )
    assert task.loss(LOGITS, {LABEL: LABELS}).item() == pytest.approx(float(expected) / 4, rel=1e-6)
    with torch.no_grad():
        measured = task.loss(LOGITS, {LABEL: LABELS})
    assert torch.equal(measured, TASK.loss(LOGITS, {LABEL: LABELS}))
    assert with_smoothing(TASK, 0.0) is TASK


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_of_a_mixed_image_uses_both_labels(smoothing: float) -> None:
    """Each label counts by its share of the image. Then all targets are smoothed."""
    task = with_smoothing(with_mixing(TASK, {"data.mixup": 0.2}), smoothing)
    logs = LOGITS.double().log_softmax(1)
    expected = 0.0
    for row, (label, other) in enumerate(zip(LABELS.tolist(), OTHERS.tolist(), strict=True)):
        target = [smoothing / 3] * 3
        target[label] += (1 - smoothing) * 0.7
        target[other] += (1 - smoothing) * 0.3
        expected -= sum(part * logs[row, n].item() for n, part in enumerate(target)) / 4
    assert task.loss(LOGITS, MIXED).item() == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        measured = task.loss(LOGITS, MIXED)
    assert torch.equal(measured, TASK.loss(LOGITS, {LABEL: LABELS}))


def test_the_accuracy_of_a_mixed_image_uses_the_label_of_the_larger_share() -> None:
    task = with_mixing(TASK, {"data.cutmix": 1.0})
    assert task.measure(LOGITS, MIXED, training=True).tolist() == [[3, 4]]


def test_class_shares_follow_both_labels() -> None:
    found = class_shares(MIXED, 3)
    expected = [[0.3, 0, 0.7], [1, 0, 0], [0, 0.7, 0.3], [0, 1, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    one_hot = class_shares({LABEL: LABELS}, 3)
    assert one_hot.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0]]
    whole = class_shares({**MIXED, SHARE: torch.ones(4, dtype=torch.float64)}, 3)
    assert torch.equal(whole, one_hot)
    assert found.dtype == one_hot.dtype == torch.float32


def test_mixing_is_refused_for_tasks_without_labels() -> None:
    other = OtherTask()
    assert with_mixing(other, {}) is other
    assert with_mixing(TASK, {}) is TASK
    with pytest.raises(ConfigError, match=r"^data\.mixup=0\.1: is for classification; choose a "):
        with_mixing(other, {"data.mixup": 0.1, "data.cutmix": 1.0})


def test_a_mixed_batch_has_two_labels_and_a_share() -> None:
    """The share is float64, because no link converts float64 to fewer bits."""
    integer = ValueSpec((), torch.int64)
    targets = with_mixing(TASK, {"data.mixup": 0.1}).targets
    assert targets == {
        "label": integer,
        "label.other": integer,
        "label.share": ValueSpec((), torch.float64),
    }


def test_smoothing_is_refused_for_tasks_without_labels() -> None:
    other = OtherTask()
    assert with_smoothing(other, 0.0) is other
    with pytest.raises(
        ConfigError, match=r"optim\.label_smoothing=0\.1: is for classification; ch"
    ):
        with_smoothing(other, 0.1)


def test_the_loss_of_bfloat16_is_computed_in_float32() -> None:
    logits = torch.randn(64, 3).bfloat16()
    labels = torch.arange(64) % 3
    loss = TASK.loss(logits, {LABEL: labels})
    assert loss.dtype == torch.float32
    assert torch.equal(loss, TASK.loss(logits.float(), {LABEL: labels}))


def test_measure_counts_correct_predictions() -> None:
    measured = TASK.measure(LOGITS, {LABEL: LABELS}, training=True)
    assert measured.dtype == torch.float64
    assert measured.tolist() == [[3, 4]]  # the second row is a tie, in which the first label counts


def test_measurements_of_batches_add_up_to_the_accuracy() -> None:
    parts = [slice(0, 3), slice(3, 4)]
    rows = [TASK.measure(LOGITS[part], {LABEL: LABELS[part]}, training=False) for part in parts]
    assert TASK.score(torch.cat(rows)) == {"accuracy": 0.75}


def test_a_batch_has_a_label() -> None:
    assert TASK.targets == {"label": ValueSpec((), torch.int64)}
    assert TASK.metric == "accuracy"


@pytest.mark.parametrize("shape", [(8, 4, 6), (8, 1, 1), (5, 8), (1, 8), (8,)])
def test_the_smallest_head_is_one_linear_layer(shape: tuple[int, ...]) -> None:
    head = TASK.smallest_head(shape)
    assert pooled_width(shape) == 8
    assert head(torch.randn(2, *shape)).shape == (2, 3)
    assert sum(parameter.numel() for parameter in head.parameters()) == 8 * 3 + 3


def test_pool_averages_over_positions() -> None:
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(Pool(3)(x), x.sum(dim=(2, 3)) / 20)
    torch.testing.assert_close(Pool(2)(x[0]), x[0].sum(dim=1) / 4)
    assert torch.equal(Pool(1)(x[0, 0]), x[0, 0])


def test_a_model_for_classification_refuses_another_task() -> None:
    assert classes_of(TASK, "vit") == 3
    with pytest.raises(ConfigError, match=r"^model=vit: is for classification; choose a data set"):
        classes_of(OtherTask(), "vit")
