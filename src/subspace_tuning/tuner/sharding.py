"""Factors sharded over processes: their whole value, with a gradient that flows back to the shards."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from .walking import Outside, layers_of
from .weights import is_partitioned


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is sharded by FSDP2."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor, gathered from all processes if FSDP2 has sharded it; gradients flow back.

    The gradient of the shards is the mean over the processes, as for the rest of the model.
    """
    return _Whole.apply(tensor) if isinstance(tensor, DTensor) else tensor  # type: ignore[no-untyped-call]


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sharded: DTensor) -> Tensor:
        ctx.mesh, ctx.placements = sharded.device_mesh, sharded.placements
        return sharded.full_tensor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = DTensor.from_local(gradient / ctx.mesh.size(), ctx.mesh, [Partial()] * ctx.mesh.ndim, run_check=False)
        return summed.redistribute(placements=ctx.placements)


def write(tensor: Tensor, value: Tensor) -> None:
    """Overwrite a tensor, or this process's shard of it, with a whole value."""
    if isinstance(tensor, DTensor):
        replicated = DTensor.from_local(value.to(tensor.dtype), tensor.device_mesh, run_check=False)
        tensor.copy_(replicated.redistribute(placements=tensor.placements))
    else:
        tensor.copy_(value)


def partitioned(tensor: Tensor) -> bool:
    """Return whether DeepSpeed's ZeRO-3 has partitioned a parameter, so that its own storage is empty."""
    return hasattr(tensor, "ds_id")


def gathered(parameters: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """Return a context in which parameters partitioned by ZeRO-3 have their values."""
    # Those already gathered belong to a running module, which frees them itself.
    parts = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not parts:
        return nullcontext()
    zero = importlib.import_module("deepspeed").zero
    return zero.GatheredParameters(parts)  # type: ignore[no-any-return]


def leave_out_of_broadcasts(model: nn.Module, adapter: str) -> None:
    """Exclude constants computed from W from DistributedDataParallel, which broadcasts buffers in every pass.

    Buffers that are drawn or chosen from data are still broadcast, so that all processes have those of the first.
    """
    names = [
        f"{name}.subspace_constants.{adapter}.{key}"
        for name, layer in layers_of(model)
        if adapter in layer.adapters
        for key in layer.subspace_constants[adapter]._non_persistent_buffers_set
    ]
    if names:
        known = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
        both = [f"{prefix}{name}" for name in names for prefix in ("", "base_model.model.")]
        # torch marks the tensors as well, and looks up every name of the model in the list.
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(Outside(model, [adapter]), both)
        model._ddp_params_and_buffers_to_ignore = list(dict.fromkeys([*known, *both]))  # type: ignore[assignment]
