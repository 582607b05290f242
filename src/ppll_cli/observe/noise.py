"""Statistics of repeated measurements: mean and spread, and whether two means differ.

Two means differ beyond noise if Welch's t-test, two-sided at 5 %, says so; it allows for groups of
unequal variances and sizes.
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
"""Student's t of 97.5 %, for 1 to 30 degrees of freedom."""


@dataclass(frozen=True)
class Spread:
    """Mean and spread of some values.

    Attributes:
        mean: Their mean.
        deviation: Their standard deviation, with n - 1 in its denominator; None for one value.
        count: How many values there are.
    """

    mean: float
    deviation: float | None
    count: int

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None for one value."""
        return None if self.deviation is None else self.deviation / sqrt(self.count)

    def written(self, form: str, scale: float = 1.0, counted: bool = False) -> str:
        """Return the mean and, for several values, the standard deviation, as text.

        Args:
            form: The format of a number, as `format` takes it.
            scale: The divisor of the numbers.
            counted: Whether to append the number of values.
        """
        said = format(self.mean / scale, form)
        if self.deviation is not None:
            said += f" ± {format(self.deviation / scale, form)}"
            said += f" ({self.count})" if counted else ""
        return said


def spread(values: Iterable[float]) -> Spread | None:
    """Return mean and spread of some values; None if there are none."""
    found = list(values)
    if not found:
        return None
    return Spread(fmean(found), stdev(found) if len(found) > 1 else None, len(found))


def within_noise(one: Spread, other: Spread) -> bool | None:
    """Return whether two means differ by no more than noise explains.

    Return None if this cannot be judged, because one of them is of a single value.
    """
    errors = [each for of in (one, other) if (each := of.standard_error) is not None]
    if len(errors) < 2:
        return None
    error = hypot(*errors)
    if error == 0:  # all values of a group are equal, in both groups
        return one.mean == other.mean
    shares = [
        (each / error) ** 4 / (of.count - 1) for each, of in zip(errors, (one, other), strict=True)
    ]
    return abs(one.mean - other.mean) <= _quantile(1 / sum(shares)) * error


def _quantile(freedom: float) -> float:
    """Return Student's t of 97.5 %; a fractional number of degrees of freedom is rounded down."""
    whole = max(1, int(freedom + 1e-9))
    return QUANTILES[whole - 1] if whole <= len(QUANTILES) else 1.96 + 2.5 / whole
