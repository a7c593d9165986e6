"""Tests that pair two rows item by item of the test set.

Sources:
    McNemar 1947, in its exact form. The bootstrap: Efron 1979; sums of variance components: Satterthwaite 1946.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar
from statsmodels.stats.multitest import multipletests

from ..errors import SubspaceError
from .paired import LEVEL
from .results import Place, Results, mismatches

SAMPLES = 1000


class Interval(NamedTuple):
    """A mean difference and its 95 % interval."""

    mean: float
    low: float
    high: float


def mcnemar(results: Results, row: str, baseline: str, task: str, model: str) -> pd.DataFrame:
    """Test for each seed whether two rows are right equally often, by the items that one of them alone has right.

    Returns:
        The columns budget, seed, row_alone, baseline_alone, p, and p_holm over the frame.

    Raises:
        SubspaceError: the rows do not meet there, their seeds differ, their test items differ, or predictions are not
            classes.
    """
    lines = []
    for place, base in _pairs(results, row, baseline, task, model):
        for seed, (own, its) in _runs(results, place, base):
            mine, theirs = (_right(results, run) for run in (own, its))
            alone = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
            p = exact_mcnemar([[0, alone[0]], [alone[1], 0]], exact=True).pvalue
            budget = place[1].budget if base[1].budget is None else base[1].budget
            lines.append((budget, seed, *alone, float(p)))
    frame = pd.DataFrame(lines, columns=["budget", "seed", "row_alone", "baseline_alone", "p"])
    return frame.assign(p_holm=multipletests(frame["p"], LEVEL, method="holm")[1])


def items_interval(
    results: Results, row: str, baseline: str, task: str, model: str, samples: int = SAMPLES
) -> dict[float | None, Interval]:
    """Return the difference of two rows with its 95 % interval over new seeds and new test items, by budget.

    The variance is the sum of two: that of the seeds' differences over the number of seeds, and that of the mean
    difference over bootstrap samples of the items, the same for all runs. The quantile is that of t with
    Satterthwaite's degrees of freedom, since a bootstrap of three to ten seeds is too narrow.

    Args:
        results: the runs, with outcomes and a scorer.
        row: the row of interest.
        baseline: the row from which the difference is taken.
        task: the task.
        model: the model.
        samples: the number of samples of the items.

    Raises:
        SubspaceError: the rows do not meet there, their seeds differ, or their test items differ.
    """
    found = {}
    for place, base in _pairs(results, row, baseline, task, model):
        budget = place[1].budget if base[1].budget is None else base[1].budget
        found[budget] = _interval(results, place, base, samples)
    return found


def items_intervals(results: Results, baseline: str) -> pd.DataFrame:
    """Return ``items_interval`` of every row with a baseline, on every task and model.

    Returns:
        The columns model, budget, task, row, baseline, difference, low, high, and note: why there are no figures.

    Raises:
        SubspaceError: the baseline is not among the rows.
    """
    results.check([baseline])
    lines = []
    for row in (row for row in results.rows if row != baseline):
        for task, model in dict.fromkeys(place[1][:2] for place, _ in results.pairs(row, baseline)):
            found, note = _intervals(results, row, baseline, task, model)
            lines += [(model, budget, task, row, baseline, *one, note) for budget, one in found.items()]
    columns = ["model", "budget", "task", "row", "baseline", "difference", "low", "high", "note"]
    return pd.DataFrame(lines, columns=columns).astype({"budget": "float64"})


def _intervals(
    results: Results, row: str, baseline: str, task: str, model: str
) -> tuple[dict[float | None, Interval], str]:
    """Return the intervals, or one without figures and why."""
    try:
        return items_interval(results, row, baseline, task, model), ""
    except SubspaceError as error:
        return {None: Interval(np.nan, np.nan, np.nan)}, str(error)


def _interval(results: Results, place: Place, base: Place, samples: int) -> Interval:
    task, figures, items = place[1].task, [], 0
    for _, runs in _runs(results, place, base):
        outcomes = [results.outcomes(run) for run in runs]
        items = len(outcomes[0][0])
        figures.append([results.scorer(task)(predictions, references) for references, predictions in outcomes])

    def by_seed(drawn: NDArray[np.intp]) -> NDArray[np.float64]:
        return results.sign(place) * np.array([own(drawn) - its(drawn) for own, its in figures])

    rng = np.random.default_rng(0)
    differences = by_seed(np.arange(items))
    drawn = [by_seed(rng.integers(items, size=items)).mean() for _ in range(samples)]
    of_seeds, of_items = float(differences.var(ddof=1)) / len(figures), float(np.var(drawn, ddof=1))
    mean, variance = float(differences.mean()), of_seeds + of_items
    if not variance:
        return Interval(mean, mean, mean)
    freedom = (len(figures) - 1) * (variance / of_seeds) ** 2 if of_seeds else np.inf
    half = float(stats.t.isf(LEVEL / 2, freedom)) * variance**0.5
    return Interval(mean, mean - half, mean + half)


def _pairs(results: Results, row: str, baseline: str, task: str, model: str) -> list[tuple[Place, Place]]:
    results.check([row, baseline])
    pairs = [pair for pair in results.pairs(row, baseline) if pair[0][1][:2] == (task, model)]
    if not pairs:
        raise SubspaceError(f"rows {row!r} and {baseline!r} were not both run on {task!r} with {model!r}")
    return pairs


def _runs(results: Results, place: Place, base: Place) -> list[tuple[int, tuple[str, str]]]:
    """Return the names of the two runs of each seed."""
    unmatched = mismatches(results, [place, base], budgets=False)
    if unmatched:
        raise SubspaceError(unmatched[0])
    found = []
    for seed, line in results.lines[place].items():
        runs = line["run"], results.lines[base][seed]["run"]
        ours, theirs = (results.outcomes(run)[0] for run in runs)
        if not _same(ours, theirs):
            raise SubspaceError(f"runs {runs[0]!r} and {runs[1]!r} were scored on different test items")
        found.append((seed, runs))
    return found


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        return np.array_equal(ours, theirs)
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


def _right(results: Results, run: str) -> NDArray[np.bool_]:
    """Return which items a run has right."""
    references, predictions = (_classes(values, run) for values in results.outcomes(run))
    return np.asarray(references == predictions)


def _classes(values: Any, run: str) -> NDArray[Any]:
    try:
        found = np.asarray(values)
    except ValueError:  # sequences of different lengths
        found = np.empty(())
    if found.ndim != 1 or found.dtype.kind not in "biuUT":
        raise SubspaceError(
            f"run {run!r} does not predict one class for each item, as McNemar's test needs: use items_interval"
        )
    return found
