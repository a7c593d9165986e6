"""Results of comparisons that never ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import settings
from numpy.typing import ArrayLike
from scipy import stats

from subspace_tuning.statistics import Results

quick = settings(max_examples=30, deadline=None)


def lines(row: str, scores: ArrayLike, tasks: list[str] | None = None, **values: Any) -> list[dict[str, Any]]:
    """Return the reported runs of a row.

    Args:
        row: its name.
        scores: tasks x seeds.
        tasks: their names.
        values: of any other column, for all runs.
    """
    found = np.atleast_2d(scores)
    names = tasks or [f"task{number}" for number in range(len(found))]
    common = {"model": "minilm", "budget": np.nan, "trained": 1000, "head": 0, "rate": 1e-3, "metric": "accuracy"}
    common |= {"method": row, "stage": "report", "state": "done", "seconds": 1.0, "memory": 1.0, **values}
    return [
        {"run": f"{row}-{task}-{common['budget']}-{seed}", "row": row, "task": task, "seed": seed, "score": score}
        | common
        for task, of_task in zip(names, found, strict=True)
        for seed, score in enumerate(of_task)
    ]


def results(scores: Mapping[str, ArrayLike], **values: Any) -> Results:
    """Return matched results from the scores of each row, tasks x seeds."""
    return Results(pd.DataFrame([line for row, found in scores.items() for line in lines(row, found, **values)]))


def within(count: int, trials: int, share: float, doubt: float = 1e-5) -> bool:
    """Whether a count is one that trials of this probability give, but for a doubt."""
    return bool(stats.binomtest(count, trials, share).pvalue > doubt)


def at_most(count: int, trials: int, share: float, doubt: float = 1e-5) -> bool:
    """Whether a count is one that trials of at most this probability give, but for a doubt."""
    return bool(stats.binomtest(count, trials, share, alternative="greater").pvalue > doubt)
