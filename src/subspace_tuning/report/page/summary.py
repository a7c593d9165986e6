"""Means over seeds with their intervals: a cell for each row and task, and for each row its average over tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...extras import needs

if TYPE_CHECKING:
    import pandas as pd

ENTRY = ["model", "row", "budget"]
"""What identifies a line of the table."""
LEVEL = 0.95
_MEANS = {
    "score": ("score", "mean"),
    "deviation": ("score", "std"),
    "count": ("score", "count"),
    "seconds": ("seconds", "mean"),
    "memory": ("memory", "mean"),
}


def entries(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each model, row and budget, in the order of the runs."""
    return runs.groupby(ENTRY, sort=False, as_index=False).agg(
        method=("method", "first"), trained=("trained", "max"), head=("head", "max")
    )


def cells(runs: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    """Return mean, interval, number of seeds and cost of each line of the table on each task."""
    report = _numbered(runs[runs["stage"] == "report"], lines)
    done = report[_is_done(report)]
    found = done.groupby(["entry", "task"], sort=False).agg(
        **_MEANS, metric=("metric", "first"), rate=("rate", "first")
    )
    failed = report[report["state"] == "failed"].groupby(["entry", "task"], sort=False).size().rename("failed")
    return _with_interval(found.join(failed, how="outer").fillna({"count": 0, "failed": 0}).reset_index())


def averages(runs: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    """Return the same of the average over tasks, for lines with a seed that has a score on all tasks of their model.

    Its interval is over seeds: that of the averages of each seed.
    """
    report = _numbered(runs[runs["stage"] == "report"], lines)
    done = report[_is_done(report)]
    tasks = done.groupby("model")["task"].nunique().rename("all").reset_index()
    seeds = done.groupby(["entry", "model", "seed"], sort=False, as_index=False).agg(
        tasks=("task", "nunique"), score=("score", "mean"), seconds=("seconds", "mean"), memory=("memory", "mean")
    )
    seeds = seeds.merge(tasks, on="model")
    whole = seeds[seeds["tasks"] == seeds["all"]]
    return _with_interval(whole.groupby("entry", sort=False).agg(**_MEANS).reset_index())


def _numbered(runs: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with the number of their line as ``entry``."""
    return runs.merge(lines[ENTRY].rename_axis("entry").reset_index(), on=ENTRY, how="left")


def _is_done(runs: pd.DataFrame) -> pd.Series[bool]:
    return (runs["state"] == "done") & runs["score"].notna()


def _with_interval(means: pd.DataFrame) -> pd.DataFrame:
    """Replace the standard deviation by the ends of the interval of the mean; one seed has none."""
    needs("the interval of a mean", "report", "scipy")
    from scipy.special import stdtrit

    counts = means["count"].to_numpy(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stdtrit(counts - 1, (1 + LEVEL) / 2) * means["deviation"].to_numpy(float) / np.sqrt(counts)
    return means.drop(columns="deviation").assign(low=means["score"] - half, high=means["score"] + half)
