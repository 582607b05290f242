"""Computes mean and spread of repeated measurements, and tests whether two means differ.

The test is Welch's t-test, two-sided at 5 %. It allows for groups of unequal variances and sizes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import hypot, sqrt
from statistics import fmean, stdev

QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""The 97.5 % quantiles of Student's t-distribution, for 1 to 30 degrees of freedom."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (with denominator n - 1; None for one value) of some values."""

    mean: float
    deviation: float | None
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return mean and spread of values; None if there are no values."""
    found = list(values)
    if not found:
        return None
    return Spread(fmean(found), stdev(found) if len(found) > 1 else None, len(found))


def within_noise(one: Spread, other: Spread) -> bool | None:
    """Return whether two means differ by no more than noise can explain.

    Return None if one of the two has only a single value, so that its noise is unknown.
    """
    if one.deviation is None or other.deviation is None:
        return None
    errors = one.deviation / sqrt(one.count), other.deviation / sqrt(other.count)
    error = hypot(*errors)
    if error == 0:  # within each group all values are equal
        return one.mean == other.mean
    shares = [
        (each / error) ** 4 / (of.count - 1) for each, of in zip(errors, (one, other), strict=True)
    ]
    return abs(one.mean - other.mean) <= _quantile(1 / sum(shares)) * error


def _quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t; fractional degrees of freedom are rounded down."""
    whole = max(1, int(freedom + 1e-9))
    return QUANTILES[whole - 1] if whole <= len(QUANTILES) else 1.96 + 2.5 / whole
