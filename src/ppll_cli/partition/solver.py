"""Cutting a row of costs into contiguous groups. Knows no torch."""

from collections.abc import Sequence
from itertools import accumulate


def balance(costs: Sequence[float], groups: int) -> list[range]:
    """Cut the items into contiguous groups, none empty, so that the dearest group is cheapest.

    Among the cuts that reach the least maximum, the one with the least sum of squares, so that the
    other groups are even as well; of several such cuts the one whose early groups are longest.

    Args:
        costs: Cost of each item, not negative, in any unit.
        groups: How many groups, from 1 to the number of items.

    Returns:
        The items of each group. Exact, by dynamic programming: O(groups * items**2).
    """
    sums = list(accumulate(costs, initial=0.0))
    # Rounding in the sums must not tell two equal groups apart.
    limit = _least_maximum(sums, groups) + 1e-9 * sums[-1]
    count = len(costs)
    infinity = float("inf")
    # least[stop]: the least sum of squares of the items from `stop` on, in the groups left.
    least = [infinity] * count + [0.0]
    choices: list[list[int]] = []
    for _ in range(groups):
        previous, least = least, [infinity] * (count + 1)
        choice = [count] * (count + 1)
        for start in range(count - 1, -1, -1):
            for stop in range(count, start, -1):
                cost = sums[stop] - sums[start]
                if cost <= limit and cost * cost + previous[stop] < least[start] * (1 - 1e-12):
                    least[start] = cost * cost + previous[stop]
                    choice[start] = stop
        choices.append(choice)
    result, start = [], 0
    for choice in reversed(choices):
        result.append(range(start, choice[start]))
        start = choice[start]
    return result


def _least_maximum(sums: Sequence[float], groups: int) -> float:
    count = len(sums) - 1
    best = [sums[stop] for stop in range(count + 1)]
    for group in range(2, groups + 1):
        best = [
            min(
                (max(best[start], sums[stop] - sums[start]) for start in range(group - 1, stop)),
                default=float("inf"),
            )
            for stop in range(count + 1)
        ]
    return best[count]
