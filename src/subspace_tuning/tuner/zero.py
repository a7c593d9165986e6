"""Factors under DeepSpeed's ZeRO-1 and ZeRO-2, whose optimiser holds flat parts of them in float32.

A parameter's ``_hp_mapping`` says which part of it this process steps, and where it stands in the optimiser's flat
tensor; it is None in a process that steps no part of it.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def in_zero(parameter: Tensor) -> bool:
    """Whether ZeRO-1 or ZeRO-2 steps a parameter."""
    return hasattr(parameter, "_hp_mapping")


def stepped_elsewhere(parameter: Tensor) -> bool:
    """Whether other processes step all of a parameter, so that no optimiser is seen to step it here."""
    return in_zero(parameter) and getattr(parameter, "_hp_mapping", None) is None


def read(parameter: Tensor) -> Tensor:
    """Return the master copy of a parameter, gathered from all processes."""
    value: Tensor = importlib.import_module("deepspeed.utils").safe_get_full_fp32_param(parameter)
    return value


def write(parameter: Tensor, value: Tensor) -> None:
    """Overwrite a parameter and its master copy."""
    importlib.import_module("deepspeed.utils").safe_set_full_fp32_param(parameter, value.float())
    parameter.data.copy_(value)


def gradient_part(parameter: Tensor, optimizer: Optimizer) -> tuple[Tensor, int, int] | None:
    """Return this process's part of a gradient, as a view, with its place in the flattened parameter.

    To be asked before a step of the inner optimiser; None if that optimiser steps no part of the parameter here.
    """
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    for group in optimizer.param_groups:
        for flat in group["params"]:
            if flat.grad is not None and _shares_memory(mapping.hp_fragment, flat):
                there, here = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
                return flat.grad.narrow(0, there.start, there.numel), here.start, here.numel
    return None


def summed(parameter: Tensor, part: tuple[Tensor, int] | None) -> Tensor:
    """Return the whole of a gradient from every process's part of it; every process has to ask."""
    total = torch.zeros(parameter.numel(), device=parameter.device)
    if part is not None:
        total.narrow(0, part[1], len(part[0])).copy_(part[0])
    torch.distributed.all_reduce(total, group=getattr(parameter, "_dp_group", None))
    return total.view(parameter.shape)


def forget(parameter: Tensor, moved: Tensor) -> None:
    """Zero what the optimiser remembers of some entries of a parameter, in this process's part of it."""
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    if mapping is not None:
        here = mapping.lp_fragment_address
        part = moved.flatten().narrow(0, here.start, here.numel)
        for held in (mapping.optim_fragment or {}).values():
            held.masked_fill_(part.to(held.device), 0.0)


def _shares_memory(fragment: Tensor, flat: Tensor) -> bool:
    return fragment.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
