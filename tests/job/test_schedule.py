"""Checks of the attributes of a user's own schedule."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.job.schedule import schedule_of
from ppll_cli.leaves.names import class_path
from ppll_cli.pipeline.instructions import Compute
from ppll_cli.pipeline.schedule import Place, Schedule

VALUE: dict[str, Any] = {"microbatches": 1}
"""The number of micro-batches that `Own` sets."""


class Own(Schedule):
    def __init__(self) -> None:
        self.microbatches = VALUE["microbatches"]

    def batch(self, place: Place) -> Iterator[Compute]:
        return iter(())


class Forgetful(Own):
    """Does not call the constructor of the base class."""

    def __init__(self) -> None:
        pass


class Worded(Own):
    splits = "no"  # type: ignore[assignment]


class Text:
    pass


def refusal(kind: type) -> str:
    with pytest.raises(ConfigError) as refused:
        schedule_of({"_target_": class_path(kind)})
    assert refused.value.key == "schedule._target_"
    return refused.value.problem


@pytest.mark.parametrize("count", ["4", 0, -3, 2.0, True, None])
def test_microbatches_is_a_whole_number(monkeypatch: pytest.MonkeyPatch, count: object) -> None:
    monkeypatch.setitem(VALUE, "microbatches", count)
    said = f"its attribute 'microbatches' must be a whole number of at least 1, not {count!r}"
    assert re.match(re.escape(said), refusal(Own))


def test_a_constructor_has_to_set_microbatches() -> None:
    assert "whole number of at least 1, not None" in refusal(Forgetful)


def test_the_properties_of_a_schedule_are_true_or_false() -> None:
    assert refusal(Worded) == "its attribute 'splits' must be True or False, not 'no'"


def test_another_class_is_refused() -> None:
    assert refusal(Text) == "is not a Schedule"


def test_a_right_schedule_is_made() -> None:
    assert isinstance(schedule_of({"_target_": class_path(Own)}), Own)
