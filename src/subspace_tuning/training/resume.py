"""Checks of a training checkpoint before anything in it is used.

The Trainer skips a missing optimiser state and only logs missing weights, and would thus reach other weights than an
uninterrupted run. Missing or damaged files, or those of another model, are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Trainer, TrainerState

from ..errors import SubspaceError, reading
from ..jobs.fields import Fields, check_fields
from . import processes, zero
from .folder import step_of

_STATE = "trainer_state.json"
_ADAPTER, _MODEL = "adapter_model.safetensors", "model.safetensors"
_OPTIMISER = ("optimizer.pt", "scheduler.pt")
_FSDP = ("pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt")
_ZERO = ("latest", "scheduler.pt")  # and a folder with a file of every process
_FIELDS: Fields = {
    "global_step": int,
    "max_steps": int,
    "num_train_epochs": int,
    "epoch": float,
    "log_history": list,
    "stateful_callbacks": {"TrainerControl": {"args": {"should_training_stop": bool}}},
}

HINT = "remove the checkpoint to resume from the one before it, or use --overwrite to start again"
"""The way out if a checkpoint cannot be used."""


def check_checkpoint(folder: Path, trainer: Trainer, steps: int) -> TrainerState:
    """Return the state of a checkpoint from which `trainer` can resume.

    Args:
        folder: the checkpoint.
        trainer: the trainer, with the model for the weights.
        steps: the optimiser steps of the whole run.

    Raises:
        SubspaceError: a file is missing or damaged, or belongs to another model or run.
    """
    state = _state(folder, steps)
    assert isinstance(trainer.model, nn.Module)
    ended = has_ended(state)
    wanted = [] if ended else [folder]
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        wanted.append(Path(state.best_model_checkpoint))
    for checkpoint in wanted or [folder]:
        check_weights(checkpoint, trainer.model)
    if not ended:
        optimiser = _FSDP if processes.uses_fsdp() else _ZERO if zero.is_asked() else _OPTIMISER
        for file in folder.glob("global_step*/*.pt"):
            if not is_zipfile(file):
                raise SubspaceError(f"{file} is damaged: {HINT}")
        for name in (*optimiser, *map(random_state, range(processes.count()))):
            if not (folder / name).is_file():
                raise SubspaceError(f"{folder} has no {name}: {HINT}")
    return state


def random_state(process: int) -> str:
    """Return the name of the file with the random state of a process of the run."""
    return "rng_state.pth" if processes.count() == 1 else f"rng_state_{process}.pth"


def has_ended(state: TrainerState) -> bool:
    """Whether training had ended at a checkpoint: with its last step, or since no evaluation was better for long."""
    callbacks: Any = state.stateful_callbacks
    return callbacks["TrainerControl"]["args"]["should_training_stop"] or state.global_step >= state.max_steps


def _state(folder: Path, steps: int) -> TrainerState:
    path = folder / _STATE
    with reading(str(path), HINT):
        content = json.loads(path.read_text(encoding="utf-8"))
        check_fields(content, _FIELDS)
        if not all(isinstance(entry, dict) for entry in content["log_history"]):
            raise ValueError("log_history is not a list of objects")
        best = content.get("best_model_checkpoint")
        if best is not None and not isinstance(best, str):
            raise ValueError("best_model_checkpoint is not a string")
        if content["global_step"] != step_of(folder):
            raise ValueError(f"it belongs to step {content['global_step']}")
        if content["max_steps"] != steps or not 0 < content["global_step"] <= steps:
            raise ValueError(f"it belongs to a run of {content['max_steps']} steps, and this run has {steps}")
        state: TrainerState = TrainerState.load_from_json(str(path))
    return state


def check_weights(folder: Path, model: nn.Module) -> None:
    """Raise SubspaceError if a checkpoint lacks a tensor of the model's saved state, or has one of another shape."""
    adapter = isinstance(model, PeftModel)
    path = folder / (_ADAPTER if adapter else _MODEL)
    if not path.is_file():
        raise SubspaceError(f"{folder} has no {path.name}: {HINT}")
    with reading(str(path), HINT), safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # not a mapping
    wanted: Mapping[str, Tensor] = get_peft_model_state_dict(model) if adapter else model.state_dict()
    for names in _aliases(wanted):
        held = next((name for name in names if name in found), None)
        if held is None:
            raise SubspaceError(f"{path} lacks {names[0]}: {HINT}")
        if found[held] != tuple(wanted[held].shape):
            raise SubspaceError(
                f"{path}: {held} is {list(found[held])}, and the model has {list(wanted[held].shape)}: {HINT}"
            )


def _aliases(tensors: Mapping[str, Tensor]) -> Iterable[list[str]]:
    """Return the names of each tensor: of those that share memory, one is saved."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() and not tensor.is_meta else name
        groups.setdefault(place, []).append(name)
    return groups.values()


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if the state loaded by an optimiser does not fit its parameters.

    torch accepts states of any shapes, and fails in the first step.
    """
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, Tensor):
            raise ValueError("it has the state of a parameter that is in no group")
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} is {list(value.shape)}, and its parameter {list(parameter.shape)}")
