"""Cuts a row of items into contiguous groups, none of them empty."""

from collections.abc import Callable, Sequence
from itertools import accumulate

Cost = Callable[[int, int, int], float]
"""Returns the cost of a group, not negative and in any unit, given the group's number, its first
item and the item behind its last."""


def solve(cost: Cost, items: int, groups: int, slack: float = 0.0) -> list[range]:
    """Cut items into groups so that the largest cost of a group is as small as possible.

    Among the cuts that reach this least maximum, choose the one with the least sum of squared
    costs, so that the other groups are even as well. Among several of these, choose the one whose
    early groups are longest. Exact, by dynamic programming in O(groups * items**2).

    Args:
        cost: Cost of a group.
        items: Number of items.
        groups: Number of groups, from 1 to the number of items.
        slack: How far a group's cost may exceed the least maximum, to allow for rounding.

    Returns:
        The items of each group.
    """
    limit = _least_maximum(cost, items, groups) + slack
    infinity = float("inf")
    # least[start]: the least sum of squares if the items from `start` on make the groups left.
    least = [infinity] * items + [0.0]
    choices: list[list[int]] = []
    for group in range(groups - 1, -1, -1):
        previous, least = least, [infinity] * (items + 1)
        choice = [items] * (items + 1)
        for start in range(items - 1, group - 1, -1):
            for stop in range(items, start, -1):
                if previous[stop] == infinity:
                    continue
                here = cost(group, start, stop)
                if here <= limit and here * here + previous[stop] < least[start] * (1 - 1e-12):
                    least[start] = here * here + previous[stop]
                    choice[start] = stop
        choices.append(choice)
    result, start = [], 0
    for choice in reversed(choices):
        result.append(range(start, choice[start]))
        start = choice[start]
    return result


def balance(costs: Sequence[float], groups: int, sent: Sequence[float] = ()) -> list[range]:
    """Cut items into groups by `solve`, where a group costs the sum of its items' costs.

    Args:
        costs: Cost of each item, not negative, in any unit.
        groups: Number of groups, from 1 to the number of items.
        sent: For each item, what a cut before it adds to the cost of the group in front of the
            cut. If empty, cuts cost nothing.

    Returns:
        The items of each group.
    """
    sums = list(accumulate(costs, initial=0.0))
    # Rounding in the sums must not make two equal groups differ.
    slack = 1e-9 * sums[-1]
    ends = [*(sent or [0.0] * len(costs)), 0.0]
    return solve(
        lambda _, start, stop: sums[stop] - sums[start] + ends[stop], len(costs), groups, slack
    )


def _least_maximum(cost: Cost, items: int, groups: int) -> float:
    infinity = float("inf")
    # best[stop]: the least maximum if the items before `stop` make the groups so far.
    best = [0.0] + [infinity] * items
    for group in range(groups):
        best = [infinity] + [
            min(max(best[start], cost(group, start, stop)) for start in range(group, stop))
            if stop > group
            else infinity
            for stop in range(1, items + 1)
        ]
    return best[items]
