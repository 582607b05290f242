"""Computes mean and spread of measurements, and tests whether two means differ.

The test is Welch's t-test, two-sided at 5 %, which allows unequal variances and sample sizes.
"""

from collections.abc import Iterable
from math import hypot, sqrt
from statistics import fmean, stdev
from typing import NamedTuple


class Spread(NamedTuple):
    """Mean and sample standard deviation of `size` values. With one value, `deviation` is None."""

    mean: float
    deviation: float | None
    size: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return mean and spread of values; None if there are no values."""
    found = list(values)
    if not found:
        return None
    return Spread(fmean(found), stdev(found) if len(found) > 1 else None, len(found))


def within_noise(one: Spread, other: Spread) -> bool | None:
    """Return whether two means may differ only by noise; None if a mean is of a single value."""
    if one.deviation is None or other.deviation is None:
        return None
    errors = one.deviation / sqrt(one.size), other.deviation / sqrt(other.size)
    error = hypot(*errors)
    if error == 0:  # within each group all values are equal
        return one.mean == other.mean
    from scipy.special import stdtrit  # slow to import, and often not needed

    shares = [
        (each / error) ** 4 / (of.size - 1) for each, of in zip(errors, (one, other), strict=True)
    ]
    quantile = stdtrit(1 / sum(shares), 0.975)  # of Student's t-distribution
    return bool(abs(one.mean - other.mean) <= quantile * error)
