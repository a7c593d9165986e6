"""The results of a comparison, read from its store."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import func, select

from ..errors import SubspaceError
from .database import Database
from .grid import REPORT, TUNING
from .planning import plan_of
from .rates import counting
from .schema import DONE, cells, outcomes, places, runs

_RESULTS = ("metric", "score", "seconds", "memory", "error", "diverged")


class Store:
    """A store, opened for reading.

    Args:
        path: its file.

    Raises:
        SubspaceError: the file does not exist, or is no store that this version reads.
    """

    def __init__(self, path: str | Path) -> None:
        self.database = Database(path, create=False)

    def frame(self) -> pd.DataFrame:
        """Return one row per run and cell, in the order of the grid.

        A run that stands in two cells, such as one without a rank at two budgets, has two rows. Columns:

        - ``run``: the SHA-256 of the run; ``row``, ``method``, ``task``, ``model``, ``budget`` (parameters, missing for
          a row as given): its cell;
        - ``trained``, ``head``: the parameters that the method and the head train;
        - ``rate``, ``seed``, ``stage`` ("tuning" or "report"): its place; ``counts``: whether a run for tuning is at
          one of the rates that count (see ``rates``);
        - ``state`` ("waiting", "running", "done", "failed"), ``error``, ``diverged``;
        - ``metric``, ``score``, ``seconds`` of training, ``memory`` (peak, MiB).
        """
        columns = [
            places.c.run,
            *(cells.c[name] for name in ("row", "method", "task", "model", "budget")),
            func.coalesce(runs.c.trained, cells.c.trained).label("trained"),
            runs.c.head,
            *(places.c[name] for name in ("rate", "seed", "stage")),
            runs.c.state,
            *(runs.c[name] for name in _RESULTS),
            places.c.cell,
            places.c.step,
        ]
        query = select(*columns).join_from(places, cells, places.c.cell == cells.c.id)
        query = query.join(runs, places.c.run == runs.c.id).order_by(places.c.cell, places.c.number)
        with self.database.read() as connection:
            found = pd.DataFrame(connection.execute(query).mappings().all(), columns=[one.name for one in columns])
            tries = plan_of(connection).tries
        found["counts"] = _counts(found, tries)
        whole = {"budget": "Int64", "trained": "Int64", "head": "Int64", "seed": "Int64", "diverged": "bool"}
        real = dict.fromkeys(("rate", "score", "seconds", "memory"), "float64")
        return found.drop(columns=["cell", "step"]).astype({**whole, **real})

    def tuned(self) -> pd.DataFrame:
        """Return one row per cell, with the choice of its learning rate.

        Columns: ``row``, ``method``, ``task``, ``model``, ``budget``, ``trained``; ``difference`` from the budget;
        ``around``, the middle of its grid; ``rate``, the chosen one (missing before it is chosen); ``tries`` that
        count; ``extended``, how often the grid was extended; ``edge``, whether the best rate is at the edge of all that
        were tried; ``seeds``, the number of reported runs that are done, and ``score``, the mean of theirs.
        """
        whole = dict.fromkeys(("budget", "difference"), "Int64")
        return pd.DataFrame(self.cells()).astype(whole | dict.fromkeys(("rate", "score"), "float64"))

    def cells(self) -> list[dict[str, Any]]:
        """Return the rows of ``tuned`` as plain data, with None for what is missing."""
        query = select(places.c.cell, places.c.stage, places.c.step, places.c.rate, runs.c.state, runs.c.score)
        with self.database.read() as connection:
            tries = plan_of(connection).tries
            known = connection.execute(select(cells).order_by(cells.c.id)).mappings().all()
            placed = connection.execute(query.join_from(places, runs, places.c.run == runs.c.id)).all()
        of: dict[int, list[Any]] = {cell["id"]: [] for cell in known}
        for one in placed:
            of[one.cell].append(one)
        return [_choice(cell, of[cell["id"]], tries) for cell in known]

    def smaller_is_better(self) -> list[str]:
        """Return the metrics of which this holds."""
        query = select(runs.c.metric).join_from(places, cells, places.c.cell == cells.c.id)
        query = query.join(runs, places.c.run == runs.c.id).where(cells.c.larger == 0, runs.c.metric.is_not(None))
        with self.database.read() as connection:
            return sorted(set(connection.execute(query).scalars()))

    def outcomes(self, run: str) -> tuple[Any, Any]:
        """Return the references and the predictions of a run, one of each per item of the task's evaluation split.

        Numbers are arrays; anything else, such as texts, is a list. Items of two runs of one task and stage correspond.

        Raises:
            SubspaceError: the store has no outcomes of such a run.
        """
        with self.database.read() as connection:
            content = connection.execute(select(outcomes.c.content).where(outcomes.c.run == run)).scalar()
        if content is None:
            raise SubspaceError(f"store {self.database.path} has no outcomes of run {run!r}")
        found = json.loads(zlib.decompress(content))
        return _array(found["references"]), _array(found["predictions"])

    def curve(self, run: str) -> list[tuple[int, float]]:
        """Return the training loss of a run: steps, and the mean loss since the step before. Empty if it is not done.

        Raises:
            SubspaceError: the store has no such run.
        """
        found = self._column(run, "curve")
        return [] if found is None else [(step, loss) for step, loss in json.loads(found)]

    def scores(self, run: str) -> dict[str, float]:
        """Return all figures of a run. Empty if it is not done. Raises SubspaceError if the store has no such run."""
        found = self._column(run, "scores")
        return {} if found is None else dict(json.loads(found))

    def config(self, run: str) -> dict[str, Any]:
        """Return the resolved config of a run, without an output. Raises SubspaceError if there is no such run."""
        found = self._column(run, "config")
        assert found is not None
        return {key: value for key, value in json.loads(found).items() if key != "output"}

    def _column(self, run: str, name: str) -> str | None:
        with self.database.read() as connection:
            found = connection.execute(select(runs.c[name]).where(runs.c.id == run)).first()
        if found is None:
            raise SubspaceError(f"store {self.database.path} has no run {run!r}")
        value: str | None = found[0]
        return value


def _choice(cell: Any, placed: Sequence[Any], tries: int) -> dict[str, Any]:
    steps = {one.step for one in placed if one.stage == TUNING}
    reported = [one for one in placed if one.stage == REPORT]
    scores = [one.score for one in reported if one.state == DONE]
    return {
        **{name: cell[name] for name in ("row", "method", "task", "model", "budget", "trained", "around")},
        "difference": None if cell["budget"] is None else cell["trained"] - cell["budget"],
        "rate": reported[0].rate if reported else None,
        "tries": min(len(steps), tries),
        "extended": max(0, len(steps) - tries),
        "edge": bool(steps and reported) and reported[0].step in (min(steps), max(steps)),
        "seeds": len(scores),
        "score": sum(scores) / len(scores) if scores else None,
    }


def _counts(found: pd.DataFrame, tries: int) -> list[bool]:
    """Return for each place whether its rate counts."""
    tuning = found[found["stage"] == TUNING]
    steps = {cell: set(counting(set(part), tries)) for cell, part in tuning.groupby("cell")["step"]}
    return [
        stage != TUNING or step in steps[cell]
        for stage, step, cell in zip(found["stage"], found["step"], found["cell"], strict=True)
    ]


def _array(values: Sequence[Any]) -> Any:
    numbers = all(isinstance(value, (bool, int, float)) for value in values)
    return np.asarray(values) if numbers else list(values)
