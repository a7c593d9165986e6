"""How far a comparison is: what is done and left, what is best so far, and what has failed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from .database import Database
from .grid import REPORT, TUNING
from .leases import WHOLE, Shard
from .planning import plan_of
from .schema import DONE, FAILED, RUNNING, cells, places, runs


@dataclass(frozen=True)
class Event:
    """A run that has ended."""

    number: int
    row: str
    task: str
    model: str
    budget: int | None
    stage: str
    rate: float
    seed: int
    metric: str | None
    score: float | None
    seconds: float | None
    error: str | None
    diverged: bool
    finished: float


@dataclass(frozen=True)
class RowProgress:
    """A row: its runs that have ended, those that it has in all, and the best mean score so far by task."""

    ended: int
    total: int
    best: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """The state of a comparison, or of a shard of it.

    Attributes:
        total: the runs in all, also those that are placed once a rate is chosen.
        done: those that are done.
        failed: those that have failed.
        running: those being worked on.
        rows: by name.
        hopeless: the cells in which every rate has failed, so that nothing can be reported.
        events: the runs that have ended, in this order.
    """

    total: int
    done: int
    failed: int
    running: int
    rows: dict[str, RowProgress]
    hopeless: tuple[str, ...]
    events: tuple[Event, ...]

    @property
    def left(self) -> int:
        """The runs that have not ended."""
        return self.total - self.done - self.failed


def progress(database: Database, shard: Shard = WHOLE) -> Progress:
    """Return the state of a store's comparison."""
    with database.read() as connection:
        seeds = len(plan_of(connection).seeds)
        own = cells.c.id % shard.count == shard.index
        known = connection.execute(select(cells).where(own).order_by(cells.c.id)).mappings().all()
        query = select(places, runs).join_from(places, cells, places.c.cell == cells.c.id)
        query = query.join(runs, places.c.run == runs.c.id).where(own).order_by(places.c.number)
        names = (*places.c, *(column for column in runs.c if column.name not in ("number", "trained")))
        placed = connection.execute(query.with_only_columns(*names)).mappings().all()
    by_cell: dict[int, list[Any]] = defaultdict(list)
    for one in placed:
        by_cell[one["cell"]].append(one)
    rows: dict[str, list[tuple[Any, list[Any]]]] = defaultdict(list)
    for cell in known:
        rows[cell["row"]].append((cell, by_cell[cell["id"]]))
    hopeless = [cell for cell in known if _is_hopeless(by_cell[cell["id"]])]
    made = {row: _row(found, seeds) for row, found in rows.items()}
    states = [one["state"] for one in placed]
    of = {cell["id"]: cell for cell in known}
    events = [_event(of[one["cell"]], one) for one in placed if one["state"] in (DONE, FAILED)]
    return Progress(
        sum(row.total for row in made.values()),
        states.count(DONE),
        states.count(FAILED),
        states.count(RUNNING),
        made,
        tuple(_where(*(cell[name] for name in ("row", "task", "model", "budget"))) for cell in hopeless),
        tuple(sorted(events, key=lambda event: (event.finished, event.number))),
    )


def seconds_left(before: Progress, now: Progress, elapsed: float, workers: int) -> float | None:
    """Return the estimated time for what is left; None before a run is done.

    Args:
        before: the state at the start of this call.
        now: the state now.
        elapsed: the seconds since the start.
        workers: the number of workers.
    """
    ended = before.left - now.left
    if ended > 0:
        return elapsed / ended * now.left
    known = [event.seconds for event in now.events if event.seconds is not None]
    return sum(known) / len(known) * now.left / workers if known else None


def failures(database: Database, shard: Shard = WHOLE) -> list[str]:
    """Return a line for each run that has failed, and for each cell that has no rate to report.

    A run for tuning that diverged is a result: its rate is too high.
    """
    found = progress(database, shard)
    lines = [
        f"{described(event)}: {event.error}"
        for event in found.events
        if event.error is not None and not (event.diverged and event.stage == TUNING)
    ]
    return [*lines, *(f"{where}: no learning rate works, so nothing is reported" for where in found.hopeless)]


def described(event: Event) -> str:
    """Return a run in words."""
    where = _where(event.row, event.task, event.model, event.budget)
    return f"{where}, rate {event.rate:g}, seed {event.seed}, {event.stage}"


def _where(row: str, task: str, model: str, budget: int | None) -> str:
    return ", ".join([row, task, model, *([] if budget is None else [f"budget {budget:,}"])])


def _row(found: Sequence[tuple[Any, Sequence[Any]]], seeds: int) -> RowProgress:
    ended = total = 0
    best: dict[str, float] = {}
    for cell, placed in found:
        tuning = sum(one["stage"] == TUNING for one in placed)
        total += tuning + (0 if _is_hopeless(placed) else seeds)
        ended += sum(one["state"] in (DONE, FAILED) for one in placed)
        score = _best(placed, bool(cell["larger"]))
        if score is not None:
            better = max if cell["larger"] else min
            best[cell["task"]] = better(score, best.get(cell["task"], score))
    return RowProgress(ended, total, best)


def _is_hopeless(placed: Sequence[Any]) -> bool:
    """Return whether all runs of a cell have ended, and none of them is reported."""
    return all(one["state"] in (DONE, FAILED) and one["stage"] == TUNING for one in placed)


def _best(placed: Sequence[Any], larger: bool) -> float | None:
    """Return the mean reported score of a cell, or before there is one the best mean score of a rate."""
    scores: dict[tuple[str, float], list[float]] = defaultdict(list)
    for one in placed:
        if one["state"] == DONE:
            scores[one["stage"], one["rate"]].append(one["score"])
    means = {key: sum(values) / len(values) for key, values in scores.items()}
    reported = [mean for (stage, _), mean in means.items() if stage == REPORT]
    candidates = reported or list(means.values())
    return (max if larger else min)(candidates) if candidates else None


def _event(cell: Any, one: Any) -> Event:
    values: dict[str, Any] = {name: cell[name] for name in ("row", "task", "model", "budget")}
    values |= {name: one[name] for name in ("number", "stage", "rate", "seed", "metric", "score", "seconds", "error")}
    return Event(**values, diverged=bool(one["diverged"]), finished=one["finished"])
