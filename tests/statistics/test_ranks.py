"""Ranks over tasks, and the Bayesian signed-rank test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import stats

from subspace_tuning.statistics import bayesian_signed_rank, ranks
from subspace_tuning.statistics.ranks import critical_difference, friedman

from .simulated import at_most, quick, results, within

DIFFERENCES = arrays(np.float64, st.integers(2, 12), elements=st.integers(-20, 20).map(lambda one: one / 100))


@pytest.mark.parametrize(
    ("rows", "quantile"),  # Demsar 2006, table 5a
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_critical_differences_are_those_of_demsar(rows: int, quantile: float) -> None:
    for blocks in (4, 30):
        wanted = quantile * np.sqrt(rows * (rows + 1) / (6 * blocks))
        assert critical_difference(rows, blocks) == pytest.approx(wanted, rel=1e-3)


@quick
@given(arrays(np.float64, (3, 3), elements=st.integers(0, 9)))
def test_friedman_counts_all_permutations_within_blocks(scores: NDArray[np.float64]) -> None:
    found = np.apply_along_axis(stats.rankdata, 1, scores)
    orders = [[np.array(one) for one in itertools.permutations(block)] for block in found]
    sums = [np.sum(np.sum(one, axis=0) ** 2) for one in itertools.product(*orders)]
    assert friedman(found) == pytest.approx(np.mean(np.array(sums) >= np.sum(found.sum(axis=0) ** 2) - 1e-9))


def test_friedman_approaches_scipys_with_many_blocks() -> None:
    for seed in range(5):
        scores = np.random.default_rng(seed).normal(np.linspace(0, 0.3, 4), size=(40, 4))
        found = np.apply_along_axis(stats.rankdata, 1, scores)
        assert friedman(found) == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue, abs=0.02)


@pytest.mark.parametrize("trials", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_equal_rows_are_told_apart_as_often_as_stated(trials: int) -> None:
    """By either test; rows two spreads apart are."""
    rng, wrong, apart, right = np.random.default_rng(0), 0, 0, 0
    for _ in range(trials):
        scores = rng.normal(0.8, 0.02, (4, 8, 3))
        found = ranks(results(dict(zip("abcd", scores, strict=True))))
        wrong += found.p <= 0.05
        apart += bool((found.pairs["difference"] > found.critical_difference).any())
        assert ((found.pairs["difference"] > found.critical_difference) == (found.pairs["p"] < 0.05)).all()
        right += ranks(results(dict(zip("abcd", scores + np.arange(4)[:, None, None] * 0.04, strict=True)))).p <= 0.05
    assert at_most(wrong, trials, 0.05)
    assert at_most(apart, trials, 0.05)
    assert right == trials


@quick
@given(DIFFERENCES, st.floats(0.001, 0.1))
def test_the_posterior_mirrors_its_differences(found: NDArray[np.float64], margin: float) -> None:
    ahead, behind = (bayesian_signed_rank(sign * found, margin, samples=2000) for sign in (1, -1))
    assert sum(ahead) == pytest.approx(1)
    assert (ahead.below, ahead.within) == (behind.above, behind.within)


def test_the_posterior_is_certain_where_the_tasks_agree() -> None:
    tasks = np.random.default_rng(0).normal(0.05, 0.01, 20)
    assert bayesian_signed_rank(tasks, 0.01).above > 0.999
    assert bayesian_signed_rank(tasks - 0.05, 0.04).within > 0.999
    assert bayesian_signed_rank([0.05], 0.01).above < 0.95  # one task is little evidence


def test_a_posterior_of_one_task_is_the_beta_distribution() -> None:
    """With the weight w of the prior at 0, only the pair (d, d) is beyond d / 2: it wins if (1 - w)^2 > 1/2."""
    wanted = stats.beta.cdf(1 - np.sqrt(0.5), 0.5, 1)
    found = bayesian_signed_rank([0.02], 0.01, samples=20_000).above
    assert within(round(20_000 * found), 20_000, wanted)
