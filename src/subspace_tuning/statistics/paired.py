"""Tests of paired differences: is their mean above a value, below it, or within a margin of it?

Sources:
    The paired t-test and its interval: Student 1908. Permutation: Fisher 1935. Two one-sided tests of equivalence:
    Schuirmann 1987. Power: the noncentral t distribution, Cohen 1988.

Examples:
    >>> found = paired([0.02, 0.01, 0.03, 0.02, 0.02])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.02, 0.011, 0.029)
    >>> found.p_permutation  # the least that five pairs can give: 2 of 2^5 signs
    0.0625
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.power import TTestPower

LEVEL = 0.05
POWER = 0.8
_PERMUTATIONS = 9999  # drawn where there are more, from 14 pairs on


@dataclass(frozen=True)
class Paired:
    """The mean of n differences with its 95 % interval, and the two-sided tests that it is 0.

    Attributes:
        n: the number of pairs.
        mean: the mean difference.
        low: the lower end of the interval.
        high: the upper end of the interval.
        p: of the t-test.
        p_permutation: of all changes of the differences' signs.
        detectable: the smallest true difference that this design finds with power 0.8.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    p_permutation: float
    detectable: float


def mean_interval(values: ArrayLike, level: float = LEVEL) -> tuple[float, float, float]:
    """Return the mean of independent values and its two-sided t interval; without ends (NaN) for a single value."""
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.isf(level / 2, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5)
    return mean, mean - half, mean + half


def paired(differences: ArrayLike) -> Paired:
    """Test whether the mean of at least two paired differences is 0.

    If all differences are equal there is no t statistic, and ``p`` is that of the permutations.
    """
    found = np.asarray(differences, dtype=np.float64)
    mean, low, high = mean_interval(found)
    exact = stats.permutation_test(
        (found,),
        lambda drawn, axis: np.mean(drawn, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    above, below = one_sided(found)
    spread = float(found.std(ddof=1))
    permuted = float(exact.pvalue)
    p = min(1.0, 2 * min(above, below)) if _varies(found) else permuted
    return Paired(len(found), mean, low, high, p, permuted, detectable(len(found), spread))


def one_sided(differences: NDArray[np.float64], at: float = 0.0) -> tuple[float, float]:
    """Return the p-values of the t-tests that the mean is above a value, and that it is below it.

    Where all differences are equal, they are those of the sign test.
    """
    if not _varies(differences - at):
        return signs(differences, at)
    above = float(stats.ttest_1samp(differences, at, alternative="greater").pvalue)
    return above, 1 - above


def signs(differences: NDArray[np.float64], at: float = 0.0) -> tuple[float, float]:
    """Return the p-values of the sign tests that the median is above a value, and that it is below it.

    Differences equal to the value do not count.
    """
    above, below = int((differences > at).sum()), int((differences < at).sum())
    if not above + below:
        return 1.0, 1.0
    p = [float(stats.binomtest(count, above + below, alternative="greater").pvalue) for count in (above, below)]
    return p[0], p[1]


def _varies(differences: NDArray[np.float64]) -> bool:
    """Whether the differences differ by more than rounding."""
    return bool(np.ptp(differences) > 1e-12 * np.abs(differences).max(initial=0.0))


def equivalence(differences: ArrayLike, margin: float) -> float:
    """Return the p-value of the two one-sided t-tests that the mean difference is within a margin of 0."""
    found = np.asarray(differences, dtype=np.float64)
    return max(one_sided(found, -margin)[0], one_sided(found, margin)[1])


def detectable(pairs: int, spread: float, level: float = LEVEL, power: float = POWER) -> float:
    """Return the smallest true mean difference that a two-sided paired t-test finds with a given power.

    Args:
        pairs: the number of pairs, at least 3.
        spread: the standard deviation of the differences.
        level: the level of the test.
        power: the probability of a significant result.
    """
    return _effect(pairs, level, power) * spread


@lru_cache
def _effect(pairs: int, level: float, power: float) -> float:
    """Return the detectable difference in standard deviations."""
    return float(TTestPower().solve_power(nobs=pairs, alpha=level, power=power, alternative="two-sided"))
