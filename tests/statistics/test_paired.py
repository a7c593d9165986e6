"""Paired tests over seeds: they agree with scipy and statsmodels, and err as often as they say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.power import ttest_power
from statsmodels.stats.weightstats import DescrStatsW

from subspace_tuning.statistics import detectable, differences, equivalence, paired
from subspace_tuning.statistics.paired import one_sided, signs

from .simulated import at_most, quick, results, within

# Multiples of a tenth, so that rounding decides nothing.
SAMPLES = arrays(np.float64, st.integers(2, 8), elements=st.integers(-50, 50).map(lambda number: number / 10))
SPREAD = SAMPLES.filter(lambda found: np.ptp(found) > 0)
FEW_AND_MANY = [300, pytest.param(10_000, marks=pytest.mark.slow)]


@quick
@given(SPREAD)
def test_the_t_test_and_its_interval_are_scipys(found: NDArray[np.float64]) -> None:
    test, known = paired(found), stats.ttest_1samp(found, 0)
    interval = known.confidence_interval(0.95)
    assert np.isclose(test.p, known.pvalue)
    assert np.allclose((test.low, test.high), (interval.low, interval.high))


@quick
@given(SAMPLES)
def test_the_permutation_test_counts_all_signs(found: NDArray[np.float64]) -> None:
    means = np.abs([np.dot(found, one) for one in itertools.product((-1, 1), repeat=len(found))])
    assert np.isclose(paired(found).p_permutation, np.mean(means >= abs(found.sum()) - 1e-9))


@quick
@given(SPREAD, st.floats(0.01, 5))
def test_equivalence_is_statsmodels(found: NDArray[np.float64], margin: float) -> None:
    assert np.isclose(equivalence(found, margin), DescrStatsW(found).ttost_mean(-margin, margin)[0])


@quick
@given(SAMPLES, st.floats(-5, 5))
def test_both_sides_exclude_each_other(found: NDArray[np.float64], at: float) -> None:
    for test in (one_sided, signs):
        above, below = test(found, at)
        mirrored = test(-found, -at)
        assert np.allclose((below, above), mirrored, atol=1e-12)
        assert above + below >= 1 - 1e-9


@quick
@given(st.integers(3, 40), st.floats(0.01, 10), st.sampled_from([0.5, 0.8, 0.95]))
def test_what_is_detectable_is_statsmodels_power(pairs: int, spread: float, power: float) -> None:
    effect = detectable(pairs, spread, power=power) / spread
    assert np.isclose(ttest_power(effect, pairs, 0.05), power, atol=1e-4)


@pytest.mark.parametrize("trials", FEW_AND_MANY)
@pytest.mark.parametrize("pairs", [3, 5])
def test_a_true_difference_is_found_at_the_stated_power(pairs: int, trials: int) -> None:
    shift = detectable(pairs, 0.02)
    drawn = np.random.default_rng(0).normal(shift, 0.02, size=(trials, pairs))
    assert within(sum(paired(one).p <= 0.05 for one in drawn), trials, 0.8)


@pytest.mark.parametrize("trials", FEW_AND_MANY)
@pytest.mark.parametrize("pairs", [3, 5])
def test_equal_rows_differ_as_often_as_stated(pairs: int, trials: int) -> None:
    """And the interval holds the true difference in 95 %."""
    drawn = [paired(one) for one in np.random.default_rng(0).normal(0, 0.02, size=(trials, pairs))]
    assert within(sum(one.p <= 0.05 for one in drawn), trials, 0.05)
    assert all((one.p <= 0.05) == (not one.low < 0 < one.high) for one in drawn)
    assert at_most(sum(one.p_permutation <= 0.05 for one in drawn), trials, 0.05)


@pytest.mark.parametrize("trials", FEW_AND_MANY)
def test_a_difference_of_the_margin_is_equivalent_as_often_as_stated(trials: int) -> None:
    drawn = np.random.default_rng(0).normal(0.05, 0.02, size=(trials, 5))
    assert within(sum(equivalence(one, 0.05) <= 0.05 for one in drawn), trials, 0.05)


@pytest.mark.parametrize("trials", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_table_of_equal_rows_has_a_difference_as_often_as_stated(trials: int) -> None:
    """The family of Holm's correction is the table."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(trials):
        frame = differences(results({row: rng.normal(0.8, 0.02, (2, 5)) for row in "abcd"}), "a")
        assert len(frame) == 6
        wrong += bool((frame["p_holm"] <= 0.05).any())
    assert at_most(wrong, trials, 0.05)
    assert wrong  # a correction that finds nothing is not one


def test_equal_differences_are_tested_by_their_signs() -> None:
    assert paired([0.0, 0.0, 0.0]).p == 1
    assert paired([0.1, 0.1, 0.1]).p == pytest.approx(0.25)
    assert one_sided(np.full(3, 0.1)) == (0.125, 1.0)
