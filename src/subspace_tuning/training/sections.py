"""What a run is: typed sections of a config, which together decide the outcome.

They are plain dataclasses, so that a run can be written in Python as well as in YAML. What their fields mean stands
here, or in ``SubspaceConfig`` where it has the field: ``help``, ``subspace train --template`` and the page of settings
take it from there.
"""

# ruff: noqa: RUF009 (the calls in the classes make fields)
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING as MISSING

from ..documented import Range, documented, settings
from ..models.quantise import Quantise
from ..tuner import SubspaceConfig

FULL = "full"
"""The `adapter.method` that trains every weight of the model."""
HEAD = "head"
"""The `adapter.method` that trains the head and nothing else."""

_COUNT = Range(positive=True, below=2**31)  # what is beyond is a slip of the keyboard, and overflows elsewhere
_POSITIVE = Range(positive=True)
_FROM_ZERO = Range()
_SHARE = Range(below=1)


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


def _key(default: Any, meaning: str, within: Range | None = None) -> Any:
    return field(default=default, metadata={"help": meaning, "range": within})


def _of_config(name: str, meaning: str | None = None) -> Any:
    """A field of ``SubspaceConfig``, whose default holds while it is null."""
    [known] = [one for one in settings(SubspaceConfig) if one.name == name]
    told = {"help": meaning or known.meaning.replace("None", "null"), "default": known.default}
    return field(default=None, metadata=told)


@documented
@dataclass
class TaskSection:
    """The data."""

    name: str = _key(
        MISSING,
        "the task: classification, regression, multi_label or token_classification of your own rows, one of GLUE's "
        "(mrpc, cola, ...), or one that your own module registers",
    )
    data: str = _key(
        "glue",
        "a file (.csv, .tsv, .jsonl, .json, .parquet), a folder with a train file and perhaps a validation file, a "
        "folder that datasets saved, or a name on the hub; for a GLUE task glue, the hub's, or a folder with "
        "train and validation files of the hub's columns",
    )
    max_length: int = _key(128, "tokens of a row; what is longer is cut", _COUNT)
    train_rows: int | None = _key(None, "keep only so many of the first training rows; null keeps all", _COUNT)
    eval_rows: int | None = _key(None, "keep only so many of the first validation rows; null keeps all", _COUNT)
    text: str | None = _key(
        None, "of your own rows the column of the text, or of the words; null stands for text, for words tokens"
    )
    text_pair: str | None = _key(None, "the column of a second text, if a row has two")
    label: str | None = _key(
        None, "of your own rows the column of the label; null stands for label, for the labels of words tags"
    )
    classes: list[str] | None = _key(
        None, "the names of the classes, in the order of their numbers; null stands for those of the training file"
    )
    separator: str | None = _key(
        None, "what stands between the labels of a row where they are one text; null stands for a comma"
    )
    class_weights: bool | None = _key(None, "whether a class counts in the loss the more, the rarer it is; null: no")
    validation: str | None = _key(None, "the validation rows, given as data is; null takes those of data")
    held_out: float | None = _key(
        None,
        "the share of the training rows that is held out to validate where there are no others; null stands for 0.2",
        Range(positive=True, below=1),
    )
    held_out_seed: int | None = _key(
        None, "by which they are drawn, whatever the seed of the training; null stands for 0", Range(below=2**32)
    )

    @property
    def options(self) -> dict[str, Any]:
        """What was given of the keys that only some tasks know."""
        common = ("name", "data", "max_length", "train_rows", "eval_rows")
        given = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {name: value for name, value in given.items() if value is not None and name not in common}


@documented
@dataclass
class AdapterSection:
    """The method, by name or as a formula, with fields of ``SubspaceConfig``, whose defaults hold for those at null."""

    method: str | None = _of_config(
        "method", "the name of a method, one of peft's own among them; full trains every weight, head the head alone"
    )
    formula: str | None = _of_config("formula")
    starts: dict[str, str] | None = _of_config("starts")
    r: int | None = _of_config("r")
    alpha: float | None = _of_config("alpha")
    rank_stabilised: bool | None = _of_config("rank_stabilised")
    dropout: float | None = _of_config("dropout")
    pattern: str | None = _of_config("pattern")
    pattern_weight: float | None = _of_config("pattern_weight")
    pattern_reduction: str | None = _of_config("pattern_reduction")
    nonlinearity: str | None = _of_config("nonlinearity")
    gate_weight: float | None = _of_config("gate_weight")
    budget: int | float | None = _of_config("budget")
    parameters: str | None = _key(
        None, "instead of r or budget: the size that comes nearest to 300k, or to 0.3permille of the model"
    )
    schedule: dict[str, float] | None = _of_config("schedule")
    calibration_rows: int | None = _key(
        None, "training rows from which methods such as fishmask choose what to train; null stands for 64", _COUNT
    )
    target_modules: list[str] | str | None = _of_config("target_modules")
    target_parameters: list[str] | None = _of_config("target_parameters")
    transposed_parameters: list[str] | None = _of_config("transposed_parameters")
    parts: dict[str, list[str]] | None = _of_config("parts")
    exclude_modules: list[str] | str | None = _of_config("exclude_modules")
    layers_to_transform: list[int] | None = _of_config("layers_to_transform")
    layers_pattern: str | None = _of_config("layers_pattern")
    rank_pattern: dict[str, int] | None = _of_config("rank_pattern")
    alpha_pattern: dict[str, float] | None = _of_config("alpha_pattern")
    head: list[str] | None = _key(
        None, "the modules trained beside the adapter; null stands for the model's classification head and pooler"
    )


