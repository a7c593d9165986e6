"""The results of a comparison, and which of them may be compared.

A row is one competitor: a method, a formula or full fine-tuning with its options. A cell is what is held fixed while
rows are compared: a task, a model and a budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import SubspaceError, nearest

Figure: TypeAlias = Callable[[NDArray[np.intp]], float]
"""A score as a function of the numbers of the test items that count; an item may count several times."""
Scorer: TypeAlias = Callable[[Any, Any], Figure]
"""From the predictions and the references of a run to its score, as ``Task.resampled``."""

COLUMNS = ("run", "row", "task", "model", "budget", "trained", "rate", "seed", "stage", "state", "metric", "score")
FEWEST_SEEDS = 3
TOLERANCE = 0.1
"""The largest relative difference of two matched numbers of trained parameters."""


class Cell(NamedTuple):
    """A task, a model, and a budget of trained parameters; None for rows that were run as given."""

    task: str
    model: str
    budget: float | None

    def __str__(self) -> str:
        budget = "" if self.budget is None else f", budget {self.budget:,.10g}"
        return f"{self.task}, {self.model}{budget}"


Place: TypeAlias = tuple[str, Cell]
"""A row in a cell."""


def _no_outcomes(run: str) -> NoReturn:
    raise SubspaceError(f"the predictions of run {run!r} are not at hand: open the store of the comparison")


def _no_scorer(task: str) -> NoReturn:
    raise SubspaceError(f"the score of task {task!r} is not at hand as a function of items: give Results a scorer")


@dataclass(frozen=True, eq=False)
class Results:
    """The runs of a comparison.

    Attributes:
        runs: one line per run, with at least the columns in ``COLUMNS``. Analysed are those whose stage is "report" and
            whose state is "done"; those of the stage "tuning" are counted as tries, all of them or those for which a
            column ``counts`` holds.
        outcomes: from the name of a run to the references and the predictions of its test items.
        scorer: from a task to its ``Scorer``.
        smaller_is_better: the metrics of which this holds.

    Raises:
        SubspaceError: a column is missing, a score is not finite, or two reported runs have the same row, task, model,
            budget and seed.
    """

    runs: pd.DataFrame
    outcomes: Callable[[str], tuple[Any, Any]] = _no_outcomes
    scorer: Callable[[str], Scorer] = _no_scorer
    smaller_is_better: Collection[str] = ()

    def __post_init__(self) -> None:
        missing = [name for name in COLUMNS if name not in self.runs.columns]
        if missing:
            raise SubspaceError(f"the results lack the columns {', '.join(missing)}")
        bad = self.reported[~np.isfinite(self.reported["score"].astype(float))]
        if len(bad):
            raise SubspaceError(f"run {bad['run'].iloc[0]!r} is done and has no finite score")
        keys = ["row", "task", "model", "budget", "seed"]
        twice = self.reported[self.reported.duplicated(keys)]
        if len(twice):
            told = ", ".join(f"{key} {twice[key].iloc[0]}" for key in keys)
            raise SubspaceError(f"two reported runs have the same {told}: give the rows different names")

    @cached_property
    def reported(self) -> pd.DataFrame:
        """The runs that are analysed."""
        return self.runs[(self.runs["stage"] == "report") & (self.runs["state"] == "done")]

    @cached_property
    def lines(self) -> Mapping[Place, dict[int, Mapping[Hashable, Any]]]:
        """The reported runs of each row in each cell, by seed."""
        found: dict[Place, dict[int, Mapping[Hashable, Any]]] = {}
        for line in self.reported.to_dict("records"):
            found.setdefault((line["row"], _cell(line)), {})[int(line["seed"])] = line
        return {place: dict(sorted(lines.items())) for place, lines in found.items()}

    @cached_property
    def tries(self) -> Mapping[Place, int]:
        """The number of learning rates that were tried for each row in each cell."""
        rates: dict[Place, set[float]] = {}
        for line in self.runs[self.runs["stage"] == "tuning"].to_dict("records"):
            if line.get("counts", True):
                rates.setdefault((line["row"], _cell(line)), set()).add(line["rate"])
        return {place: len(found) for place, found in rates.items()}

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows, in the order of the runs."""
        return tuple(dict.fromkeys(row for row, _ in self.lines))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells, in the order of the runs."""
        return tuple(dict.fromkeys(cell for _, cell in self.lines))

    def scores(self, place: Place) -> NDArray[np.float64]:
        """Return the scores of a row in a cell, by ascending seed, times its sign: larger is better."""
        return self.sign(place) * np.array([float(line["score"]) for line in self.lines[place].values()])

    def sign(self, place: Place) -> float:
        """Return -1 where smaller scores are better, otherwise 1."""
        return -1.0 if self.first(place)["metric"] in self.smaller_is_better else 1.0

    def trained(self, place: Place) -> float:
        """Return the number of trained parameters, NaN if it is unknown."""
        found = self.first(place)["trained"]
        return np.nan if pd.isna(found) else float(found)

    def first(self, place: Place) -> Mapping[Hashable, Any]:
        """Return the run of the first seed of a row in a cell."""
        return next(iter(self.lines[place].values()))

    def check(self, rows: Iterable[str]) -> None:
        """Check that there are runs of some rows.

        Raises:
            SubspaceError: there are none of one of them.
        """
        for row in rows:
            if row not in self.rows:
                raise SubspaceError(f"the results have no row {row!r}; {nearest(row, self.rows)}")

    def pairs(self, row: str, other: str) -> list[tuple[Place, Place]]:
        """Return where two rows meet: cells of both.

        If there are none, a row that was run as given meets the other at each of the other's budgets.
        """
        here, there = ([cell for name, cell in self.lines if name == one] for one in (row, other))
        both = [((row, cell), (other, cell)) for cell in here if cell in there]
        return both or [
            ((row, mine), (other, its))
            for mine, its in itertools.product(here, there)
            if mine[:2] == its[:2] and None in (mine.budget, its.budget)
        ]

    @cached_property
    def comparable(self) -> bool:
        """Whether scores of different tasks may be averaged: there is one task, or all scores are shares."""
        if self.reported["task"].nunique() == 1:
            return True
        losses = self.reported["metric"].isin(list(self.smaller_is_better))
        return not losses.any() and bool((self.reported["score"].abs() <= 1).all())


def _cell(line: Mapping[Hashable, Any]) -> Cell:
    budget = line["budget"]
    return Cell(line["task"], line["model"], None if pd.isna(budget) else float(budget))


def mismatches(
    results: Results, places: Sequence[Place], *, budgets: bool = True, tolerance: float = TOLERANCE
) -> list[str]:
    """Return in one line each what makes a comparison of rows unfair; none if they are matched.

    Args:
        results: the runs.
        places: the rows in their cells that are compared or averaged.
        budgets: whether the numbers of trained parameters must agree.
        tolerance: how far they may differ, relative to the largest.
    """
    return [
        line
        for line in (
            _seeds(results, places),
            _tries(results, places),
            _budgets(results, places, tolerance) if budgets else "",
        )
        if line
    ]


def _seeds(results: Results, places: Sequence[Place]) -> str:
    seeds = {place: tuple(results.lines[place]) for place in places}
    for (first, here), (other, there) in itertools.pairwise(seeds.items()):
        if here != there:
            return f"seeds differ: {_told(first)} has {_listed(here)}, {_told(other)} has {_listed(there)}"
    for place, found in seeds.items():
        if len(found) < FEWEST_SEEDS:
            return f"too few seeds: {_told(place)} has {len(found)}, at least {FEWEST_SEEDS} are needed"
    return ""


def _tries(results: Results, places: Sequence[Place]) -> str:
    for cell, group in _by_cell(places):
        for first, other in itertools.pairwise(group):
            here, there = results.tries.get(first, 0), results.tries.get(other, 0)
            if here != there:
                return f"tuning differs: {first[0]} had {here} tries and {other[0]} {there} ({cell})"
    return ""


def _budgets(results: Results, places: Sequence[Place], tolerance: float) -> str:
    for cell, group in _by_cell(places):
        known = {place: results.trained(place) for place in group if np.isfinite(results.trained(place))}
        if not known:
            continue
        least, most = min(known, key=lambda place: known[place]), max(known, key=lambda place: known[place])
        if known[least] < (1 - tolerance) * known[most]:
            return (
                f"budgets differ: {most[0]} trains {known[most]:,.0f} and {least[0]} {known[least]:,.0f} "
                f"({cell}), more than {100 * tolerance:g} % apart"
            )
    return ""


def _by_cell(places: Sequence[Place]) -> Iterator[tuple[Cell, list[Place]]]:
    """Yield the places of one task, model and budget; a place without a budget is in each of its task and model."""
    for key in dict.fromkeys(cell for _, cell in places):
        of_task = [place for place in places if place[1][:2] == key[:2]]
        if key.budget is not None or all(cell.budget is None for _, cell in of_task):
            yield key, [place for place in of_task if place[1].budget in (key.budget, None)]


def _told(place: Place) -> str:
    return f"{place[0]} ({place[1]})"


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))
