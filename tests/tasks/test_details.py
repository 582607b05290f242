"""What a user's task returns as details is checked, so that messages name the method at fault."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ppll_cli.tasks.details import Details, detailed
from tests.other_task import OtherTask

ENTRY = {"picture": "cat.jpg", "samples": 1, "distance": 0.5}


class Detailing(OtherTask):
    """A task whose details are a given value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def details(self, rows: Tensor, names: Sequence[str]) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([ENTRY], "returned list instead of ppll_cli.tasks.details.Details"),
        (Details("sample", [ENTRY]), "returned the kind 'sample' instead of 'class' or 'picture'"),
        (
            Details("picture", [ENTRY | {"distance": torch.ones(())}]),
            "returned values that are not plain data: Object of type Tensor is not JSON",
        ),
    ],
)
def test_details_are_plain_data(value: Any, problem: str) -> None:
    """ppll-eval ended with a traceback of the module json, after the whole evaluation."""
    with pytest.raises(TypeError, match=rf"Detailing\.details\(\) {problem}"):
        detailed(Detailing(value), torch.ones(1, 1), ())


def test_right_details_are_returned() -> None:
    value = Details("picture", [ENTRY])
    assert detailed(Detailing(value), torch.ones(1, 1), ()) is value
