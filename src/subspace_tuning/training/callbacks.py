"""The Trainer's callbacks: checkpoints and evaluations within an epoch, the clock, the progress line."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, ProgressCallback

from .sampler import EpochSampler

NO_FIGURES = ("runtime", "per_second")  # the Trainer's own timings


INTERVAL = 0.5
"""Seconds between two changes of the progress line."""


def _within(state: TrainerState) -> bool:
    """Whether the last step ended neither an epoch nor the run."""
    return state.epoch is not None and not float(state.epoch).is_integer() and state.global_step < state.max_steps


class SaveWithinEpoch(TrainerCallback):
    """Requests a checkpoint every `steps` steps, except at the end of an epoch.

    There the Trainer saves after the evaluation: resuming from an earlier checkpoint would skip that evaluation.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if _within(state) and state.global_step % self.steps == 0:
            control.should_save = True


class EvaluateWithinEpoch(TrainerCallback):
    """Requests an evaluation with a checkpoint every `steps` steps, except at an epoch's end, which has its own."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if _within(state) and state.global_step % self.steps == 0:
            control.should_evaluate = control.should_save = True


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


class Losses(TrainerCallback, ExportableState):
    """The mean training loss of each hundredth of a run, over all parts of an interrupted run.

    The Trainer's own log starts its mean anew when it resumes.

    Args:
        points: the optimiser step at the end of each part, and the mean loss of its steps; None if it is not finite.
        total: the sum of the losses since the last point.
        steps: the number of steps since the last point.
    """

    PARTS = 100

    def __init__(
        self, points: Sequence[tuple[int, float | None]] = (), total: Tensor | float = 0.0, steps: int = 0
    ) -> None:
        self.points = [(step, loss) for step, loss in points]
        self.total = total
        self.steps = steps

    def add(self, loss: Tensor) -> None:
        """Add the loss of a batch; those of a step's batches are shares of the step's loss."""
        self.total = self.total + loss.detach().float()  # on its device: reading it would wait for an accelerator

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.steps += 1
        step = state.global_step
        if step % max(1, state.max_steps // self.PARTS) == 0 or step == state.max_steps:
            mean = float(self.total) / self.steps
            self.points.append((step, mean if math.isfinite(mean) else None))
            self.total, self.steps = 0.0, 0

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"args": {"points": self.points, "total": float(self.total), "steps": self.steps}, "attributes": {}}


class EpochOrder(TrainerCallback):
    """Sets the epoch of the sampler, which the Trainer does not reach when several processes resume within an epoch."""

    def __init__(self, order: EpochSampler) -> None:
        self.order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.order.set_epoch(int(state.epoch or 0))


class RecentBatches(TrainerCallback):
    """Clears the recorded batches at each optimiser step, for schedules that use them."""

    def __init__(self, recent: list[Any]) -> None:
        self.recent = recent

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.recent.clear()


@dataclass
class Pace:
    """What the progress line shows of a step: its loss, and its number of tokens including padding."""

    loss: Tensor | float = 0.0
    tokens: int = 0

    def add(self, loss: Tensor, inputs: Mapping[str, Any]) -> None:
        """Count a batch of the step with its share of the loss."""
        self.loss = self.loss + loss
        tokens = inputs.get("input_ids", inputs.get("labels"))
        self.tokens += 0 if tokens is None else tokens.numel()


class Progress(ProgressCallback):
    """One progress line with loss, learning rate and tokens per second, and a short line per evaluation."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace
        self._tokens = 0
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        bar: Any = self.training_bar
        self._tokens += self.pace.tokens
        seconds = time.perf_counter() - self._since
        if bar is not None and seconds > INTERVAL:  # reading the loss waits for an accelerator
            rate = kwargs["lr_scheduler"].get_last_lr()[0]
            shown = f"loss {float(self.pace.loss):.4f}, rate {rate:.2e}, {self._tokens / seconds:,.0f} tokens/s"
            bar.set_postfix_str(shown, refresh=False)
            self._tokens, self._since = 0, time.perf_counter()
        self.pace.loss, self.pace.tokens = 0.0, 0
        super().on_step_end(args, state, control, **kwargs)  # type: ignore[no-untyped-call]

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Show nothing: a second bar would appear below the line."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tokens, self._since = 0, time.perf_counter()  # tokens per second are those of training

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        figures = {key.removeprefix("eval_"): value for key, value in (logs or {}).items() if key.startswith("eval_")}
        shown = [f"{key} {value:.4f}" for key, value in figures.items() if not key.endswith(NO_FIGURES)]
        bar: Any = self.training_bar
        if shown and bar is not None:
            bar.write(f"epoch {state.epoch or 0:.4g} of {state.num_train_epochs}: {', '.join(shown)}")
