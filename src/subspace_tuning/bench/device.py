"""The measured device, an accelerator if there is one, and counters on it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from ..compat import TorchDispatchMode

HAS_ACCELERATOR = torch.accelerator.is_available()


def device() -> torch.device:
    """Return the accelerator, or the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else found


def wait() -> None:
    """Wait until the accelerator has finished all launched operations."""
    if HAS_ACCELERATOR:
        torch.accelerator.synchronize()


def seconds(step: Callable[[], object]) -> float:
    """Return the duration of a step, from an idle accelerator to an idle one."""
    wait()
    started = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - started


def peak_mib(step: Callable[[], object]) -> float | None:
    """Return the accelerator memory that a step needs beyond what is already allocated; None without an accelerator."""
    if not HAS_ACCELERATOR:
        return None
    gc.collect()
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats()
    held = torch.accelerator.memory_allocated()
    step()
    wait()
    return float(torch.accelerator.max_memory_allocated() - held) / 2**20


class Operations(TorchDispatchMode):
    """The names of the operations that torch's dispatcher launches, forward and backward, including views.

    When little is computed, launching them takes most of the time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(step: Callable[[], object]) -> list[str]:
    """Return the names of the operations that a step launches."""
    with Operations() as begun:
        step()
    names: list[str] = begun.names
    return names
