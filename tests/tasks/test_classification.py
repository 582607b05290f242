"""Classification against sums by hand."""

from math import exp, log

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.tasks.classification import LABEL, Classification, Pool, classes_of, pooled_width
from ppll_cli.tasks.task import Task

TASK = Classification(3)
LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, -1.0], [5.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
LABELS = torch.tensor([2, 0, 1, 1])


def test_loss_is_the_mean_cross_entropy() -> None:
    expected = [
        log(sum(exp(logit) for logit in row)) - row[label]
        for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]
    loss = TASK.loss(LOGITS, {LABEL: LABELS, "image": torch.zeros(1)})
    assert loss.shape == ()
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-6)


def test_loss_of_bfloat16_is_computed_in_float32() -> None:
    logits = torch.randn(64, 3).bfloat16()
    labels = torch.arange(64) % 3
    loss = TASK.loss(logits, {LABEL: labels})
    assert loss.dtype == torch.float32
    assert torch.equal(loss, TASK.loss(logits.float(), {LABEL: labels}))


def test_measure_counts_what_is_correct() -> None:
    measured = TASK.measure(LOGITS, {LABEL: LABELS})
    assert measured.dtype == torch.float64
    assert measured.tolist() == [3, 4]  # of the tie in the second row the first counts


def test_measures_add_up_to_the_accuracy() -> None:
    parts = [slice(0, 3), slice(3, 4)]
    sums = sum(TASK.measure(LOGITS[part], {LABEL: LABELS[part]}) for part in parts)
    assert isinstance(sums, Tensor)
    assert TASK.score(sums.tolist()) == 0.75


def test_what_a_batch_carries() -> None:
    assert TASK.targets == ("label",)
    assert TASK.metric == "accuracy"


@pytest.mark.parametrize("shape", [(8, 4, 6), (8, 1, 1), (5, 8), (1, 8), (8,)])
def test_smallest_head(shape: tuple[int, ...]) -> None:
    head = TASK.smallest_head(shape)
    assert pooled_width(shape) == 8
    assert head(torch.randn(2, *shape)).shape == (2, 3)
    assert sum(parameter.numel() for parameter in head.parameters()) == 8 * 3 + 3


def test_pool() -> None:
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(Pool(3)(x), x.sum(dim=(2, 3)) / 20)
    torch.testing.assert_close(Pool(2)(x[0]), x[0].sum(dim=1) / 4)
    assert torch.equal(Pool(1)(x[0, 0]), x[0, 0])


class Other:
    metric, targets = "psnr", ("target",)

    def loss(self, prediction: Tensor, values: object) -> Tensor:
        return prediction.sum()

    def measure(self, prediction: Tensor, values: object) -> Tensor:
        return prediction

    def score(self, sums: list[float]) -> float:
        return sums[0]

    def smallest_head(self, shape: tuple[int, ...]) -> nn.Module:
        return nn.Identity()


def test_a_model_for_classification_refuses_another_task() -> None:
    assert classes_of(TASK, "vit") == 3
    other: Task = Other()
    with pytest.raises(ConfigError, match=r"^model=vit: is for classification; choose a data set"):
        classes_of(other, "vit")
