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

from ..documented import Range, documented, settings
from ..models.quantise import Quantise
from ..tuner import SubspaceConfig

FULL = "full"
"""The `adapter.method` that trains every weight of the model."""
HEAD = "head"
"""The `adapter.method` that trains only the head."""

_COUNT = Range(positive=True, below=2**31)  # larger values are typing errors, and overflow elsewhere
_POSITIVE = Range(positive=True)
_FROM_ZERO = Range()
_SHARE = Range(below=1)


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


def _key(default: Any, meaning: str, within: Range | None = None) -> Any:
    return field(default=default, metadata={"help": meaning, "range": within})


def _of_config(name: str, meaning: str | None = None) -> Any:
    """Return a field of ``SubspaceConfig``, whose default applies while it is null."""
    [known] = [one for one in settings(SubspaceConfig) if one.name == name]
    metadata = {"help": meaning or known.meaning.replace("None", "null"), "default": known.default}
    return field(default=None, metadata=metadata)


@documented
@dataclass
class TaskSection:
    """The data."""

    name: str = _key(
        MISSING,
        "the task: classification, regression, multi_label, token_classification, question_answering, generation, "
        "image_classification, instruction, commonsense or maths on your own rows, one of GLUE's (mrpc, cola, ...), or "
        "one that your own module registers",
    )
    data: str = _key(
        "glue",
        "a file (.csv, .tsv, .jsonl, .json, .parquet), a folder with a train file and perhaps a validation file, a "
        "folder saved by datasets, or a hub name; for images also a folder with a folder of images for each class, "
        "perhaps within folders train and validation; for a GLUE task: glue for the hub's data, or a folder with "
        "train and validation files with the hub's columns",
    )
    max_length: int = _key(
        128,
        "the most tokens of a row, or of an input for generation; longer rows are truncated, and the texts of "
        "question_answering are read in windows of this length",
        _COUNT,
    )
    train_rows: int | None = _key(None, "keep only this many of the first training rows; null: all", _COUNT)
    eval_rows: int | None = _key(None, "keep only this many of the first validation rows; null: all", _COUNT)
    text: str | None = _key(
        None,
        "for your own rows: the column of the text, the words, the context of a question, or the input; null: text, "
        "tokens, context or input; messages or prompt for instruction; instruction or question for commonsense and "
        "maths",
    )
    question: str | None = _key(None, "the column of the questions; null stands for question")
    image: str | None = _key(None, "the column of the image, if the rows are no folder of images; null: image")
    augment: list[str] | None = _key(
        None,
        "how training images vary in each epoch: crop cuts out at least half, flip mirrors half of them; null: not",
    )
    text_pair: str | None = _key(None, "the column of a second text, if a row has two")
    label: str | None = _key(
        None,
        "for your own rows: the column of the label, the labels of words, the answers, or the output; null: label, "
        "tags, answers or output; answer for instruction, commonsense and maths",
    )
    classes: list[str] | None = _key(
        None, "the names of the classes, in the order of their numbers; null: those in the training file"
    )
    separator: str | None = _key(None, "the separator between the labels of a row that are one text; null: a comma")
    class_weights: bool | None = _key(None, "give rarer classes more weight in the loss; null: no")
    template: str | None = _key(
        None,
        "for language models: the chat template: alpaca, own for the tokenizer's, a file in Jinja, or its text; "
        "null: own for instruction, alpaca for commonsense and maths",
    )
    packing: bool | None = _key(
        None, "for language models: pack several short rows into one; no row attends to another; null: no"
    )
    max_new_tokens: int | None = _key(
        None,
        "for language models: the most tokens that are generated per row; null: 256, for generation 64, for "
        "commonsense 32",
        _COUNT,
    )
    input: str | None = _key(
        None, "for commonsense and maths: the column of an instruction's optional input; null: input"
    )
    output: str | None = _key(
        None,
        "for commonsense and maths: the column of the text to learn; null: output, or the answer if there is no such "
        "column",
    )
    scoring: str | None = _key(
        None,
        "for commonsense: likelihood for the most probable choice, generation for the first choice that the generated "
        "text names; null: likelihood",
    )
    choices: list[str] | None = _key(
        None, "for commonsense: the choices for rows that name none; null: the answers in the training file"
    )
    stride: int | None = _key(
        None, "tokens shared by two windows of a context; null: a third of max_length", _FROM_ZERO
    )
    max_answer_tokens: int | None = _key(None, "the most tokens of an answer to a question; null: 30", _COUNT)
    n_best: int | None = _key(None, "how many answers to each question are reported; null: 5", _COUNT)
    prompt: str | None = _key(
        None,
        "for generation: the text that the model reads, with {input} in place of the input; null: the input alone, "
        "followed by a line break for a decoder-only model",
    )
    num_beams: int | None = _key(None, "beams of a beam search; null: 1, greedy decoding", _COUNT)
    validation: str | None = _key(None, "the validation rows, from any source that data takes; null: those of data")
    held_out: float | None = _key(
        None,
        "the share of the training rows held out for validation if there are no validation rows; null: 0.2",
        Range(positive=True, below=1),
    )
    held_out_seed: int | None = _key(
        None, "the seed with which held-out rows are drawn, independent of training.seed; null: 0", Range(below=2**32)
    )

    @property
    def options(self) -> dict[str, Any]:
        """The given values of keys that only some tasks have."""
        common = ("name", "data", "max_length", "train_rows", "eval_rows")
        given = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {name: value for name, value in given.items() if value is not None and name not in common}


