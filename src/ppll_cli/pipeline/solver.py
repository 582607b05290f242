"""Cuts a list of items into contiguous groups of similar cost. No group is empty."""

from collections.abc import Callable, Sequence
from itertools import accumulate

Cost = Callable[[int, int, int], float]
"""Returns the cost of a group, given the group's number, the index of the first item, and the index
after the last item. The cost is not negative; its unit does not matter."""


def solve(cost: Cost, items: int, groups: int, slack: float = 0.0) -> list[range]:
    """Cut items into groups so that the largest cost of a group is as small as possible.

    The result is exact; the time grows with groups * items**2. Of several solutions, the one with
    the smallest sum of squared costs is returned: it also balances the cheaper groups. Of several
    such solutions, the one with the largest first group is returned, and so on.

    Args:
        cost: Returns the cost of a group (see `Cost`).
        items: Number of items.
        groups: Number of groups, from 1 to `items`.
        slack: By how much the largest cost may exceed the smallest possible value, because costs
            are rounded.
    """
    limit = _least_maximum(cost, items, groups) + slack
    infinity = float("inf")
    # least[start]: the smallest sum of squares if items from `start` on form the remaining groups.
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
    """Cut items into contiguous groups of similar cost (see `solve`).

    Args:
        costs: Cost of each item, at least 0, in any unit.
        groups: Number of groups.
        sent: `sent[i]` is added to the cost of a group that ends just before item i. `sent[0]` is
            not used. If `sent` is empty, nothing is added.
    """
    sums = list(accumulate(costs, initial=0.0))
    # Groups of equal cost must count as equal, although the sums are rounded.
    slack = 1e-9 * sums[-1]
    ends = [*(sent or [0.0] * len(costs)), 0.0]
    return solve(
        lambda _, start, stop: sums[stop] - sums[start] + ends[stop], len(costs), groups, slack
    )


def _least_maximum(cost: Cost, items: int, groups: int) -> float:
    infinity = float("inf")
    # best[stop]: the smallest maximum if items before `stop` form the groups so far.
    best = [0.0] + [infinity] * items
    for group in range(groups):
        best = [infinity] + [
            min(max(best[start], cost(group, start, stop)) for start in range(group, stop))
            if stop > group
            else infinity
            for stop in range(1, items + 1)
        ]
    return best[items]
