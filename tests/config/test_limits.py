"""Limits in the annotations of options, checked by `make` and by `check_options`."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator

from ppll_cli.config.targets import check_options
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Count, Share
from tests.config.test_targets import refusal


@dataclass(frozen=True, kw_only=True)
class Limited:
    """Has limits in the annotations, and a field that is no option."""

    width: Count
    share: Share | None = None
    both: tuple[int, int] = (1, 2)
    found: list[int] = field(init=False)

    def __post_init__(self) -> None:
        check_options("group", self)


@dataclass(frozen=True, kw_only=True)
class Redeclared(Limited):
    """Gives an option of the base class a default, without its limits."""

    width: int = 4
    other: "Unknown | None" = None  # type: ignore[name-defined]  # noqa: F821


class Validated:
    """Has an option whose own validator fails."""

    def __init__(self, *, ratio: Annotated[int, AfterValidator(lambda value: 1 // value)]) -> None:
        self.ratio = ratio


@dataclass(frozen=True, kw_only=True)
class Sizes:
    sizes: list[int] | None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "group.width=0: must be greater than or equal to 1"),
        ({"share": 1.5}, "group.share=1.5: must be less than or equal to 1, or null"),
        ({"share": float("nan")}, "group.share=nan: must be a finite number, or null"),
    ],
)
def test_limits_in_annotations_hold_with_and_without_make(
    options: dict[str, Any], message: str
) -> None:
    assert str(refusal(Limited, **{"width": 1, **options})) == message
    with pytest.raises(ConfigError) as caught:
        Limited(**{"width": 1, **options})
    assert str(caught.value) == message


@pytest.mark.parametrize("options", [{"width": 0}, {"share": 1.5}, {"both": [1]}])
def test_limits_of_a_base_class_hold_in_a_users_subclass(options: dict[str, Any]) -> None:
    assert refusal(Redeclared, **options).key == f"group.{next(iter(options))}"


def test_a_validator_that_fails_is_named() -> None:
    problem = str(refusal(Validated, ratio=0))
    assert problem.startswith("group.ratio=0: ")
    assert "ZeroDivisionError" in problem


def test_the_same_fault_of_several_elements_is_told_once() -> None:
    found = str(refusal(Sizes, sizes=["a", "b"]))
    assert found == "group.sizes=['a', 'b']: must be a valid integer"
    assert str(refusal(Sizes, sizes=1)).endswith("must be a valid list, or null")


def test_python_code_may_pass_lists_for_tuples() -> None:
    assert [*Limited(width=1, both=[3, 4]).both] == [3, 4]  # type: ignore[arg-type]
