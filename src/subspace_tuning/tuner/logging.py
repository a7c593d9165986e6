"""Logs the penalty and the task's loss separately in a Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .loss import add_penalty, passes
from .penalties import penalised, penalty
from .reached import record


class PenaltyCallback(TrainerCallback):
    """Logs the ``penalty`` beside the loss, and the ``task_loss`` without it if the loss contains it.

    Both are means over the optimiser steps since the last log, like the Trainer's ``loss``; like it, they start over
    when a run is resumed from a checkpoint. Each evaluation also logs ``eval_penalty``, the penalty of the current
    factors; ``eval_loss`` never contains it.

    Examples:
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
        """Keep the penalty of this step, at the factors used in its loss."""
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
        """Add the figures to the log and to the Trainer's history."""
        figures: dict[str, float] = {}
        if logs is None:
            return
        if "loss" in logs and self._values:
            figures["penalty"] = float(torch.stack(self._values).mean())
            if self._in_loss:
                figures["task_loss"] = logs["loss"] - figures["penalty"]
            self._values.clear()
        if any(name.startswith("eval_") for name in logs) and any(penalised(self.model)):
            figures["eval_penalty"] = float(self._now())
        logs.update(figures)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(figures)

    def _value(self) -> Tensor:
        """Return the penalty of the last training pass, or compute it."""
        roots = (module for module in self.model.modules() if add_penalty in module._forward_hooks.values())
        known = [passes(root).last for root in roots]
        if known and all(value is not None for value in known):
            return torch.stack([value.cpu() for value in known if value is not None]).sum()
        return self._now()

    def _now(self) -> Tensor:
        with torch.no_grad():
            return penalty(self.model).cpu()
