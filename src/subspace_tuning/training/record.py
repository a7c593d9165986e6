"""The record of a run: its config, its provenance, and its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from transformers import TrainerState

from ..provenance import peak_memory, provenance
from ..tasks import Task
from .attach import Counts
from .callbacks import NO_FIGURES
from .rate import Rate
from .sections import Keep, RunConfig


def build(
    config: RunConfig,
    task: Task[Any],
    counts: Counts,
    rate: Rate,
    history: list[dict[str, float]],
    baseline: Mapping[str, float],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the record as plain data.

    Args:
        config: the run.
        task: its task.
        counts: the parameter counts.
        rate: the learning rate used.
        history: the evaluations in order.
        baseline: the figures of a constant prediction.
        extra: further entries, such as "seconds" and "steps".
    """
    key = task.primary_key
    before, history = history[: history[0]["step"] == 0], history[history[0]["step"] == 0 :]
    best = (max if task.larger_is_better else min)(history, key=lambda entry: entry[key])
    kept = best if config.training.keep is Keep.best else history[-1]
    return {
        "config": config.resolved(),
        "task": task.name,
        "method": config.adapter.name,
        "metric": key,
        "score": kept[key],
        "score_interval": [kept[f"{key}_low"], kept[f"{key}_high"]],
        "baseline_score": baseline[key],
        "parameters": asdict(counts),
        **rate.recorded(),
        "final": history[-1],
        "best": best,
        "baseline": dict(baseline),
        "before": before[0] if before else None,
        "history": history,
        **extra,
        "peak_memory_mib": round(peak_memory()),
        **provenance(),
    }


def history(state: TrainerState) -> list[dict[str, float]]:
    """Return the evaluations of a run in order: epoch, step, loss, penalty if there is one, and the task's figures."""
    by_step: dict[int, dict[str, float]] = {}
    for entry in state.log_history:
        figures = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
        figures = {key: value for key, value in figures.items() if not key.endswith(NO_FIGURES)}
        if figures:
            step = int(entry["step"])
            epoch = float(entry.get("epoch", 0))  # before the first step there is none
            by_step.setdefault(step, {"epoch": epoch, "step": step}).update(figures)
    return [by_step[step] for step in sorted(by_step)]
