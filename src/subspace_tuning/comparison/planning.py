"""Placing runs in a store: first those that choose rates, then, once a cell's rate is chosen, those to report.

Places follow from the config and the scores alone. So they can be made again at any time, in any order of the runs, and
what was run before is found by its content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from ..errors import SubspaceError
from ..jobs.description import canonical, digest
from .database import Database
from .grid import REPORT, TUNING, Cell
from .identity import code
from .owners import end_lost
from .rates import Decision, decide, first_steps, rate_at
from .schema import DONE, FAILED, RUNNING, WAITING, cells, facts, places, runs
from .sections import CompareConfig

_PLAN = "plan"


@dataclass(frozen=True)
class Plan:
    """What of a comparison's config decides which runs a cell has.

    Attributes:
        seeds: those of the reported runs.
        tuning_seeds: those of the runs that choose a rate; empty if none is chosen.
        split: the share of the training rows that these are scored on.
        factor: the ratio of neighbouring rates.
        tries: the number of rates that count.
        extensions: how often a grid may be extended.
    """

    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...] = ()
    split: float | None = None
    factor: float = 1.0
    tries: int = 1
    extensions: int = 0

    @classmethod
    def of(cls, config: CompareConfig) -> Plan:
        """Return the plan of a config."""
        tuning = config.tuning
        if tuning is None:
            return cls(tuple(config.seeds))
        rates = tuning.rates
        return cls(
            tuple(config.seeds), tuple(tuning.seeds), tuning.split, rates.factor, rates.tries, tuning.extend_edges
        )

    def plain(self) -> dict[str, Any]:
        """Return the plan as plain data for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Plan:
        """Return the plan from plain data."""
        plain: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        return cls(**plain)


def place(database: Database, config: CompareConfig, found: Sequence[Cell], *, retry: bool = False) -> None:
    """Make a comparison the store's own: its cells, and the places of its runs as far as they are known.

    Runs of other configs stay, and are found again when a config asks for them.

    Args:
        database: the store.
        config: the comparison.
        found: its cells.
        retry: let failed runs wait again.

    Raises:
        SubspaceError: another comparison is running in the store.
    """
    plan = Plan.of(config)
    content = {"plan": plan.plain(), "cells": [vars(cell) for cell in found], "code": code()}
    name = digest(content)
    with database.write() as connection:
        end_lost(connection)
        same = _fact(connection, "grid") == name
        running = connection.execute(select(runs.c.id).where(runs.c.state == RUNNING)).first()
        if running is not None and not same:
            raise SubspaceError(
                f"another comparison is running in store {database.path}: wait for its end, or choose another store"
            )
        if same and running is not None:
            return  # a further process of the same comparison
        connection.execute(delete(places))
        connection.execute(delete(cells))
        for number, cell in enumerate(found):
            connection.execute(insert(cells).values(id=number, **_columns(cell)))
        for key, value in {"grid": name, _PLAN: canonical(plan.plain()), "code": canonical(code())}.items():
            connection.execute(
                upsert(facts).values(name=key, value=value).on_conflict_do_update(["name"], set_={"value": value})
            )
        if retry:
            connection.execute(runs.update().where(runs.c.state == FAILED).values(_AGAIN))
        for number, cell in enumerate(found):
            _advance(connection, plan, number, cell)


_AGAIN: dict[str, Any] = {"state": WAITING, "owner": None, "expires": None, "error": None, "diverged": 0}


def advance(connection: Connection, run: str) -> None:
    """Place the runs that follow from a finished run, in the transaction that records it."""
    plan = plan_of(connection)
    holding = select(places.c.cell).where(places.c.run == run)
    for found in connection.execute(select(cells).where(cells.c.id.in_(holding))).mappings().all():
        _advance(connection, plan, found["id"], _cell(found))


def plan_of(connection: Connection) -> Plan:
    """Return the plan of the store's comparison."""
    known = _fact(connection, _PLAN)
    if known is None:
        raise SubspaceError("the store has no comparison: run `subspace compare` with a config")
    return Plan.read(json.loads(known))


