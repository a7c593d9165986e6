"""Measurements: times interleaved step by step, bytes kept for the backward pass, operations, peak memory."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, addmm_flop

from ..extras import needs
from ..provenance import peak_memory
from . import device
from .arms import FLOOR, Arm, Bench, build
from .choices import BenchPrecision
from .settings import ModelShape

WARM_UP = 2


class Ratio(NamedTuple):
    """The median of pairwise ratios with the interval that covers the true median with 95 percent."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float], others: Sequence[float]) -> Ratio:
        """Return the ratio of times to others taken in the same rounds."""
        ratios = sorted(own / other for own, other in zip(times, others, strict=True))
        return cls(statistics.median(ratios), *_median_interval(ratios))


def _median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Return the order statistics between which the median lies, by the binomial distribution."""
    needs("the interval of a measurement", "train", "scipy")
    from scipy.stats import binom

    below = int(binom.ppf(0.025, len(ordered), 0.5))
    return ordered[max(below - 1, 0)], ordered[min(len(ordered) - below, len(ordered) - 1)]


def interleaved(
    steps: Mapping[str, Callable[[], object]], rounds: int, on_progress: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Return the seconds of each step in each round; every round runs each step once, in rotating order."""
    names = list(steps)
    found: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(WARM_UP + rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                taken = device.seconds(steps[name])
                if number >= WARM_UP:
                    found[name].append(taken)
            gc.collect()
            on_progress()
    finally:
        if collecting:
            gc.enable()
    return found


def saved_bytes(bench: Bench) -> int:
    """Return the bytes that a forward pass keeps for the backward pass: each storage once, without parameters."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*bench.model.parameters(), *bench.model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            storage = part.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage  # held, so that no other tensor can reuse the address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = bench.loss()
    total = sum(storage.nbytes() for storage in kept.values())
    del loss
    return total


def flops(bench: Bench) -> int:
    """Return the floating-point operations of the products in a forward and a backward pass."""

    def added_in_place(self_shape: Any, a_shape: Any, b_shape: Any, **kwargs: Any) -> int:
        count: int = addmm_flop(self_shape, a_shape, b_shape)
        return count

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_in_place}) as counter:
        bench.loss().backward()
    bench.optimizer.zero_grad()
    total: int = counter.get_total_flops()
    return total


def begun(bench: Bench) -> int:
    """Return the number of operations that torch launches in a forward and a backward pass, including views."""
    count = len(device.operations(lambda: bench.loss().backward()))
    bench.optimizer.zero_grad()
    return count


def peak(bench: Bench, shape: ModelShape, precision: BenchPrecision, count: int) -> float:
    """Return the peak memory in MiB.

    On an accelerator, that of a step beyond the model's own; otherwise the resident memory of a process that only runs
    three steps.
    """
    found = device.peak_mib(bench.step)
    return _resident(bench.arm, shape, precision, count) if found is None else found


def _resident(arm: Arm, shape: ModelShape, precision: BenchPrecision, count: int) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        megabytes: float = pool.apply(_peak, (arm, shape, precision, count))
    return megabytes


def _peak(arm: Arm, shape: ModelShape, precision: BenchPrecision, count: int) -> float:
    warnings.filterwarnings("ignore", module="transformers|peft|torch")  # a new process does not have it
    torch.set_num_threads(count)
    bench = build(arm, shape.model(precision), shape, precision)
    for _ in range(3):
        bench.step()
    status = Path("/proc/self/status")
    if status.is_file():  # the high-water mark of this process alone; the other count starts with the parent's
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return float(line.split()[1]) / 2**10
    return peak_memory()


class Measurement(NamedTuple):
    """The measurements of an arm: times as ratios, the rest in its own unit."""

    arm: Arm
    seconds: float
    to_floor: Ratio
    to_peft: Ratio | None
    saved_mib: float
    gflops: float
    operations: int
    build_seconds: float
    peak_mib: float | None
    trainable: int

    def plain(self) -> dict[str, Any]:
        """Return the row as data for JSON."""
        return self._asdict() | {"arm": str(self.arm), "source": self.arm.source, "rank": self.arm.rank}


def table(
    shape: ModelShape,
    chosen: Sequence[Arm],
    precision: BenchPrecision,
    rounds: int,
    memory: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """Measure arms in one run.

    Args:
        shape: the model and the batch.
        chosen: the arms; the floor is the first.
        precision: the number format.
        rounds: steps of each arm, after the warm-up.
        memory: also measure each arm's peak memory.
        on_progress: called after each round.
    """
    assert chosen[0] == FLOOR
    base = shape.model(precision)
    benches = {str(arm): build(arm, base, shape, precision) for arm in chosen}
    seconds = interleaved({name: bench.step for name, bench in benches.items()}, rounds, on_progress)
    rows = []
    for name, bench in benches.items():
        other = str(replace(bench.arm, source="peft")) if bench.arm.source == "ours" else ""
        rows.append(
            Measurement(
                arm=bench.arm,
                seconds=statistics.median(seconds[name]),
                to_floor=Ratio.of(seconds[name], seconds[str(FLOOR)]),
                to_peft=Ratio.of(seconds[name], seconds[other]) if other in seconds else None,
                saved_mib=saved_bytes(bench) / 2**20,
                gflops=flops(bench) / 1e9,
                operations=begun(bench),
                build_seconds=bench.build_seconds,
                peak_mib=peak(bench, shape, precision, torch.get_num_threads()) if memory else None,
                trainable=sum(p.numel() for p in bench.model.parameters() if p.requires_grad),
            )
        )
    return rows
