"""The arms of a benchmark: the methods that train the model, and their steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import peft
import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from .. import methods
from ..counting.count import budget_in, matched
from ..errors import SubspaceError
from ..tuner import SubspaceConfig
from ..tuner.calibration import calibrate
from ..tuner.targets import placement, targets
from .choices import BenchPrecision
from .settings import ModelShape, autocast, freeze, shared_copy, start_gradient_at_embeddings

Source = Literal["floor", "ours", "peft", "full"]
RATE = 1e-4  # small, so that no arm diverges

# peft's own version of a method: its config for a rank and target modules.
PEFT: dict[str, Callable[[int, list[str]], PeftConfig]] = {
    "lora": lambda r, names: peft.LoraConfig(r=r, lora_alpha=r, target_modules=names),
    "dora": lambda r, names: peft.LoraConfig(r=r, lora_alpha=r, target_modules=names, use_dora=True),
    "pissa": lambda r, names: peft.LoraConfig(r=r, lora_alpha=r, target_modules=names, init_lora_weights="pissa"),
    "adalora": lambda r, names: peft.AdaLoraConfig(
        init_r=r, target_r=r, lora_alpha=r, target_modules=names, total_step=10**6
    ),
    "ia3": lambda r, names: peft.IA3Config(target_modules=names, feedforward_modules=[]),
    "liera": lambda r, names: peft.HiraConfig(r=r, target_modules=names),
    "lokr": lambda r, names: peft.LoKrConfig(r=r, alpha=r, target_modules=names),
    "hra": lambda r, names: peft.HRAConfig(r=r, target_modules=names),
    "pafi": lambda r, names: peft.ShiraConfig(r=r, target_modules=names),
}


@dataclass(frozen=True)
class Arm:
    """One arm; ``name`` is a method, the floor or full tuning, and ``compiled`` says whether torch compiles it."""

    source: Source
    name: str
    rank: int = 8
    compiled: bool = False

    def __str__(self) -> str:
        notes = ["peft"] * (self.source == "peft") + ["compiled"] * self.compiled
        return f"{self.name} ({', '.join(notes)})" if notes else self.name


FLOOR = Arm("floor", "frozen floor")
FULL = Arm("full", "full fine-tuning")


def arms(
    names: Sequence[str], rank: int = 8, matching: tuple[ModelShape, str] | None = None, compiled: bool = False
) -> list[Arm]:
    """Return the floor, each method followed by peft's version if there is one, and full fine-tuning.

    Args:
        names: the methods.
        rank: the rank of all of them.
        matching: instead of the rank, a model shape and a parameter budget from which each method gets its own rank.
        compiled: add each arm compiled by torch.
    """
    found = [FLOOR]
    for name in names:
        if matching is not None:
            shape, budget = matching
            rank = matched(shape.config, SubspaceConfig(method=name), budget_in(shape.config, budget)).r
        found.append(Arm("ours", name, rank))
        if name in PEFT:
            found.append(Arm("peft", name, rank))
    found.append(FULL)
    return found + [replace(arm, compiled=True) for arm in found] if compiled else found


@dataclass
class Bench:
    """A runnable arm: ``step`` is a training step, ``loss`` its forward pass."""

    arm: Arm
    model: nn.Module
    inputs: dict[str, Tensor]
    precision: BenchPrecision
    build_seconds: float
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, fused=True)

    def loss(self) -> Tensor:
        with autocast(self.precision, next(self.model.parameters()).device):
            loss: Tensor = self.model(**self.inputs).loss
        return loss

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()


def build(arm: Arm, base: PreTrainedModel, shape: ModelShape, precision: BenchPrecision) -> Bench:
    """Make an arm on a base model, whose frozen weights it shares."""
    if arm.compiled:
        bench = build(replace(arm, compiled=False), base, shape, precision)
        started = time.perf_counter()
        bench.model.compile()
        bench.step()  # compiles the passes, which can take minutes
        return replace(bench, arm=arm, build_seconds=bench.build_seconds + time.perf_counter() - started)
    inputs = shape.inputs()
    if arm.source == "full":
        model: nn.Module = shape.model(precision)
        return Bench(arm, model, inputs, precision, 0.0)
    own = shared_copy(base)
    freeze(own)
    if arm.source == "floor":
        start_gradient_at_embeddings(own)
        return Bench(arm, own, inputs, precision, 0.0)
    config = _config(arm, own, inputs)
    started = time.perf_counter()
    if arm.source == "peft" and arm.name == "pissa":  # it writes into the base weights
        own = shape.model(precision)
    model = peft.get_peft_model(own, config)
    return Bench(arm, model, inputs, precision, time.perf_counter() - started)


def _config(arm: Arm, model: PreTrainedModel, inputs: dict[str, Tensor]) -> PeftConfig:
    config = SubspaceConfig(method=arm.name, r=arm.rank, alpha=arm.rank, task_type="SEQ_CLS")
    if arm.source == "ours":
        method = config.resolved
        return calibrate(model, config, [inputs]) if method.needs_calibration else config
    placed = SubspaceConfig(method=arm.name, r=arm.rank, target_modules=placement(model, config))
    made: PeftConfig = PEFT[arm.name](arm.rank, [name for name, _ in targets(model, placed)])
    made.task_type = peft.TaskType.SEQ_CLS
    return made


def default_methods() -> list[str]:
    """Return the methods of a table: all that need no data and change matrices by themselves."""
    # xattn adapts the cross-attention, which no model shape here has.
    return [known.name for known in methods.every() if not known.needs_calibration and known.name != "xattn"]


def check(names: Sequence[str]) -> None:
    """Raise SubspaceError for a name that is not a method of this package."""
    for name in names:
        if name in methods.HOSTED:
            raise SubspaceError(f"{name!r} is peft's own class here as well: there is nothing to compare")
        methods.get(name)
