"""The grid of a comparison: its cells, each a row on a task, a model and a budget, and the runs of a cell."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from .. import tasks
from ..errors import SubspaceError
from ..models.meta import architecture_of
from ..training.config import from_values
from ..training.sections import RunConfig, TaskSection
from .config import check_budget, check_rate
from .identity import code, model_digest, run_id
from .rates import Middles
from .sections import DERIVED, CompareConfig
from .sizes import budget_of, size_of

TUNING, REPORT = "tuning", "report"
"""The stages of a comparison: runs that choose a rate, and runs that are reported."""

_NOWHERE = "unused"  # a run's output is chosen when it starts
_OF_A_ROW = ("around", "training")


@dataclass(frozen=True)
class Cell:
    """A row on one task, model and budget.

    Attributes:
        row: the row's name.
        method: the method's name, or the formula.
        task: the task's name in the comparison.
        model: the model.
        budget: the number of parameters that the row's count comes closest to; None for the row as given.
        trained: the parameters that it trains outside the head.
        around: the middle of its grid of learning rates.
        larger: whether a larger score is better.
        config: the resolved config of its runs, but for the seed, the rate and the split for tuning.
        origin: the digests of its data, its model and the code.
    """

    row: str
    method: str
    task: str
    model: str
    budget: int | None
    trained: int
    around: float
    larger: bool
    config: Mapping[str, Any]
    origin: Mapping[str, Any]

    def run(self, stage: str, rate: float, seed: int, split: float | None = None) -> Run:
        """Return a run of the cell; `split` is the share of the training rows that a run for tuning is scored on."""
        config = copy.deepcopy(dict(self.config))
        config["training"] |= {"seed": seed, "learning_rate": rate}
        config["task"] |= {"tuning_split": split}
        return Run(run_id(config, self.origin), stage, rate, seed, config)


@dataclass(frozen=True)
class Run:
    """One run of a cell: its identity, its place in the grid, and its resolved train config without an output."""

    id: str
    stage: str
    rate: float
    seed: int
    config: Mapping[str, Any]


def cells(config: CompareConfig) -> list[Cell]:
    """Return the cells of a comparison. Data are read, and models are built without their weights.

    Raises:
        SubspaceError: a row, a task or a model cannot be used; the message names it.
    """
    middles = Middles()
    return [
        cell for task in config.tasks for model in config.models for cell in _cells_on(config, task, model, middles)
    ]


def _cells_on(config: CompareConfig, task: str, model: str, middles: Middles) -> Iterator[Cell]:
    first = _run_config(config, next(iter(config.rows)), task, model)
    larger, data = _data(task, first.task, model, None if config.tuning is None else config.tuning.split)
    architecture = architecture_of(model)
    origin = {"data": data, "model": model_digest(model), "code": code()}
    for budget in config.budgets:
        check_budget(budget)
        number = budget_of(architecture, budget)
        for row in config.rows:
            run = _run_config(config, row, task, model)
            with _about(f"row {row!r} on model {model!r}"):
                adapter, trained = size_of(architecture, run.adapter, number)
                run = replace(run, adapter=adapter)
                around = _around(config, row, run, middles)
            yield Cell(row, adapter.name, task, model, number, trained, around, larger, run.resolved(), origin)


def _run_config(config: CompareConfig, row: str, task: str, model: str) -> RunConfig:
    """Return the config of a row's runs on a task, checked as that of a run. Raises SubspaceError with their names."""
    base, own = config.base, dict(config.rows[row] or {})
    # One thread unless the config says otherwise: then a result does not depend on the number of workers.
    training = {"threads": 1, **(base.get("training") or {}), **(own.get("training") or {})}
    adapter = {key: value for key, value in own.items() if key not in _OF_A_ROW}
    values = {
        "model": model,
        "output": _NOWHERE,
        "quantise": base.get("quantise"),
        "task": {"name": task, **(base.get("task") or {}), **(config.tasks[task] or {})},
        "adapter": {**(base.get("adapter") or {}), **adapter},
        "training": training,
    }
    with _about(f"row {row!r} on task {task!r}"):
        return from_values("its config", values)


def _around(config: CompareConfig, row: str, run: RunConfig, middles: Middles) -> float:
    given = (config.rows[row] or {}).get("around")
    if given is None:
        given = DERIVED if config.tuning is None else config.tuning.rates.around
    check_rate(f"rows.{row}.around", given)
    fixed = run.training.learning_rate
    if isinstance(fixed, str):
        raise SubspaceError(f"rows.{row}: a comparison takes no training.learning_rate={fixed}: give a number")
    if config.tuning is None and fixed is not None:
        return float(fixed)
    return middles.of(run.model, run.adapter) if given == DERIVED else float(given)


def _data(name: str, section: TaskSection, model: str, split: float | None) -> tuple[bool, dict[str, Any]]:
    """Return whether a larger score of a task is better, and the number and the digest of the rows of each split."""
    with _about(f"task {name!r}"):
        task = tasks.get(section.name).configured(section.options).for_model(architecture_of(model))
        task, rows = task.prepare(section.data, train_rows=section.train_rows, eval_rows=section.eval_rows)
        if split is not None:
            tasks.for_tuning(task, rows, split)  # refuses too few rows
        found = {name: {"rows": len(part), "sha256": part.fingerprint()} for name, part in rows.items()}
    return task.larger_is_better, found


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Name what is being looked at in an error."""
    try:
        yield
    except SubspaceError as error:
        raise SubspaceError(f"{what}: {error}") from error
