"""How a module stores its frozen weight: as a plain tensor, one that must be fetched, or one that cannot be read.

DeepSpeed's ZeRO-3 keeps a part of each weight in each process; accelerate's offloading keeps it in memory or on disk
until the module runs. Both can be fetched. Quantised weights are behind a door (see ``quantised``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook, remove_hook_from_module
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from ..errors import SubspaceError
from .quantised import door_of

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Attributes of quantised layers in place of, or beside, a weight: GPTQ, AWQ, HQQ, EETQ, AQLM, VPTQ,
# compressed-tensors, the block-wise FP8 and MX formats, bitsandbytes and torch's own.
_QUANTISED = (
    "qweight",
    "W_q",
    "quant_state",
    "SCB",
    "codebooks",
    "centroids",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_scales",
    "zero_point",
)


def check_weight(module: nn.Module, name: str) -> None:
    """Raise SubspaceError if a module's weight is not a plain tensor of floating-point numbers."""
    weight, kind = getattr(module, "weight", None), type(module).__name__
    if isinstance(weight, Tensor) and is_lazy(weight):
        raise SubspaceError(f"{name}: the {kind} has no weight yet; run the model once, then adapt it")
    if isinstance(weight, DTensor):
        raise SubspaceError(f"{name}: the weight is already sharded; add the adapter first, then shard the model")
    door = door_of(module)
    if door is not None:
        if door.problem() is not None:
            raise SubspaceError(f"{name}: the {kind} {door.problem()}")
        return
    form = _quantised_form(module, weight)
    if form is not None:
        raise SubspaceError(
            f"{name} is a {kind} whose weight is quantised or packed in an unknown way ({form}): load "
            "the model without quantization_config, or dequantise it first"
        )
    if isinstance(weight, Tensor) and weight.dtype not in _DTYPES:
        raise SubspaceError(f"{name}: the {kind}'s weight holds {weight.dtype}, not floating-point numbers")
    if isinstance(weight, Tensor) and weight.layout != torch.strided:
        raise SubspaceError(f"{name}: the {kind}'s weight is stored as {weight.layout}; call to_dense() on it first")


def _quantised_form(module: nn.Module, weight: Any) -> str | None:
    """Return the evidence that a weight is not stored as plain numbers, or None."""
    if isinstance(weight, Tensor) and type(weight) not in (Tensor, nn.Parameter) and not hasattr(weight, "ds_id"):
        return f"a {type(weight).__name__}"  # a subclass may look like float32 and hold anything
    for attribute in _QUANTISED:
        if getattr(module, attribute, None) is not None:
            return f"it has {attribute}"
    if isinstance(weight, Tensor) and not (weight.dtype in _DTYPES or weight.is_complex()):
        return str(weight.dtype)
    return None


# Partitioned and offloaded weights


def is_partitioned(weight: Tensor | None) -> bool:
    """Return whether ZeRO-3 has partitioned this weight, so that it is empty here."""
    status = getattr(weight, "ds_status", None)
    return status is not None and status.name == "NOT_AVAILABLE"


def outline(weight: Tensor) -> Tensor:
    """Return a tensor of a weight's full shape: the weight, or one without storage if ZeRO-3 has partitioned it."""
    return torch.empty(weight.ds_shape, dtype=weight.dtype, device="meta") if is_partitioned(weight) else weight  # type: ignore[attr-defined]


def is_offloaded(module: nn.Module) -> bool:
    """Return whether accelerate has offloaded the module's tensors until the module runs."""
    return _offloading_hook(module) is not None


def check_writable(module: nn.Module) -> None:
    """Raise SubspaceError if a module's weight cannot be replaced by a merged one."""
    if is_offloaded(module):
        raise SubspaceError("the weight is offloaded, so it cannot be merged into: load the model without offloading")
    if is_partitioned(getattr(module, "weight", None)):
        raise SubspaceError(
            "ZeRO-3 has partitioned the weight, so it cannot be merged into: save the adapter, merge it in one process"
        )


def check_at_hand(module: nn.Module, name: str) -> None:
    """Raise SubspaceError if a module's weight is not whole in this process, so that its gradient cannot be read."""
    if is_offloaded(module) or is_partitioned(getattr(module, "weight", None)):
        where = "offloaded" if is_offloaded(module) else "partitioned by ZeRO-3"
        raise SubspaceError(f"{name}: the weight is {where}, so its gradient cannot be read; calibrate the whole model")


def check_gradient(module: nn.Module, name: str) -> None:
    """Raise SubspaceError if a module's weight has no gradient because it is quantised."""
    if (door := door_of(module)) is not None:
        raise SubspaceError(
            f"{name}: the weight is quantised ({door.library}), so it has no gradient to choose by: calibrate the "
            "model in its original precision, and use that config"
        )


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Make the module's tensors whole, on the device where it runs, during the body.

    Under ZeRO-3 every process must enter, since each holds a part.
    """
    with ExitStack() as stack:
        parts = [parameter for parameter in module.parameters() if is_partitioned(parameter)]
        if parts:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(parts))
        for part in module.modules():
            if (hook := _offloading_hook(part)) is not None:
                stack.enter_context(_onloaded(part, hook))
        yield


def agree(parameters: Iterable[Tensor], constants: Iterable[Tensor], name: str) -> None:
    """Broadcast what the first process has drawn for a module.

    Raises:
        SubspaceError: a parameter has no entries, for example because a method chose none in this matrix; ZeRO-3 cannot
            handle empty parameters.
    """
    tensors = [*parameters]
    if not all(parameter.numel() for parameter in tensors):
        raise SubspaceError(
            f"{name}: nothing is trained there, and ZeRO-3 needs parameters with entries: leave the module out of "
            "target_modules"
        )
    tensors += constants
    nccl = torch.distributed.get_backend() == "nccl"  # without gloo, it accepts no CPU tensors
    for tensor in tensors:
        shared = (tensor.data.cuda() if nccl else tensor.data).contiguous()
        torch.distributed.broadcast(shared, 0)
        tensor.data.copy_(shared)


def bring_back(layer: nn.Module, base: nn.Module) -> None:
    """Stop offloading the factors: they are small, and only the base layer is worth offloading.

    Raises:
        SubspaceError: the factors train. An optimiser would hold the offloaded tensors and change nothing.
    """
    kept = set(base.modules())
    for part in layer.modules():
        hook = None if part in kept else _offloading_hook(part)
        if hook is None:
            continue
        if (
            torch.is_grad_enabled()
            and any(parameter.requires_grad for parameter in part.parameters())
            and part.training
        ):
            raise SubspaceError(
                "the factors of the adapter were offloaded, so training would not reach them: offload the base model "
                "before the adapter is added"
            )
        hook.pre_forward(part)
        hook.offload = False
        remove_hook_from_module(part)


@contextmanager
def _onloaded(module: nn.Module, hook: AlignDevicesHook) -> Iterator[None]:
    hook.pre_forward(module)
    hook.offload = False  # calls of the module in the body find and leave its tensors there
    try:
        yield
    finally:
        hook.offload = True
        hook.post_forward(module, None)


def _offloading_hook(module: nn.Module) -> AlignDevicesHook | None:
    hook = module.__dict__.get("_hf_hook")
    if hook is None:
        return None
    for own in hook.hooks if isinstance(hook, SequentialHook) else (hook,):
        if isinstance(own, AlignDevicesHook) and own.offload:
            return own
    return None
