"""Cutting a row of items into contiguous groups, none empty. Knows no torch."""

from collections.abc import Callable, Sequence
from itertools import accumulate

Cost = Callable[[int, int, int], float]
"""What a group costs, given its number, its first item and the one behind its last; not negative,
in any unit."""


def solve(cost: Cost, items: int, groups: int, slack: float = 0.0) -> list[range]:
    """Cut so that the dearest group is cheapest.

    Among the cuts that reach the least maximum, the one with the least sum of squares, so that the
    other groups are even as well; of several such cuts the one whose early groups are longest.

    Args:
        cost: Of a group.
        items: How many there are.
        groups: How many groups, from 1 to the number of items.
        slack: By how much the maximum may be above the least one, which rounding may have missed.

    Returns:
        The items of each group. Exact, by dynamic programming: O(groups * items**2).
    """
    limit = _least_maximum(cost, items, groups) + slack
    infinity = float("inf")
    # least[start]: the least sum of squares of the items from `start` on, in the groups left.
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
    """Cut so that the dearest group is cheapest (`solve`), a group costing what its items do.

    Args:
        costs: Cost of each item, not negative, in any unit.
        groups: How many groups, from 1 to the number of items.
        sent: What a cut before each item costs the group in front of it; empty where it is free.
    """
    sums = list(accumulate(costs, initial=0.0))
    # Rounding in the sums must not tell two equal groups apart.
    slack = 1e-9 * sums[-1]
    ends = [*(sent or [0.0] * len(costs)), 0.0]
    return solve(
        lambda _, start, stop: sums[stop] - sums[start] + ends[stop], len(costs), groups, slack
    )


def _least_maximum(cost: Cost, items: int, groups: int) -> float:
    infinity = float("inf")
    # best[stop]: the least maximum of the items before `stop`, in the groups so far.
    best = [0.0] + [infinity] * items
    for group in range(groups):
        best = [infinity] + [
            min(max(best[start], cost(group, start, stop)) for start in range(group, stop))
            if stop > group
            else infinity
            for stop in range(1, items + 1)
        ]
    return best[items]
