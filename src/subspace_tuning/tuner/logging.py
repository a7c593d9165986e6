"""The penalty and the task's loss apart, in the logs of a Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .loss import add_penalty, passes
from .penalties import penalised, penalty
from .reached import record


class PenaltyCallback(TrainerCallback):
    """Logs the ``penalty`` beside the loss, and the ``task_loss`` without it where the loss contains it.

    Both are means over the optimiser steps since the last log, as the Trainer's ``loss`` is.

    >>> trainer = Trainer(model, ..., callbacks=[PenaltyCallback(model)])

    Args:
        model: the model that the Trainer trains.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._values: list[Tensor] = []
        self._in_loss = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the penalty of this step, at the factors that its loss was computed with."""
        sites = list(penalised(self.model))
        if sites:
            self._in_loss = any(record(site.layer).reached for site in sites)
            self._values.append(self._value())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the figures to what is logged, and to the history that the Trainer keeps."""
        if logs is None or "loss" not in logs or not self._values:
            return
        mean = float(torch.stack(self._values).mean())
        figures = {"penalty": mean} | ({"task_loss": logs["loss"] - mean} if self._in_loss else {})
        logs.update(figures)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(figures)
        self._values.clear()

    def _value(self) -> Tensor:
        """Return the penalty that the last training pass computed, or compute it."""
        roots = (module for module in self.model.modules() if add_penalty in module._forward_hooks.values())
        known = [passes(root).last for root in roots]
        if known and all(value is not None for value in known):
            return torch.stack([value.cpu() for value in known if value is not None]).sum()
        with torch.no_grad():
            return penalty(self.model).cpu()
