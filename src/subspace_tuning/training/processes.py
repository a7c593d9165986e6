"""A run in several processes of a launcher: all of them agree, and the first one owns the output folder.

The processes load the data and the model alike, from the seed. Errors and decisions travel between them, so that all go
on or all end: see `together` and `decided`. In a single process these functions only call their argument.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TypeVar

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading
from torch import distributed as dist

from ..errors import ReportedElsewhereError, SubspaceError, described
from . import zero
from .sections import Precision

T = TypeVar("T")

_MEGATRON = "ACCELERATE_USE_MEGATRON_LM"


def count() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if _several() else 1


def is_first() -> bool:
    """Return whether this process owns the output folder and prints."""
    return not _several() or dist.get_rank() == 0


@contextmanager
def together() -> Iterator[None]:
    """Go on after the body once every process has come through it; a collective call.

    Raises:
        Exception: that of the body, in the first of the processes in which it fails.
        ReportedElsewhereError: the body failed, in the other processes.
    """
    if not _several():
        yield
        return
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = _shared(error is not None)
    if error is not None and failed.index(True) == dist.get_rank():
        raise error
    if any(failed):
        raise ReportedElsewhereError(f"process {failed.index(True)} of the run has failed") from error


def decided(work: Callable[[], T]) -> T:
    """Return what `work` returns in the first process, which alone calls it: plain data; a collective call.

    Raises:
        Exception: that of `work`, in the first process.
        ReportedElsewhereError: `work` failed, in the other processes.
    """
    if not _several():
        return work()
    made = None
    with together():
        if is_first():
            made = work()
    return _shared(made)[0]  # type: ignore[return-value]


@contextmanager
def owned(context: AbstractContextManager[None]) -> Iterator[None]:
    """Enter a context in the first process, and hold it there during the body of all."""
    with ExitStack() as stack:
        decided(lambda: stack.enter_context(context))
        yield


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun or accelerate has started, if any, for the body. All but the first are silent.

    After an error the processes stay joined: the others may be waiting, and end with their launcher.

    Raises:
        SubspaceError: the processes do not find each other.
    """
    wanted = os.environ.get("WORLD_SIZE", "1")
    if dist.is_initialized() or not wanted.isdigit() or int(wanted) < 2:
        yield
        return
    try:
        dist.init_process_group(_backend())
    except (ValueError, RuntimeError) as error:
        raise SubspaceError(
            f"WORLD_SIZE is {wanted}, but the processes do not find each other: {described(error)}; start them with "
            "torchrun or accelerate launch"
        ) from error
    with nullcontext() if is_first() else _silence():
        yield
    dist.destroy_process_group()


def uses_fsdp() -> bool:
    """Return whether the launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def sharding() -> str | None:
    """Return what divides the weights among the processes, if the launcher asks for it: FSDP or ZeRO-3."""
    return "FSDP" if uses_fsdp() else "ZeRO-3" if zero.stage() == 3 else None


def check_launcher(*, cpu: bool, quantised: bool, precision: Precision) -> None:
    """Refuse what the launcher asks for if a run cannot have it, and settle how FSDP loads and saves.

    Call it before anything else of the run.

    Args:
        cpu: whether the run is on the CPU.
        quantised: whether the frozen weights are.
        precision: that of the products.

    Raises:
        SubspaceError: the launcher asks for another library, for FSDP1, or for FSDP or DeepSpeed where a run cannot
            have them.
    """
    if os.environ.get(_MEGATRON, "false").lower() == "true":
        raise SubspaceError(
            "`subspace train` does not run under Megatron-LM: launch it without, with FSDP2 (--use_fsdp --fsdp_version "
            "2), or with DeepSpeed (--use_deepspeed)"
        )
    if zero.is_asked():
        zero.check(precision)
        if count() == 1:
            raise SubspaceError("DeepSpeed's ZeRO divides among several processes, and there is one: launch without it")
    if quantised and (by := sharding()):
        raise SubspaceError(f"quantise is set, and {by} does not divide quantised weights: launch without it")
    if not uses_fsdp():
        return
    if os.environ.get("FSDP_VERSION") != "2":
        raise SubspaceError("`subspace train` does not run under FSDP1: add --fsdp_version 2 to accelerate launch")
    if PartialState(cpu=cpu).distributed_type in (DistributedType.MULTI_CPU, DistributedType.NO):
        raise SubspaceError(
            "accelerate shards nothing here, since its FSDP needs several processes on accelerators: launch without "
            "--use_fsdp"
        )
    disable_fsdp_ram_efficient_loading()  # every process needs W, from which factors and constants start
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"  # so that checkpoints hold whole adapters


def _backend() -> str:
    """Return the backends of a process group, after choosing this process's accelerator, if there is one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "gloo"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.accelerator.set_device_index(local % torch.accelerator.device_count())
    return f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator.type)}"


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _shared(own: T) -> list[T]:
    """Return what each process gives."""
    found: list[T] = [own] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


@contextmanager
def _silence() -> Iterator[None]:
    """Drop warnings and log messages, of which the first process shows its own."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
