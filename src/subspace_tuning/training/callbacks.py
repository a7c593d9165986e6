"""The Trainer's callbacks: checkpoints within an epoch, the clock, a schedule's batches, progress bars."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, ProgressCallback

NO_FIGURES = ("runtime", "per_second")  # the Trainer's own timings


class SaveWithinEpoch(TrainerCallback):
    """Requests a checkpoint every `steps` steps, except at the end of an epoch.

    There the Trainer saves after the evaluation: resuming from an earlier checkpoint would skip that evaluation.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        within = state.epoch is not None and not float(state.epoch).is_integer() and state.global_step < state.max_steps
        if within and state.global_step % self.steps == 0:
            control.should_save = True


class Clock(TrainerCallback, ExportableState):
    """Counts the seconds of training and evaluation, over all parts of an interrupted run up to each checkpoint."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._since: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._since = time.perf_counter()

    def total(self) -> float:
        """Return the seconds so far."""
        return self.seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"args": {"seconds": self.total()}, "attributes": {}}


class RecentBatches(TrainerCallback):
    """Clears the recorded batches at each optimiser step, for schedules that use them."""

    def __init__(self, recent: list[Any]) -> None:
        self.recent = recent

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.recent.clear()


class Bars(ProgressCallback):
    """Shows progress bars, and one short line per evaluation instead of the Trainer's whole log."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        figures = {key.removeprefix("eval_"): value for key, value in (logs or {}).items() if key.startswith("eval_")}
        shown = [f"{key} {value:.4f}" for key, value in figures.items() if not key.endswith(NO_FIGURES)]
        bar: Any = self.training_bar
        if shown and bar is not None:
            bar.write(f"epoch {state.epoch:g} of {state.num_train_epochs}: {', '.join(shown)}")
