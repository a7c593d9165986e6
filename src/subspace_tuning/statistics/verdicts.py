"""Verdicts on claims: supported, contradicted, or undecided at this power, with the figure that decides.

A claim about several pairs of rows is supported if it holds for each of them at the level 0.05 (an intersection-union
test, which needs no correction), and contradicted if its opposite holds for one of them after Bonferroni's correction.
So a false claim is supported, and a true one contradicted, at most as often as the level says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ..errors import SubspaceError, nearest
from .claims import Claim
from .paired import LEVEL, detectable, mean_interval, one_sided, signs
from .results import Cell, Place, Results, mismatches

Unit: TypeAlias = Literal["seeds", "cells"]
"""What differences are paired over."""
Test: TypeAlias = Callable[[NDArray[np.float64], float], tuple[float, float]]
FEWEST_CELLS = 6
"""With fewer, no sign test reaches 0.05 two-sided: 2 / 2^5 is 0.0625."""


@dataclass(frozen=True)
class Verdict:
    """A claim, ``supported``, ``contradicted`` or ``undecided``, and the figure that decides, in one line."""

    claim: Claim
    verdict: str
    figure: str


@dataclass(frozen=True)
class _Judged:
    """One pair of rows: one-sided p-values that the claim holds and that its opposite does, and their figure."""

    holds: float
    fails: float
    figure: str
    power: str = ""


def verdicts(results: Results, claims: Iterable[Claim], unit: Unit = "seeds") -> list[Verdict]:
    """Judge claims by the mean scores over all tasks, models and budgets where their rows meet.

    Args:
        results: the runs.
        claims: what is judged.
        unit: "seeds" tests the means of each seed by t-tests. "cells" is for published tables, which have one score per
            cell: sign tests over the averages of models and budgets if there are at least six, otherwise over all
            tasks, models and budgets.

    Raises:
        SubspaceError: a claim is about a row that is not there.
    """
    claims = list(claims)
    for claim in claims:
        for row in claim.names:
            if row not in results.rows:
                hint = nearest(row, results.rows)
                raise SubspaceError(f"the claim {claim.claim!r} is about row {row!r}, which has no results; {hint}")
    return [_verdict(results, claim, unit) for claim in claims]


def as_frame(found: Iterable[Verdict]) -> pd.DataFrame:
    """Return verdicts as a frame with the columns claim, verdict, figure and source."""
    lines = [(one.claim.claim, one.verdict, one.figure, one.claim.source) for one in found]
    return pd.DataFrame(lines, columns=["claim", "verdict", "figure", "source"])


def _verdict(results: Results, claim: Claim, unit: Unit) -> Verdict:
    judged = []
    for row, other in claim.pairs:
        pairs = results.pairs(row, other)
        reason = _reason(results, claim, row, other, pairs, unit)
        if reason:
            return Verdict(claim, "undecided", reason)
        judge = _spread if claim.kind == "spread_below" else _level
        judged.append(judge(results, claim, row, other, pairs, unit))
    # Equivalence has two one-sided tests at the level itself; what has a direction is tested on both sides.
    level = LEVEL if claim.kind == "equivalent" else LEVEL / 2
    weakest, opposite = max(judged, key=lambda one: one.holds), min(judged, key=lambda one: one.fails)
    if weakest.holds <= level:
        return Verdict(claim, "supported", weakest.figure)
    if opposite.fails <= LEVEL / 2 / len(judged):
        return Verdict(claim, "contradicted", opposite.figure)
    return Verdict(claim, "undecided", weakest.figure + weakest.power)


def _reason(results: Results, claim: Claim, row: str, other: str, pairs: list[tuple[Place, Place]], unit: Unit) -> str:
    """Return why a pair of rows cannot be judged, or nothing."""
    if not pairs:
        return f"{row} and {other} have no task, model and budget in common"
    if claim.matched:
        for pair in pairs:
            unmatched = [line for line in mismatches(results, pair) if unit == "seeds" or line.startswith("budgets")]
            if unmatched:
                return "; ".join(unmatched)
    if unit == "cells":
        return "one score per cell has no spread over seeds" if claim.kind == "spread_below" else ""
    unmatched = mismatches(results, [place for pair in pairs for place in pair], budgets=False)
    if unmatched:
        return "; ".join(unmatched)
    if not results.comparable and claim.kind != "spread_below" and len({here[1].task for here, _ in pairs}) > 1:
        return "the tasks' scores are not on one scale: judge one task at a time"
    return ""


def _level(
    results: Results, claim: Claim, row: str, other: str, pairs: list[tuple[Place, Place]], unit: Unit
) -> _Judged:
    """Judge the mean scores of two rows by their paired differences."""
    share = claim.share if claim.kind == "share_of" else 1.0
    cells = [(here[1], results.scores(here) - share * results.scores(there)) for here, there in pairs]
    found, what = _units(cells, unit)
    test: Test = one_sided if unit == "seeds" else signs
    if claim.kind == "equivalent":
        beneath, beyond = test(found, -claim.margin), test(found, claim.margin)
        holds, fails = max(beneath[0], beyond[1]), min(beneath[1], beyond[0])
        p = min(1.0, 2 * fails) if fails < holds else holds
    else:
        holds, fails = test(found, claim.margin)
        p = min(1.0, 2 * min(holds, fails))
    difference = f"{row} - {other}" if share == 1 else f"{row} - {share:g} {other}"
    against = f" against a margin of {claim.margin:g}" if claim.margin else ""
    mean, low, high = mean_interval(found)
    if unit == "cells":
        least = -claim.margin if claim.kind == "equivalent" else claim.margin
        above, below = int((found > claim.margin).sum()), int((found < least).sum())
        figure = f"{difference}: {mean:+.4f}, above {claim.margin:g} in {above} and below {least:g} in {below} of "
        return _Judged(holds, fails, f"{figure}{len(found)} {what}; sign test: p = {p:.2g}")
    least = detectable(len(found), float(found.std(ddof=1)))
    figure = f"{difference}: {mean:+.4f} [{low:+.4f}, {high:+.4f}], {what}; t-test{against}: p = {p:.2g}"
    return _Judged(holds, fails, figure, f"; differences from {least:.4f} on are found with power 0.8")


def _units(cells: list[tuple[Cell, NDArray[np.float64]]], unit: Unit) -> tuple[NDArray[np.float64], str]:
    """Return the independent differences of a test, and what they are."""
    if unit == "seeds":
        means = np.mean([found for _, found in cells], axis=0)
        return means, f"{len(means)} seeds x {len(cells)} cells"
    groups: dict[tuple[str, float | None], list[float]] = {}
    for cell, found in cells:
        groups.setdefault(cell[1:], []).append(float(found.mean()))
    if len(groups) >= FEWEST_CELLS:
        return np.array([np.mean(group) for group in groups.values()]), "averages over tasks"
    return np.array([found.mean() for _, found in cells]), "tasks and models"


def _spread(
    results: Results, claim: Claim, row: str, other: str, pairs: list[tuple[Place, Place]], unit: Unit
) -> _Judged:
    """Judge the standard deviations of two rows over seeds by the test of Pitman and Morgan (1939)."""
    scores = [(results.scores(here), results.scores(there)) for here, there in pairs]
    holds, fails, ratio = spread_test(scores)
    what = f"{len(scores[0][0])} seeds x {len(scores)} cells"
    figure = (
        f"standard deviation of {row} over {other}'s: {ratio:.2f}, {what}; p = {min(1.0, 2 * min(holds, fails)):.2g}"
    )
    return _Judged(holds, fails, figure)


def spread_test(scores: Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> tuple[float, float, float]:
    """Test whether the first of two paired rows varies less over seeds than the second.

    Variances of two variables are equal if and only if their sum and their difference are uncorrelated. Cells are
    centred, each at the cost of a degree of freedom, and brought to one scale.

    Args:
        scores: of both rows, by seed, one pair of arrays for each cell.

    Returns:
        The p-values that the first varies less and that it varies more, and the ratio of standard deviations.
    """
    sums, gaps, freedom = [], [], -1
    first_squares = second_squares = 0.0
    for first, second in scores:
        first, second = first - first.mean(), second - second.mean()
        scale = np.sqrt((first @ first + second @ second) / 2) or 1.0
        first_squares += first @ first / scale**2
        second_squares += second @ second / scale**2
        sums.append((first + second) / scale)
        gaps.append((first - second) / scale)
        freedom += len(first) - 1
    plus, minus = np.concatenate(sums), np.concatenate(gaps)
    ratio = float(np.sqrt(first_squares / second_squares)) if second_squares else float("inf")
    norms = np.sqrt((plus @ plus) * (minus @ minus))
    if not norms:  # the rows vary alike, or not at all
        return 1.0, 1.0, ratio
    correlation = float(np.clip(plus @ minus / norms, -1, 1))
    statistic = correlation * np.sqrt(freedom / max(1 - correlation**2, np.finfo(float).tiny))
    return float(stats.t.cdf(statistic, freedom)), float(stats.t.sf(statistic, freedom)), ratio
