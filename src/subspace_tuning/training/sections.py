"""The typed sections of a run's config, which together determine the outcome.

They are plain dataclasses, so that a run can be written in Python as well as in YAML. Their fields are documented here,
or in ``SubspaceConfig`` if it has the field: ``help``, ``subspace train --template`` and the settings page use these
texts.
"""

# ruff: noqa: RUF009 (the calls in the classes create fields)
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING as MISSING

from ..documented import Range, documented
from ..models.quantise import Quantise
from .keys import COUNT, FROM_ZERO, POSITIVE, SHARE, key, of_config
from .task_section import TaskSection as TaskSection

FULL = "full"
"""The `adapter.method` that trains every weight of the model."""
HEAD = "head"
"""The `adapter.method` that trains only the head."""
DERIVED = "derived"
"""The `training.learning_rate` that follows from the formula."""


class Precision(Enum):
    """The number format of the computation. The weights and the optimiser's state are float32 in each."""

    auto = "auto"  # bfloat16 if the processor or accelerator has instructions for it, otherwise float32
    float32 = "float32"
    bfloat16 = "bfloat16"  # autocast
    float16 = "float16"  # autocast with a loss scaler, on an accelerator


class Scheduler(Enum):
    """The learning-rate scheduler after the warm-up."""

    linear = "linear"
    cosine = "cosine"
    polynomial = "polynomial"
    constant = "constant"


class Keep(Enum):
    """The weights saved at the end: those of the last step, or of the evaluation with the best primary figure."""

    last = "last"
    best = "best"


class Device(Enum):
    """The device; `auto` uses an accelerator if there is one."""

    auto = "auto"
    cpu = "cpu"


@documented
@dataclass
class AdapterSection:
    """The method, by name or as a formula, with fields of ``SubspaceConfig``, whose defaults apply to null."""

    method: str | None = of_config(
        "method", "the name of a method, including peft's own; full trains every weight, head only the head"
    )
    formula: str | None = of_config("formula")
    peft: dict[str, Any] | None = key(
        None,
        "instead of a method: a config of peft's own as {peft_type: LORA, r: 8, ...}, with its type and its fields",
    )
    starts: dict[str, str] | None = of_config("starts")
    r: int | None = of_config("r")
    alpha: float | None = of_config("alpha")
    rank_stabilised: bool | None = of_config("rank_stabilised")
    dropout: float | None = of_config("dropout")
    pattern: str | None = of_config("pattern")
    pattern_weight: float | None = of_config("pattern_weight")
    pattern_reduction: str | None = of_config("pattern_reduction")
    nonlinearity: str | None = of_config("nonlinearity")
    gate_weight: float | None = of_config("gate_weight")
    budget: int | float | None = of_config("budget")
    parameters: str | None = key(
        None, "instead of r or budget: the size closest to 300k parameters, or to 0.3permille of the model"
    )
    schedule: dict[str, float] | None = of_config("schedule")
    calibration_rows: int | None = key(
        None, "the number of training rows from which methods such as fishmask choose what to train; null: 64", COUNT
    )
    target_modules: list[str] | str | None = of_config("target_modules")
    target_parameters: list[str] | None = of_config("target_parameters")
    transposed_parameters: list[str] | None = of_config("transposed_parameters")
    parts: dict[str, list[str]] | None = of_config("parts")
    exclude_modules: list[str] | str | None = of_config("exclude_modules")
    layers_to_transform: list[int] | None = of_config("layers_to_transform")
    layers_pattern: str | None = of_config("layers_pattern")
    rank_pattern: dict[str, int] | None = of_config("rank_pattern")
    alpha_pattern: dict[str, float] | None = of_config("alpha_pattern")
    new_tokens: list[str] | None = key(
        None, "texts that become one token each, whose embeddings are trained beside the adapter"
    )
    head: list[str] | None = key(
        None,
        "the modules trained beside the adapter; null: the model's classification head and pooler; none in a language "
        "model",
    )

    @property
    def name(self) -> str:
        """The method's name, the formula, or the type of peft's config."""
        return self.method or self.formula or f"peft {(self.peft or {}).get('peft_type')}"