@documented
@dataclass
class TrainingSection:
    """The optimisation."""

    learning_rate: float | None = _key(
        None, "the peak; null stands for the method's own default, which is scaled by nothing", _POSITIVE
    )
    head_learning_rate: float | None = _key(
        None,
        "the peak for the head, whose dense weights may want a lower one than trained scales; null stands for "
        "learning_rate, as in the paper",
        _POSITIVE,
    )
    lora_plus_ratio: float | None = _key(
        None,
        "the rate of every factor B, which leads up from the rank, over all else (LoRA+); null stands for 1",
        _POSITIVE,
    )
    epochs: int = _key(3, "passes over the training rows, unless max_steps is given", _COUNT)
    max_steps: int | None = _key(None, "optimiser steps, instead of epochs", _COUNT)
    batch_size: int = _key(32, "rows per forward pass", _COUNT)
    eval_batch_size: int = _key(64, "rows per forward pass in evaluation", _COUNT)
    gradient_accumulation: int = _key(1, "forward passes per optimiser step", _COUNT)
    warmup_ratio: float = _key(0.06, "the share of all steps in which the rate rises from zero", _SHARE)
    scheduler: Scheduler = _key(Scheduler.linear, "how the rate goes on after the warm-up")
    weight_decay: float = _key(0.0, "AdamW's; it pulls a factor to its start", _FROM_ZERO)
    max_grad_norm: float = _key(1.0, "the gradients' joint norm is clipped to this; 0 for no clipping", _FROM_ZERO)
    label_smoothing: float = _key(0.0, "the share of a label that goes to all classes alike", _SHARE)
    seed: int = _key(0, "of the head, the factors and the order of the rows", Range(below=2**32))  # numpy's range
    group_by_length: bool = _key(True, "form batches of rows of like length, which saves padding")
    gradient_checkpointing: bool = _key(False, "less memory, for a second forward pass")
    compile: bool = _key(
        False,
        "let torch.compile make the steps' code: the first steps take minutes, dropout draws other masks than without, "
        "else results are equal up to rounding",
    )
    save_steps: int = _key(0, "steps between checkpoints within an epoch; 0 for none", _FROM_ZERO)
    keep: Keep = _key(Keep.last, "save the weights of the last step, or of the epoch with the best validation figure")
    threads: int | None = _key(
        None,
        "threads to compute with; null leaves it to torch. Results are equal bit for bit only for equal threads",
        Range(positive=True, below=4097),
    )
    precision: Precision = _key(
        Precision.auto,
        "of the products; weights and the optimiser's state are float32 in any. auto is bfloat16 where the machine has "
        "instructions for it",
    )
    device: Device = _key(Device.auto, "auto takes an accelerator where there is one")


@documented
@dataclass
class RunConfig:
    """One run."""

    model: str = _key(MISSING, "a hub name, a local folder, or minilm")
    output: str = _key(MISSING, "the folder that gets the results")
    quantise: Quantise | None = _key(
        None,
        "hold the frozen weights of linear layers in fewer bits, those of the head excepted: nf4, fp4 and int8 by "
        "bitsandbytes, torchao_int8 by torchao, qlora for nf4 with double quantisation and, on a CUDA device, a paged "
        "optimiser; null keeps float32",
    )
    task: TaskSection = field(default_factory=TaskSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    training: TrainingSection = field(default_factory=TrainingSection)

    def resolved(self) -> dict[str, Any]:
        """All values as plain data, fit for YAML and JSON; `load` reads them back to an equal config."""
        return {str(key): value for key, value in _plain(dataclasses.asdict(self)).items()}


SECTIONS = {"task": TaskSection, "adapter": AdapterSection, "training": TrainingSection}
"""The sections of a run's config, by their keys."""


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
