"""Mean scores with their intervals, as a frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .paired import mean_interval
from .results import TOLERANCE, Cell, Place, Results, mismatches

AVERAGE = "average"
COLUMNS = ("model", "budget", "row", "trained", "per_mille", "task", "metric", "seeds", "mean", "low", "high", "spread")


def summary(results: Results, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Return the mean score of each row in each cell with its 95 % interval over seeds, and the average over tasks.

    Returns:
        The columns model, budget, row, trained, per_mille, task, metric, seeds, mean, low, high, spread (the standard
        deviation over seeds), best and note. ``task`` is "average" for the mean over all tasks of a model; only rows
        with the same seeds on all of them have one, and only where scores are on one scale. ``best`` marks the best
        mean of the rows with the same model and budget, if they are matched; otherwise the note says what differs.
    """
    lines = [_line(results, place, results.scores(place)) for place in results.lines]
    if results.comparable:
        groups = dict.fromkeys((row, cell.model, cell.budget) for row, cell in results.lines)
        lines += [line for group in groups for line in _average(results, *group)]
    frame = pd.DataFrame(lines, columns=[*COLUMNS]).assign(best=False, note="")
    for _, group in frame.groupby(["model", "budget"], dropna=False, sort=False):
        note = _note(results, group, tolerance)
        frame.loc[group.index, "note"] = note
        if not note and group["row"].nunique() > 1:
            # The mean of a loss is printed as it is, and the least is the best.
            gains = group["mean"].where(~group["metric"].isin(list(results.smaller_is_better)), -group["mean"])
            frame.loc[gains.groupby(group["task"]).idxmax(), "best"] = True
    return frame


def _note(results: Results, group: pd.DataFrame, tolerance: float) -> str:
    """Return why the rows of one model and budget are not ranked, or nothing."""
    model, budget = group["model"].iloc[0], group["budget"].iloc[0]
    for task in dict.fromkeys(group["task"]):
        cell = Cell(task, model, None if np.isnan(budget) else float(budget))
        places = [(row, cell) for row in group.loc[group["task"] == task, "row"]]
        unmatched = mismatches(results, places, tolerance=tolerance) if task != AVERAGE else []
        if unmatched:
            return unmatched[0]
    return ""


def _line(results: Results, place: Place, scores: NDArray[np.float64]) -> dict[str, Any]:
    row, cell = place
    mean, low, high = mean_interval(scores)
    if results.sign(place) < 0:
        mean, low, high = -mean, -high, -low
    first = results.first(place)
    return {
        "model": cell.model,
        "budget": np.nan if cell.budget is None else cell.budget,
        "row": row,
        "trained": results.trained(place),
        "per_mille": first.get("per_mille", np.nan),
        "task": cell.task,
        "metric": first["metric"],
        "seeds": len(scores),
        "mean": mean,
        "low": low,
        "high": high,
        "spread": float(scores.std(ddof=1)) if len(scores) > 1 else np.nan,
    }


def _average(results: Results, row: str, model: str, budget: float | None) -> list[dict[str, Any]]:
    tasks = dict.fromkeys(cell.task for cell in results.cells if cell.model == model)
    places = [(row, Cell(task, model, budget)) for task in tasks]
    if len(places) < 2 or any(place not in results.lines for place in places):
        return []
    if len({tuple(results.lines[place]) for place in places}) > 1:
        return []
    scores = np.mean([results.scores(place) for place in places], axis=0)
    return [_line(results, places[0], scores) | {"task": AVERAGE, "metric": ""}]
