"""Differences from a baseline, paired over seeds, as a frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from .paired import LEVEL, equivalence, paired
from .results import Place, Results, mismatches


def differences(results: Results, baseline: str, margin: float | None = None) -> pd.DataFrame:
    """Return the difference of every row from a baseline in every cell, paired over seeds.

    The family of Holm's correction is the whole frame. Numbers of trained parameters may differ; the frame has them.

    Args:
        results: the runs.
        baseline: the row from which the differences are taken.
        margin: with it, the column ``p_equivalent`` has the test that a difference is smaller.

    Returns:
        The columns model, budget, task, row, baseline, trained, trained_baseline, seeds, difference (larger is better
        for the row), low, high, p, p_permutation, p_holm, detectable and note. Where seeds or tuning are not matched,
        the note says so, and there are no figures.

    Raises:
        SubspaceError: the baseline is not among the rows.
    """
    results.check([baseline])
    others = [row for row in results.rows if row != baseline]
    lines = [_difference(results, *pair, margin) for row in others for pair in results.pairs(row, baseline)]
    columns = ["model", "budget", "task", "row", "baseline", "trained", "trained_baseline", "seeds", "difference"]
    columns += ["low", "high", "p", "p_permutation", "p_holm", "detectable", "note"]
    frame = pd.DataFrame(lines, columns=columns if margin is None else [*columns[:-1], "p_equivalent", "note"])
    tested = frame["p"].notna()
    if tested.any():
        frame.loc[tested, "p_holm"] = multipletests(frame.loc[tested, "p"], LEVEL, method="holm")[1]
    return frame


def _difference(results: Results, place: Place, base: Place, margin: float | None) -> dict[str, Any]:
    (row, cell), (baseline, other) = place, base
    budget = other.budget if cell.budget is None else cell.budget
    line = {
        "model": cell.model,
        "budget": np.nan if budget is None else budget,
        "task": cell.task,
        "row": row,
        "baseline": baseline,
        "trained": results.trained(place),
        "trained_baseline": results.trained(base),
        "note": "; ".join(mismatches(results, [place, base], budgets=False)),
    }
    if line["note"]:
        return line
    found = results.scores(place) - results.scores(base)
    test = paired(found)
    line |= {"seeds": test.n, "difference": test.mean, "low": test.low, "high": test.high, "p": test.p}
    line |= {"p_permutation": test.p_permutation, "detectable": test.detectable}
    return line if margin is None else line | {"p_equivalent": equivalence(found, margin)}
