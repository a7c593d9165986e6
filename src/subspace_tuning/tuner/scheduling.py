"""Schedules on a model: what they act on, and how a training loop calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import SubspaceError
from ..methods.schedules import SCHEDULES, Context, Schedule, Site
from .config import SubspaceConfig
from .layer import SubspaceLayer


def schedule(
    model: nn.Module,
    total_steps: int,
    scores: Callable[[], Mapping[str, Tensor]] | None = None,
    adapter_name: str = "default",
) -> Schedule | None:
    """Return the schedule of an adapter for a run of so many optimiser steps, None if its method has none.

    >>> plan = schedule(model, total_steps=1000)
    >>> for step in range(1, 1001):
    ...     loss.backward(); optimizer.step()
    ...     plan.step(step)
    ...     optimizer.zero_grad()

    Args:
        model: a model from ``get_peft_model``.
        total_steps: optimiser steps of the run.
        scores: for schedules that move masks: Fisher information by module name (see ``Context``).
        adapter_name: the adapter.

    Raises:
        SubspaceError: the schedule is longer than the run, or needs ``scores``.
    """
    config = config_of(model, adapter_name)
    if config is None or config.resolved.schedule is None:
        return None
    options = config.schedule_options
    assert options is not None
    context = Context(sites(model, adapter_name), total_steps, scores)
    return SCHEDULES[config.resolved.schedule](context, options)


class ScheduleCallback(TrainerCallback):
    """The schedule of an adapter in a Trainer of transformers; its state lies in the Trainer's checkpoints.

    >>> trainer = Trainer(model, ..., callbacks=[ScheduleCallback(model)])

    Args:
        model: the model that the Trainer trains.
        scores: as for ``schedule``.
        adapter_name: the adapter.
    """

    def __init__(
        self,
        model: nn.Module,
        scores: Callable[[], Mapping[str, Tensor]] | None = None,
        adapter_name: str = "default",
    ) -> None:
        self.model, self.scores, self.adapter_name = model, scores, adapter_name
        self.schedule: Schedule | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the schedule, and take up its state where the Trainer goes on from a checkpoint."""
        self.schedule = schedule(self.model, state.max_steps, self.scores, self.adapter_name)
        if self.schedule is not None and state.global_step:
            restore(self.schedule, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act after an optimiser step, while its gradients are there."""
        if self.schedule is not None:
            self.schedule.step(state.global_step + 1)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the state into the checkpoint."""
        if self.schedule is not None and state.is_world_process_zero:
            keep(self.schedule, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


STATE = "schedule.safetensors"


def keep(plan: Schedule, folder: Path) -> None:
    """Write what a schedule remembers into a checkpoint's folder."""
    save_file({name: tensor.contiguous() for name, tensor in plan.state_dict().items()}, folder / STATE)


def restore(plan: Schedule, folder: Path) -> None:
    """Take up what ``keep`` wrote. Raises SubspaceError if it is not there."""
    if not (folder / STATE).is_file():
        raise SubspaceError(f"{folder} has no {STATE}: the run cannot go on from there as it would have gone on")
    plan.load_state_dict(load_file(folder / STATE))


def sites(model: nn.Module, adapter_name: str = "default") -> list[Site]:
    """Return the adapted matrices of an adapter."""
    return [
        Site(
            name,
            layer.subspace_params[adapter_name],  # type: ignore[arg-type]
            layer.subspace_constants[adapter_name]._buffers,  # type: ignore[arg-type]
            layer.kind.matrix(layer.weight).detach(),
            layer.scaling[adapter_name],
            layer.r[adapter_name],
        )
        for name, layer in adapted(model, adapter_name).items()
    ]


def adapted(model: nn.Module, adapter_name: str = "default") -> dict[str, SubspaceLayer]:
    """Return the layers that have an adapter, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SubspaceLayer) and adapter_name in module.subspace_params
    }


def config_of(model: nn.Module, adapter_name: str = "default") -> SubspaceConfig | None:
    """Return the config of an adapter, None if it is not one of this package's."""
    tuner = next((module for module in model.modules() if isinstance(module, BaseTuner)), None)
    config = None if tuner is None else tuner.peft_config.get(adapter_name)
    if tuner is not None and config is None:
        raise SubspaceError(f"the model has no adapter {adapter_name!r}")
    return config if isinstance(config, SubspaceConfig) else None
