"""Means, deviations, and the test whether two groups of values differ."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from ppll_cli.observe.groups import Spread, spread, within_noise


def test_the_deviation_is_a_sample_deviation() -> None:
    found = spread([1.0, 2.0, 4.0])
    assert found is not None
    assert (found.mean, found.size) == (7 / 3, 3)
    assert found.deviation == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert spread([3.0]) == Spread(3.0, None, 1)
    assert spread([]) is None


values = st.lists(st.integers(0, 40).map(float), min_size=2, max_size=40)


# scipy warns about groups of equal values. Whole numbers have an exact mean.
@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")
@given(values, values)
@example([0.0, 2.0], [4.0, 6.0])  # 2 degrees of freedom; with 4, noise would not explain it
def test_the_test_is_welchs_test(one: list[float], other: list[float]) -> None:
    """The result equals that of scipy's own test, which computes a p-value."""
    mine, theirs = spread(one), spread(other)
    assert mine is not None
    assert theirs is not None
    if not mine.deviation and not theirs.deviation:
        assert within_noise(mine, theirs) is (one[0] == other[0])
        return
    p = stats.ttest_ind(one, other, equal_var=False).pvalue
    if abs(p - 0.05) > 1e-6:  # nearer to 5 %, rounding decides
        assert within_noise(mine, theirs) is bool(p > 0.05)


def test_with_more_seeds_the_same_difference_is_not_noise() -> None:
    few, many = ([0.90, 0.92], [0.90, 0.92] * 5)
    higher = [[value + 0.02 for value in each] for each in (few, many)]
    pairs = [(spread(one), spread(other)) for one, other in zip((few, many), higher, strict=True)]
    assert [within_noise(a, b) for a, b in pairs if a and b] == [True, False]


def test_one_value_is_not_enough_for_the_test() -> None:
    one, several = Spread(1.0, None, 1), Spread(9.0, 0.1, 3)
    assert within_noise(one, several) is None
    assert within_noise(several, one) is None