def code_of(connection: Connection) -> Mapping[str, str]:
    """Return the versions of the code with which the store's comparison was made."""
    found: dict[str, str] = json.loads(_fact(connection, "code") or "{}")
    return found


def scores_of(connection: Connection, cell: int) -> dict[int, list[float | None] | None]:
    """Return the scores of each step of a cell's grid, over the seeds; None for a step with runs that are not done.

    The score of a failed run is None.
    """
    query = (
        select(places.c.step, runs.c.state, runs.c.score)
        .join_from(places, runs, places.c.run == runs.c.id)
        .where(places.c.cell == cell, places.c.stage == TUNING)
        .order_by(places.c.number)
    )
    states: dict[int, list[tuple[str, float | None]]] = {}
    for step, state, score in connection.execute(query):
        states.setdefault(step, []).append((state, score))
    return {
        step: [score if state == DONE else None for state, score in known]
        if all(state in (DONE, FAILED) for state, _ in known)
        else None
        for step, known in states.items()
    }


def decision(scores: Mapping[int, Sequence[float | None] | None], plan: Plan, larger: bool) -> Decision | None:
    """Return the choice among rates from their scores over seeds, None while runs are missing."""
    means: dict[int, float | None] = {}
    for step, known in scores.items():
        if known is None:
            return None
        values = [score for score in known if score is not None]
        mean = sum(values) / len(known)
        means[step] = None if len(values) < len(known) else (mean if larger else -mean)
    return decide(means, tries=plan.tries, extensions=plan.extensions)


def _advance(connection: Connection, plan: Plan, number: int, cell: Cell) -> None:
    """Place the runs of a cell that its scores ask for. What is already there is not placed twice."""
    if not plan.tuning_seeds:
        _report(connection, plan, number, cell, None, cell.around)
        return
    if not (scores := scores_of(connection, number)):
        for step in first_steps(plan.tries):
            _try(connection, plan, number, cell, step)
        scores = scores_of(connection, number)
    while (made := decision(scores, plan, cell.larger)) is not None and made.added is not None:
        _try(connection, plan, number, cell, made.added)
        scores = scores_of(connection, number)
    if made is not None and made.best is not None:
        _report(connection, plan, number, cell, made.best, rate_at(cell.around, plan.factor, made.best))


def _try(connection: Connection, plan: Plan, number: int, cell: Cell, step: int) -> None:
    rate = rate_at(cell.around, plan.factor, step)
    _put(connection, number, cell, TUNING, step, rate, plan.tuning_seeds, plan.split)


def _report(connection: Connection, plan: Plan, number: int, cell: Cell, step: int | None, rate: float) -> None:
    _put(connection, number, cell, REPORT, step, rate, plan.seeds, None)


def _put(
    connection: Connection,
    number: int,
    cell: Cell,
    stage: str,
    step: int | None,
    rate: float,
    seeds: Iterable[int],
    split: float | None,
) -> None:
    for seed in seeds:
        run = cell.run(stage, rate, seed, split)
        content = {"id": run.id, "config": canonical(run.config), "state": WAITING}
        connection.execute(upsert(runs).values(content).on_conflict_do_nothing())
        where = {"cell": number, "stage": stage, "step": step, "rate": rate, "seed": seed, "run": run.id}
        connection.execute(upsert(places).values(where).on_conflict_do_nothing())


def _fact(connection: Connection, name: str) -> str | None:
    found: str | None = connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar()
    return found


_JSON = ("config", "origin")


def _columns(cell: Cell) -> dict[str, Any]:
    return {key: canonical(value) if key in _JSON else value for key, value in vars(cell).items()}


def _cell(found: Mapping[Any, Any]) -> Cell:
    values = {key: json.loads(value) if key in _JSON else value for key, value in found.items() if key != "id"}
    return Cell(**values | {"larger": bool(values["larger"])})
