"""Finished runs that one model holds, and what each of them answers by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from subspace_tuning.training import use
from subspace_tuning.training.run import run
from subspace_tuning.training.sections import (
    AdapterSection,
    Device,
    Precision,
    RunConfig,
    TaskSection,
    TrainingSection,
)


def trained(folder: Path, model: Path, task: TaskSection, adapter: AdapterSection, seed: int = 0) -> Path:
    """Train for two steps, with a head of its own by seed; return the run's folder."""
    training = TrainingSection(
        learning_rate=0.05,
        max_steps=2,
        batch_size=16,
        seed=seed,
        threads=1,
        device=Device.cpu,
        precision=Precision.float32,
    )
    config = RunConfig(model=str(model), output=str(folder), task=task, adapter=adapter, training=training)
    run(config, progress=False)
    return folder


_finished = cache(use.finished)


def alone(folder: Path, *columns: Sequence[str]) -> list[dict[str, Any]]:
    """What a run answers to rows by itself."""
    made = _finished(folder)
    return made.task.answers(use.outputs_of(made, made.task.rows_of(*columns), batch_size=1))


def close(value: Any) -> Any:
    """The value, with numbers that equal others up to rounding."""
    if isinstance(value, dict):
        return {name: close(one) for name, one in value.items()}
    if isinstance(value, list):
        return [close(one) for one in value]
    return pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value
