"""What a run is: typed sections of a config, which together decide the outcome.

They are plain dataclasses, so that a run can be written in Python as well as in YAML.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

FULL = "full"
"""The `adapter.method` that trains every weight of the model."""
HEAD = "head"
"""The `adapter.method` that trains the head and nothing else."""


class Precision(Enum):
    """The number format of the computation. The weights and the optimiser's state are float32 in each."""

    auto = "auto"  # bfloat16 where the processor or accelerator has instructions for it, else float32
    float32 = "float32"
    bfloat16 = "bfloat16"  # autocast


class Scheduler(Enum):
    """How the learning rate goes on after the warm-up."""

    linear = "linear"
    cosine = "cosine"
    polynomial = "polynomial"
    constant = "constant"


class Keep(Enum):
    """Which weights are saved at the end: those of the last step, or of the epoch with the best primary figure."""

    last = "last"
    best = "best"


class Device(Enum):
    """Where to compute; `auto` takes an accelerator where there is one."""

    auto = "auto"
    cpu = "cpu"


@dataclass
class TaskSection:
    """The data. `max_length` counts tokens; `train_rows` and `eval_rows` keep only the first rows of a split."""

    name: str = MISSING
    data: str = "glue"
    max_length: int = 128
    train_rows: int | None = None
    eval_rows: int | None = None


@dataclass
class AdapterSection:
    """The method, by name (`full` and `head` among them) or as a formula, with the fields of `SubspaceConfig`.

    A field left at null has the default of `SubspaceConfig`. `head` names the modules trained beside the adapter;
    null stands for the model's classification head and pooler. `calibration_rows` are the training rows from which
    methods such as fishmask choose what to train; null stands for 64. `parameters` sizes the method instead of `r` or
    `budget`: the rank, or the number of entries, that comes nearest to "300k" or "0.3permille" of the model.
    """

    method: str | None = None
    formula: str | None = None
    starts: dict[str, str] | None = None
    r: int | None = None
    alpha: float | None = None
    rank_stabilised: bool | None = None
    dropout: float | None = None
    pattern: str | None = None
    pattern_weight: float | None = None
    pattern_reduction: str | None = None
    nonlinearity: str | None = None
    gate_weight: float | None = None
    budget: int | float | None = None
    parameters: str | None = None
    schedule: dict[str, float] | None = None
    calibration_rows: int | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | None = None
    layers_pattern: str | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    head: list[str] | None = None


@dataclass
class TrainingSection:
    """The optimisation.

    Attributes:
        learning_rate: the peak; null stands for the method's own default, which is scaled by nothing.
        lora_plus_ratio: the rate of every factor B over that of A (LoRA+); null stands for 1.
        head_learning_rate: the peak for the head; null stands for `learning_rate`, as in the paper. The rates that
            suit trained scales are too high for a head of dense weights.
        epochs: passes over the training rows, unless `max_steps` (optimiser steps) is given.
        batch_size: rows per forward pass; times `gradient_accumulation` makes the rows per optimiser step.
        warmup_ratio: the share of all steps in which the rate rises from zero.
        max_grad_norm: the gradients' joint norm is clipped to this; 0 for no clipping.
        group_by_length: form batches of rows of like length, which saves padding.
        compile: let torch.compile make the steps' code. The first steps take minutes, and dropout draws other masks
            than without; else results are equal up to rounding.
        save_steps: number of steps between checkpoints within an epoch; 0 for none.
        threads: threads to compute with; null leaves it to torch. Results are equal bit for bit only for equal threads.
    """

    learning_rate: float | None = None
    head_learning_rate: float | None = None
    lora_plus_ratio: float | None = None
    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 32
    eval_batch_size: int = 64
    gradient_accumulation: int = 1
    warmup_ratio: float = 0.06
    scheduler: Scheduler = Scheduler.linear
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0
    group_by_length: bool = True
    gradient_checkpointing: bool = False
    compile: bool = False
    save_steps: int = 0
    keep: Keep = Keep.last
    threads: int | None = None
    precision: Precision = Precision.auto
    device: Device = Device.auto


@dataclass
class RunConfig:
    """One run. `model` is a hub name, a local folder, or "minilm"; `output` is the folder that gets the results."""

    model: str = MISSING
    output: str = MISSING
    task: TaskSection = field(default_factory=TaskSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    training: TrainingSection = field(default_factory=TrainingSection)

    def resolved(self) -> dict[str, Any]:
        """All values as plain data, fit for YAML and JSON; `load` reads them back to an equal config."""
        return {str(key): value for key, value in _plain(dataclasses.asdict(self)).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
