"""What a user's task returns is checked, so that messages name the method at fault."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ppll_cli.tasks.task import measured, scored
from tests.other_task import OtherTask

ROWS = torch.ones(3, 1, dtype=torch.float64)


class Returning(OtherTask):
    """A task whose measurements or scores are a given value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Any:
        return self.value

    def score(self, rows: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "found"), [(None, "NoneType"), (torch.ones(3), r"\[3\]"), (torch.ones(()), r"\[\]")]
)
def test_measurements_are_a_table(value: Any, found: str) -> None:
    with pytest.raises(TypeError, match=rf"Returning\.measure\(\) returned {found} instead of"):
        measured(Returning(value), ROWS, {}, training=True)


def test_measurements_are_float64() -> None:
    assert measured(Returning(ROWS.float()), ROWS, {}, training=True).dtype == torch.float64


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (0.5, "returned float instead of a mapping of names to numbers"),
        (
            {"distance": torch.ones(())},
            "returned Tensor for 'distance' instead of an int or a float",
        ),
        ({"distance": True}, "returned bool for 'distance' instead of an int or a float"),
        ({"distance": 1.0, 3: 1.0}, "returned int as the name of a score instead of a text"),
        ({"half": 1.0}, "returned half, but the metric is 'distance'"),
        ({"distance": 1.0, "step": 4}, "returned 'step', a name with another meaning in metrics"),
        ({}, "returned nothing, but the metric is 'distance'"),
    ],
)
def test_scores_are_numbers_by_name_with_the_metric(value: Any, problem: str) -> None:
    """Without the metric, a run trained to its end and failed as it looked for its objective."""
    with pytest.raises(TypeError, match=rf"Returning\.score\(\) {problem}"):
        scored(Returning(value), ROWS, metric_required=True)


def test_the_metric_may_be_missing_in_training() -> None:
    assert scored(Returning({"half": 1.0}), ROWS, metric_required=False) == {"half": 1.0}