@documented
@dataclass
class TrainingSection:
    """The optimisation."""

    learning_rate: int | float | str | None = key(
        None,
        "the peak learning rate; derived: the one that follows from the formula; null: the method's default, which is "
        "derived where sweeps support that",
        POSITIVE,
    )
    head_learning_rate: float | None = key(
        None,
        "the peak learning rate of the head, whose dense weights may need a lower one than trained scales; null: "
        "learning_rate, as in the paper, and 0.001 beside a derived one",
        POSITIVE,
    )
    lora_plus_ratio: float | None = key(
        None,
        "the learning rate of factors B, which lead back up from the rank, relative to the others (LoRA+); null: 1",
        POSITIVE,
    )
    rates: dict[str, float] | None = key(
        None, "learning rates of single factors, as multiples of learning_rate: {factor: multiple}"
    )
    epochs: int = key(3, "passes over the training rows, unless max_steps is set", COUNT)
    max_steps: int | None = key(None, "optimiser steps, instead of epochs", COUNT)
    batch_size: int = key(32, "rows per forward pass", COUNT)
    eval_batch_size: int = key(64, "rows per forward pass in evaluation", COUNT)
    gradient_accumulation: int = key(1, "forward passes per optimiser step", COUNT)
    warmup_ratio: float = key(0.06, "the share of all steps in which the learning rate rises from zero", SHARE)
    scheduler: Scheduler = key(Scheduler.linear, "the learning-rate scheduler after the warm-up")
    weight_decay: float = key(0.0, "the weight decay of AdamW, which pulls a factor towards its start", FROM_ZERO)
    max_grad_norm: float = key(1.0, "the norm to which all gradients together are clipped; 0: no clipping", FROM_ZERO)
    label_smoothing: float = key(0.0, "the share of a label spread evenly over all classes", SHARE)
    seed: int = key(0, "the seed for the head, the factors and the order of rows", Range(below=2**32))  # numpy's range
    group_by_length: bool = key(True, "form batches of rows of similar length, which saves padding")
    gradient_checkpointing: bool = key(False, "save memory at the cost of a second forward pass")
    compile: bool = key(
        False,
        "compile the steps with torch.compile: the first steps take minutes, dropout draws different masks, and "
        "otherwise results are equal up to rounding",
    )
    save_steps: int = key(0, "steps between checkpoints within an epoch; 0: none", FROM_ZERO)
    eval_steps: int = key(0, "steps between evaluations within an epoch, each with a checkpoint; 0: none", FROM_ZERO)
    eval_on_start: bool = key(False, "also score the validation rows before the first step")
    patience: int | None = key(
        None, "stop after this many evaluations in a row without a better validation figure; needs keep=best", COUNT
    )
    log_steps: int = key(0, "steps between logged losses; 0: one per epoch", FROM_ZERO)
    report_to: list[str] | None = key(
        None, "where losses and figures are also sent: tensorboard, wandb, or another reporter of transformers"
    )
    keep: Keep = key(Keep.last, "save the weights of the last step, or of the evaluation with the best figure")
    threads: int | None = key(
        None,
        "the number of threads; null: torch's choice. Results are equal bit for bit only for the same number",
        Range(positive=True, below=4097),
    )
    precision: Precision = key(
        Precision.auto,
        "the precision of products; weights and the optimiser's state are always float32. auto is bfloat16 if the "
        "machine has instructions for it; float16 scales the loss and needs an accelerator",
    )
    device: Device = key(Device.auto, "auto uses an accelerator if there is one")


@documented
@dataclass
class RunConfig:
    """One run."""

    model: str = key(MISSING, "a hub name, a local folder, or minilm")
    output: str = key(MISSING, "the folder for the results")
    quantise: Quantise | None = key(
        None,
        "store the frozen weights of linear layers outside the head in fewer bits: nf4, fp4 and int8 by bitsandbytes, "
        "torchao_int8 by torchao, qlora for nf4 with double quantisation and, on a CUDA device, a paged optimiser; "
        "null: float32",
    )
    task: TaskSection = field(default_factory=TaskSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    training: TrainingSection = field(default_factory=TrainingSection)

    def resolved(self) -> dict[str, Any]:
        """Return all values as plain data for YAML and JSON, from which `load` makes an equal config."""
        return {str(key): value for key, value in _plain(dataclasses.asdict(self)).items()}


SECTIONS = {"task": TaskSection, "adapter": AdapterSection, "training": TrainingSection}
"""The sections of a run's config, by their keys."""


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