@documented
@dataclass
class AdapterSection:
    """The method, by name or as a formula, with fields of ``SubspaceConfig``, whose defaults apply to null."""

    method: str | None = _of_config(
        "method", "the name of a method, including peft's own; full trains every weight, head only the head"
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
        None, "instead of r or budget: the size closest to 300k parameters, or to 0.3permille of the model"
    )
    schedule: dict[str, float] | None = _of_config("schedule")
    calibration_rows: int | None = _key(
        None, "the number of training rows from which methods such as fishmask choose what to train; null: 64", _COUNT
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
        None,
        "the modules trained beside the adapter; null: the model's classification head and pooler; none in a language "
        "model",
    )


@documented
@dataclass
class TrainingSection:
    """The optimisation."""

    learning_rate: float | None = _key(None, "the peak learning rate; null: the method's default", _POSITIVE)
    head_learning_rate: float | None = _key(
        None,
        "the peak learning rate of the head, whose dense weights may need a lower one than trained scales; null: "
        "learning_rate, as in the paper",
        _POSITIVE,
    )
    lora_plus_ratio: float | None = _key(
        None,
        "the learning rate of factors B, which lead back up from the rank, relative to the others (LoRA+); null: 1",
        _POSITIVE,
    )
    rates: dict[str, float] | None = _key(
        None, "learning rates of single factors, as multiples of learning_rate: {factor: multiple}"
    )
    epochs: int = _key(3, "passes over the training rows, unless max_steps is set", _COUNT)
    max_steps: int | None = _key(None, "optimiser steps, instead of epochs", _COUNT)
    batch_size: int = _key(32, "rows per forward pass", _COUNT)
    eval_batch_size: int = _key(64, "rows per forward pass in evaluation", _COUNT)
    gradient_accumulation: int = _key(1, "forward passes per optimiser step", _COUNT)
    warmup_ratio: float = _key(0.06, "the share of all steps in which the learning rate rises from zero", _SHARE)
    scheduler: Scheduler = _key(Scheduler.linear, "the learning-rate scheduler after the warm-up")
    weight_decay: float = _key(0.0, "the weight decay of AdamW, which pulls a factor towards its start", _FROM_ZERO)
    max_grad_norm: float = _key(1.0, "the norm to which all gradients together are clipped; 0: no clipping", _FROM_ZERO)
    label_smoothing: float = _key(0.0, "the share of a label spread evenly over all classes", _SHARE)
    seed: int = _key(0, "the seed for the head, the factors and the order of rows", Range(below=2**32))  # numpy's range
    group_by_length: bool = _key(True, "form batches of rows of similar length, which saves padding")
    gradient_checkpointing: bool = _key(False, "save memory at the cost of a second forward pass")
    compile: bool = _key(
        False,
        "compile the steps with torch.compile: the first steps take minutes, dropout draws different masks, and "
        "otherwise results are equal up to rounding",
    )
    save_steps: int = _key(0, "steps between checkpoints within an epoch; 0: none", _FROM_ZERO)
    eval_steps: int = _key(0, "steps between evaluations within an epoch, each with a checkpoint; 0: none", _FROM_ZERO)
    patience: int | None = _key(
        None, "stop after this many evaluations in a row without a better validation figure; needs keep=best", _COUNT
    )
    log_steps: int = _key(0, "steps between logged losses; 0: one per epoch", _FROM_ZERO)
    report_to: list[str] | None = _key(
        None, "where losses and figures are also sent: tensorboard, wandb, or another reporter of transformers"
    )
    keep: Keep = _key(Keep.last, "save the weights of the last step, or of the evaluation with the best figure")
    threads: int | None = _key(
        None,
        "the number of threads; null: torch's choice. Results are equal bit for bit only for the same number",
        Range(positive=True, below=4097),
    )
    precision: Precision = _key(
        Precision.auto,
        "the precision of products; weights and the optimiser's state are always float32. auto is bfloat16 if the "
        "machine has instructions for it; float16 scales the loss and needs an accelerator",
    )
    device: Device = _key(Device.auto, "auto uses an accelerator if there is one")


@documented
@dataclass
class RunConfig:
    """One run."""

    model: str = _key(MISSING, "a hub name, a local folder, or minilm")
    output: str = _key(MISSING, "the folder for the results")
    quantise: Quantise | None = _key(
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
