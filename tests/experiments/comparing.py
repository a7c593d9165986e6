"""A comparison without training: runs whose scores are a function of their config."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from subspace_tuning.comparison import work
from subspace_tuning.comparison.database import Database
from subspace_tuning.comparison.grid import Cell
from subspace_tuning.comparison.leases import Lease, Result
from subspace_tuning.comparison.planning import place
from subspace_tuning.comparison.sections import CompareConfig, RatesSection, TuningSection
from subspace_tuning.training.sections import AdapterSection, RunConfig, TaskSection

ORIGIN = {"data": {"train": {"rows": 48, "sha256": "0"}}, "model": "0", "code": {}}


def comparison(store: Path, **changes: Any) -> CompareConfig:
    """A comparison with these fields; its rows are made by ``cells_of``."""
    rates = RatesSection(0.01, 2.0, 3)
    tuning = changes.pop("tuning", TuningSection([7, 8], 0.25, 2, rates))
    return CompareConfig(str(store), {}, {}, [], seeds=changes.pop("seeds", [1, 2]), tuning=tuning, **changes)


def cells_of(*rows: str, budgets: Sequence[int | None] = (None,)) -> list[Cell]:
    """A cell for each row and budget; "fixed" is the same run at every budget."""
    made = []
    for budget in budgets:
        for row in rows:
            r = None if row == "fixed" or budget is None else budget
            run = RunConfig("tiny", "unused", task=TaskSection("cola"), adapter=AdapterSection("lora", r=r))
            run.training.weight_decay = float(len(row))  # so that rows differ
            made.append(Cell(row, "lora", "cola", "tiny", budget, 100, 0.01, True, run.resolved(), ORIGIN))
    return made


def planned(store: Path, cells: Sequence[Cell], **changes: Any) -> Database:
    """A store with a comparison of these cells."""
    database = Database(store, create=True)
    place(database, comparison(store, **changes), cells)
    return database


def score_of(config: Any) -> float:
    """Best at four times the middle of the grid, and different for each row, rank and seed."""
    training, adapter = config["training"], config["adapter"]
    noise = math.sin(1000 * training["seed"] + 10 * training["weight_decay"] + (adapter["r"] or 0))
    return -abs(math.log2(training["learning_rate"] / 0.04)) + 0.01 * noise


def result_of(lease: Lease) -> Result:
    """What a run's config makes of it."""
    score = score_of(lease.config)
    outcome = json.dumps({"predictions": [score, 1.0], "references": [0.0, 1.0]})
    return Result("score", score, {"score": score}, 100, 10, 1.0, 1.0, [(1, score)], outcome)


def without_training(log: Path | None = None, seconds: float = 0.0) -> Callable[[Lease, Path], Result]:
    """Stand in for training: takes a while in the run's folder, and writes the run's id to a log."""

    def train(lease: Lease, folder: Path) -> Result:
        folder.mkdir(parents=True, exist_ok=True)
        time.sleep(seconds)
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{lease.run}\n")
        return result_of(lease)

    return train


def do_all(database: Database) -> None:
    """Make every run of a store in this process."""
    work.work(database)
