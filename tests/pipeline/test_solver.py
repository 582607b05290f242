"""The partition solver, compared with every possible partition."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppll_cli.pipeline.solver import balance


def every_partition(items: int, groups: int) -> Iterator[list[range]]:
    for cuts in combinations(range(1, items), groups - 1):
        yield [range(a, b) for a, b in pairwise([0, *cuts, items])]


def sums(costs: Sequence[float], partition: list[range]) -> list[float]:
    return [sum(costs[item] for item in group) for group in partition]


def squares(costs: Sequence[float], partition: list[range]) -> float:
    return sum(cost**2 for cost in sums(costs, partition))


@st.composite
def problems(draw: st.DrawFn, cost: st.SearchStrategy[float]) -> tuple[list[float], int]:
    costs = draw(st.lists(cost, min_size=1, max_size=9))
    return costs, draw(st.integers(1, len(costs)))


@given(problems(st.integers(0, 20)))
def test_integer_costs_get_the_best_partition(problem: tuple[list[float], int]) -> None:
    """The result is exact, even in the choice among equal partitions.

    Whole numbers below 2**53 are not rounded.
    """
    costs, groups = problem
    best = min(
        every_partition(len(costs), groups),
        key=lambda p: (max(sums(costs, p)), squares(costs, p), [-len(group) for group in p]),
    )
    assert balance(costs, groups) == best


@given(problems(st.floats(0, 1e6)))
def test_no_partition_is_better(problem: tuple[list[float], int]) -> None:
    costs, groups = problem
    found = balance(costs, groups)
    assert [item for group in found for item in group] == list(range(len(costs)))
    assert len(found) == groups
    assert all(found)
    least = min(max(sums(costs, p)) for p in every_partition(len(costs), groups))
    assert max(sums(costs, found)) == pytest.approx(least, rel=1e-8, abs=1e-8 * sum(costs))
    as_good = [p for p in every_partition(len(costs), groups) if max(sums(costs, p)) <= least]
    evenest = min(squares(costs, p) for p in as_good)
    assert squares(costs, found) <= evenest * (1 + 1e-9)


@given(st.integers(1, 40), st.data(), st.floats(1e-3, 1e12))
def test_equal_costs_are_divided_evenly(items: int, data: st.DataObject, cost: float) -> None:
    groups = data.draw(st.integers(1, items))
    size, longer = divmod(items, groups)
    expected = [size + 1] * longer + [size] * (groups - longer)
    assert [len(group) for group in balance([cost] * items, groups)] == expected


@pytest.mark.parametrize(
    ("costs", "groups", "expected"),
    [
        ([5], 1, [range(1)]),
        ([1, 1, 1, 9], 2, [range(3), range(3, 4)]),
        ([9, 1, 1, 1], 3, [range(1), range(1, 3), range(3, 4)]),
        ([0, 0, 0], 2, [range(2), range(2, 3)]),
        ([0.1] * 7, 3, [range(3), range(3, 5), range(5, 7)]),  # 0.1 * 3 is rounded differently
    ],
)
def test_small_cases_get_the_partition_found_by_hand(
    costs: list[float], groups: int, expected: list[range]
) -> None:
    assert balance(costs, groups) == expected
