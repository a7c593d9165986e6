"""Factors under DeepSpeed's ZeRO, whose optimiser holds flat float32 partitions of them.

Under ZeRO-1 and ZeRO-2 a parameter's ``_hp_mapping`` gives the part of it that this process updates, or None. ZeRO-3
splits every parameter into equal parts, the last of them padded, and also partitions the parameter itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from .weights import is_partitioned, outline


class _Part(NamedTuple):
    """A process's part of a parameter: a view of the optimiser's flat tensor, and its place in the parameter."""

    master: Tensor
    start: int

    def of(self, flat: Tensor, like: Tensor) -> Tensor:
        """Return this part of a tensor with the layout of the optimiser's flat one, ``like``."""
        return flat.narrow(0, self.master.storage_offset() - like.storage_offset(), len(self.master))

    def within(self, flat: Tensor) -> bool:
        """Return whether the part belongs to this flat tensor."""
        first, size = flat.data_ptr(), flat.numel() * flat.element_size()
        return first <= self.master.data_ptr() < first + size


def in_zero(parameter: Tensor) -> bool:
    """Return whether a ZeRO optimiser updates a parameter."""
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "_z3_optimizer")


def stepped_elsewhere(parameter: Tensor) -> bool:
    """Return whether only other processes update a parameter, so that no optimiser here does."""
    return in_zero(parameter) and _part(parameter) is None


def read(parameter: Tensor) -> Tensor:
    """Return the master copy of a parameter, gathered from all processes."""
    value: Tensor = importlib.import_module("deepspeed.utils").safe_get_full_fp32_param(parameter)
    return value


def write(parameter: Tensor, value: Tensor) -> None:
    """Overwrite a parameter and its master copy."""
    part = _part(parameter)
    if part is not None:
        own = value.flatten().narrow(0, part.start, len(part.master))
        part.master.data.copy_(own)
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor.data.narrow(0, 0, len(own)).copy_(own)
    if not is_partitioned(parameter):
        parameter.data.copy_(value)


def gradient_part(parameter: Tensor, optimizer: Optimizer) -> tuple[Tensor, int] | None:
    """Return this process's part of a gradient, as a view, with its place in the flattened parameter.

    Call it before a step of the inner optimiser; None if that optimiser updates no part of the parameter here.
    """
    part = _part(parameter)
    if part is not None:
        for group in optimizer.param_groups:
            for flat in group["params"]:
                if flat.grad is not None and part.within(flat):
                    return part.of(flat.grad, flat), part.start
    return None


def summed(parameter: Tensor, part: tuple[Tensor, int] | None) -> Tensor:
    """Return a whole gradient, gathered from every process's part of it; a collective call."""
    shape = outline(parameter).shape
    total = torch.zeros(shape.numel(), device=parameter.device)
    if part is not None:
        total.narrow(0, part[1], len(part[0])).copy_(part[0])
    group = getattr(parameter, "ds_process_group" if hasattr(parameter, "_z3_optimizer") else "_dp_group")
    torch.distributed.all_reduce(total, group=group)
    return total.view(shape)


def forget(parameter: Tensor, moved: Tensor) -> None:
    """Zero the optimiser's state for some entries of a parameter, in this process's part of it."""
    part = _part(parameter)
    if part is not None:
        gone = moved.flatten().narrow(0, part.start, len(part.master))
        for held in _remembered(parameter, part):
            held.masked_fill_(gone.to(held.device), 0.0)


def _part(parameter: Tensor) -> _Part | None:
    """Return this process's part of a parameter, or None if it updates no part of it."""
    if hasattr(parameter, "_z3_optimizer"):
        padded = importlib.import_module("deepspeed.utils").safe_get_local_fp32_param(parameter)
        whole: int = parameter.ds_numel  # type: ignore[attr-defined]
        rank = torch.distributed.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
        start = min(rank * len(padded), whole)
        return _Part(padded.narrow(0, 0, min(len(padded), whole - start)), start)
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    return None if mapping is None else _Part(mapping.hp_fragment, mapping.lp_fragment_address.start)


def _remembered(parameter: Tensor, part: _Part) -> Iterable[Tensor]:
    """Yield this process's part of every running average of a parameter."""
    if not hasattr(parameter, "_z3_optimizer"):
        yield from (parameter._hp_mapping.optim_fragment or {}).values()  # type: ignore[attr-defined]
        return
    for flat, state in parameter._z3_optimizer.optimizer.state.items():
        if part.within(flat):
            yield from (
                part.of(held, flat) for held in state.values() if isinstance(held, Tensor) and held.shape == flat.shape
            )
