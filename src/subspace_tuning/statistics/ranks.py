"""Ranks of rows over tasks, and the Bayesian signed-rank test.

Sources:
    Friedman 1937; Nemenyi 1963 and the critical difference: Demsar, JMLR 7 (2006). The signed-rank test with a region
    of practical equivalence: Benavoli, Corani, Demsar and Zaffalon, JMLR 18 (2017).

Examples:
    >>> round(critical_difference(5, 10), 3)
    1.929
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..errors import SubspaceError
from .paired import LEVEL
from .results import TOLERANCE, Place, Results, mismatches

_PERMUTATIONS = 9999
FEWEST_BLOCKS = 3


@dataclass(frozen=True, eq=False)
class Ranks:
    """The mean ranks of rows over blocks, which are tasks with their models and budgets.

    Attributes:
        mean: the mean rank of each row, ascending; rank 1 is the best.
        blocks: the number of blocks.
        p: of the Friedman test that all rows rank alike, by permutations within the blocks.
        critical_difference: two rows whose mean ranks differ by more are told apart at 0.05 (Nemenyi).
        pairs: the columns row, other, difference (of mean ranks) and p (Nemenyi).
    """

    mean: pd.Series[float]
    blocks: int
    p: float
    critical_difference: float
    pairs: pd.DataFrame


def ranks(results: Results, rows: Sequence[str] | None = None, tolerance: float = TOLERANCE) -> Ranks:
    """Rank rows in every block where all of them meet, by their mean scores over seeds.

    Args:
        results: the runs.
        rows: the rows to rank, at least three; all by default.
        tolerance: how far numbers of trained parameters may differ, relative to the largest.

    Raises:
        SubspaceError: the rows are not matched in seeds, tuning or budget, or fewer than three rows or blocks are left.
    """
    names = list(results.rows if rows is None else rows)
    results.check(names)
    if len(set(names)) < 3:
        raise SubspaceError(f"ranks are of at least three rows, not {len(set(names))}: use differences for two")
    blocks = _blocks(results, names)
    for block in blocks:
        unmatched = mismatches(results, block, tolerance=tolerance)
        if unmatched:
            raise SubspaceError(f"not ranked: {'; '.join(unmatched)}")
    scores = np.array([[results.scores(place).mean() for place in block] for block in blocks])
    found = np.apply_along_axis(stats.rankdata, 1, -scores)
    mean = pd.Series(found.mean(axis=0), index=names).sort_values()
    pairs = [(row, other, mean[other] - mean[row]) for row, other in itertools.combinations(mean.index, 2)]
    frame = pd.DataFrame(pairs, columns=["row", "other", "difference"])
    error = np.sqrt(len(names) * (len(names) + 1) / (6 * len(blocks)))
    p = stats.studentized_range.sf(np.sqrt(2) * frame["difference"] / error, len(names), np.inf)
    difference = critical_difference(len(names), len(blocks))
    return Ranks(mean, len(blocks), friedman(found), difference, frame.assign(p=p))


def _blocks(results: Results, names: Sequence[str]) -> list[list[Place]]:
    blocks = [[(row, cell) for row in names] for cell in results.cells]
    blocks = [block for block in blocks if all(place in results.lines for place in block)]
    if len(blocks) < FEWEST_BLOCKS:
        raise SubspaceError(
            f"not ranked: all of {', '.join(names)} meet in {len(blocks)} of the tasks, models and budgets, and "
            f"at least {FEWEST_BLOCKS} are needed"
        )
    return blocks


def friedman(found: NDArray[np.float64]) -> float:
    """Return the p-value of the Friedman test by permutations within blocks, exact where there are few.

    Args:
        found: ranks, blocks x rows.
    """

    def concordance(*columns: NDArray[np.float64], axis: int) -> Any:
        """Return the sum of squared rank sums, which orders permutations as Friedman's statistic does."""
        return sum(np.sum(column, axis=axis) ** 2 for column in columns)

    tested = stats.permutation_test(
        tuple(found.T),
        concordance,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return float(tested.pvalue)


def critical_difference(rows: int, blocks: int, level: float = LEVEL) -> float:
    """Return by how much mean ranks must differ for the Nemenyi test to tell two rows apart."""
    quantile = stats.studentized_range.isf(level, rows, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(rows * (rows + 1) / (6 * blocks)))


class Posterior(NamedTuple):
    """The probabilities that a median difference is below, within and above a region of practical equivalence."""

    below: float
    within: float
    above: float


def bayesian_signed_rank(
    differences: ArrayLike, margin: float, *, prior: float = 0.5, samples: int = 20_000
) -> Posterior:
    """Return the posterior probabilities of the signed-rank test over tasks, with a Dirichlet process prior.

    Args:
        differences: one per task.
        margin: half the width of the region around 0 in which a difference is of no practical meaning.
        prior: the weight of the prior, a pseudo-difference of 0.
        samples: draws from the posterior.
    """
    found = np.concatenate([[0.0], np.asarray(differences, dtype=np.float64)])
    weights = np.random.default_rng(0).dirichlet([prior, *np.ones(len(found) - 1)], size=samples)
    means = (found[:, None] + found) / 2
    shares = [
        np.einsum("si,ij,sj->s", weights, region.astype(np.float64), weights, optimize=True)
        for region in (means < -margin, np.abs(means) <= margin, means > margin)
    ]
    winners = np.bincount(np.argmax(shares, axis=0), minlength=3) / samples
    return Posterior(*map(float, winners))
