"""Schedules on a model: their sites, and how a training loop calls them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import SubspaceError
from ..methods.schedules import SCHEDULES, Context, NoSchedule, Options, Schedule
from .config import SubspaceConfig
from .layer import SubspaceLayer
from .optimizer_step import install
from .saving import expect_steps, on_save
from .sites import LayerSite
from .walking import layers_of


def schedule(
    model: nn.Module,
    total_steps: int,
    scores: Callable[[], Mapping[str, Tensor]] | None = None,
    adapter_name: str = "default",
) -> Schedule:
    """Return the schedule of an adapter for a run of this many optimiser steps; it does nothing if its method has none.

    Examples:
        >>> factor_schedule = schedule(model, total_steps=1000)
        >>> for step in range(1, 1001):
        ...     loss.backward(); optimizer.step()
        ...     factor_schedule.step(step, optimizer)
        ...     optimizer.zero_grad()

    Args:
        model: a model from ``get_peft_model``.
        total_steps: the optimiser steps of the run.
        scores: for schedules that move masks: Fisher information by module name (see ``Context``), on this process's
            examples; the schedule averages over processes.
        adapter_name: the adapter.

    Raises:
        SubspaceError: the schedule is longer than the run, or needs ``scores``.
    """
    config = config_of(model, adapter_name)
    if config is None or config.resolved.schedule is None:
        return NoSchedule(Context((), total_steps), Options())
    options = config.schedule_options
    assert options is not None
    averaged = None if scores is None else partial(_mean_over_processes, scores)
    made = SCHEDULES[config.resolved.schedule](Context(sites(model, adapter_name), total_steps, averaged), options)
    expect_steps(config, made)
    install()
    return made


class ScheduleCallback(TrainerCallback):
    """Runs the schedule of an adapter in a Trainer of transformers.

    The schedule's state is a file beside the adapter in each of the Trainer's checkpoints, written before the Trainer's
    own state, which completes a checkpoint.

    Examples:
        >>> trainer = Trainer(model, ..., callbacks=[ScheduleCallback(model)])

    Args:
        model: the model that the Trainer trains.
        scores: as for ``schedule``.
        adapter_name: the adapter.
        checkpoint: the folder from which the Trainer resumes, if it is neither in the Trainer's ``output_dir`` nor in
            its original place.
    """

    def __init__(
        self,
        model: nn.Module,
        scores: Callable[[], Mapping[str, Tensor]] | None = None,
        adapter_name: str = "default",
        checkpoint: str | Path | None = None,
    ) -> None:
        self.model, self.scores, self.adapter_name, self.checkpoint = model, scores, adapter_name, checkpoint
        self.schedule: Schedule = NoSchedule(Context((), 0), Options())
        self._state: TrainerState | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Create the schedule, and restore its state if the Trainer resumes from a checkpoint."""
        self.schedule = schedule(self.model, state.max_steps, self.scores, self.adapter_name)
        if isinstance(self.schedule, NoSchedule):
            return
        if state.global_step:
            restore(self.schedule, self._resumed_from(args, state), self._key(state))
        self._state = state
        config = config_of(self.model, self.adapter_name)
        assert config is not None
        on_save(config, self._save)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act after an optimiser step, before its gradients are cleared."""
        needed = {"optimizer": kwargs.get("optimizer")} if self.schedule.moves_entries else {}
        self.schedule.step(state.global_step + 1, **needed)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop saving the schedule's state with the adapter."""
        self._state = None

    def _save(self, folder: Path) -> None:
        """Write the schedule's state beside the adapter, and record its key in the Trainer's state."""
        if self._state is None or not self._state.is_world_process_zero:
            return
        key = keep(self.schedule, folder)
        self._state.stateful_callbacks = {  # type: ignore[assignment]
            **(self._state.stateful_callbacks or {}),  # type: ignore[dict-item]
            f"schedule of {self.adapter_name}": {"key": key, "folder": str(folder.resolve())},
        }

    def _noted(self, state: TrainerState) -> dict[str, str]:
        held: Any = state.stateful_callbacks or {}
        found = held.get(f"schedule of {self.adapter_name}", {})
        return found if isinstance(found, dict) else {}

    def _key(self, state: TrainerState) -> str | None:
        return self._noted(state).get("key")

    def _resumed_from(self, args: TrainingArguments, state: TrainerState) -> list[Path]:
        """Return where the Trainer's checkpoint may be; the Trainer itself does not say."""
        written = self._noted(state).get("folder")
        given = [self.checkpoint, args.resume_from_checkpoint if args.resume_from_checkpoint != "True" else None]
        given += [Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", written]
        folders = [Path(folder) for folder in given if folder]
        inside = [] if self.adapter_name == "default" else [folder / self.adapter_name for folder in folders]
        return [*inside, *folders]


STATE = "schedule.safetensors"


def keep(factor_schedule: Schedule, folder: Path) -> str:
    """Write a schedule's state to a checkpoint's folder, and return its key."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in factor_schedule.state_dict().items()}
    key = uuid.uuid4().hex
    save_file(tensors, folder / STATE, metadata={"key": key})
    return key


def restore(factor_schedule: Schedule, folders: Path | Sequence[Path], key: str | None = None) -> None:
    """Restore what ``keep`` wrote, from the first folder that has it (with this key, if given).

    Raises:
        SubspaceError: no folder has it.
    """
    folders = [folders] if isinstance(folders, Path) else folders
    for folder in folders:
        if (folder / STATE).is_file():
            with safe_open(folder / STATE, framework="pt") as file:
                if key is None or (file.metadata() or {}).get("key") == key:
                    factor_schedule.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                    return
    which = f"no {STATE}" if key is None else f"no {STATE} of this run"
    raise SubspaceError(
        f"{folders[0]} has {which}: the schedule cannot be resumed; give the folder from which the Trainer "
        "resumes as ScheduleCallback(model, checkpoint=...)"
    )


def sites(model: nn.Module, adapter_name: str = "default") -> list[LayerSite]:
    """Return the adapted matrices of an adapter."""
    return [
        site for name, layer in adapted(model, adapter_name).items() for site in LayerSite.of(name, layer, adapter_name)
    ]


def _mean_over_processes(scores: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return the mean of scores over the processes, so that all choose alike; a collective call."""
    own = scores()
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return own
    mean = {name: tensor.clone() for name, tensor in own.items()}
    for tensor in mean.values():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return mean


def adapted(model: nn.Module, adapter_name: str = "default") -> dict[str, SubspaceLayer]:
    """Return the layers that have an adapter, by name."""
    return {name: layer for name, layer in layers_of(model) if adapter_name in layer.adapters}


def config_of(model: nn.Module, adapter_name: str = "default") -> SubspaceConfig | None:
    """Return the config of an adapter, or None if it is not one of this package's."""
    tuner = next((module for module in model.modules() if isinstance(module, BaseTuner)), None)
    config = None if tuner is None else tuner.peft_config.get(adapter_name)
    if tuner is not None and config is None:
        raise SubspaceError(f"the model has no adapter {adapter_name!r}")
    return config if isinstance(config, SubspaceConfig) else None
