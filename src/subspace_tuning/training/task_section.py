"""The section of a config that describes the task and its data."""

# ruff: noqa: RUF009 (the calls in the class create fields)
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from ..documented import Range, documented
from .keys import COUNT, FROM_ZERO, key


@documented
@dataclass
class TaskSection:
    """The data."""

    name: str = key(
        MISSING,
        "the task: classification, regression, multi_label, token_classification, question_answering, generation, "
        "image_classification, instruction, commonsense or maths on your own rows, one of GLUE's (mrpc, cola, ...), or "
        "one that your own module registers",
    )
    data: str = key(
        "glue",
        "a file (.csv, .tsv, .jsonl, .json, .parquet), a folder with a train file and perhaps a validation file, a "
        "folder saved by datasets, or a hub name; for images also a folder with a folder of images for each class, "
        "perhaps within folders train and validation; for a GLUE task: glue for the hub's data, or a folder with "
        "train and validation files with the hub's columns",
    )
    max_length: int = key(
        128,
        "the most tokens of a row, or of an input for generation; longer rows are truncated, and the texts of "
        "question_answering are read in windows of this length",
        COUNT,
    )
    train_rows: int | None = key(None, "keep only this many of the first training rows; null: all", COUNT)
    eval_rows: int | None = key(None, "keep only this many of the first validation rows; null: all", COUNT)
    tuning_split: float | None = key(
        None,
        "hold out this share of the training rows, and score on them instead of the validation rows: for choosing a "
        "setting such as the learning rate; null: score on the validation rows",
        Range(positive=True, below=1),
    )
    text: str | None = key(
        None,
        "for your own rows: the column of the text, the words, the context of a question, or the input; null: text, "
        "tokens, context or input; messages or prompt for instruction; instruction or question for commonsense and "
        "maths",
    )
    question: str | None = key(None, "the column of the questions; null stands for question")
    image: str | None = key(None, "the column of the image, if the rows are no folder of images; null: image")
    augment: list[str] | None = key(
        None,
        "how training images vary in each epoch: crop cuts out at least half, flip mirrors half of them; null: not",
    )
    text_pair: str | None = key(None, "the column of a second text, if a row has two")
    label: str | None = key(
        None,
        "for your own rows: the column of the label, the labels of words, the answers, or the output; null: label, "
        "tags, answers or output; answer for instruction, commonsense and maths",
    )
    classes: list[str] | None = key(
        None, "the names of the classes, in the order of their numbers; null: those in the training file"
    )
    separator: str | None = key(None, "the separator between the labels of a row that are one text; null: a comma")
    class_weights: bool | None = key(None, "give rarer classes more weight in the loss; null: no")
    template: str | None = key(
        None,
        "for language models: the chat template: alpaca, own for the tokenizer's, a file in Jinja, or its text; "
        "null: own for instruction, alpaca for commonsense and maths",
    )
    packing: bool | None = key(
        None, "for language models: pack several short rows into one; no row attends to another; null: no"
    )
    max_new_tokens: int | None = key(
        None,
        "for language models: the most tokens that are generated per row; null: 256, for generation 64, for "
        "commonsense 32",
        COUNT,
    )
    input: str | None = key(
        None, "for commonsense and maths: the column of an instruction's optional input; null: input"
    )
    output: str | None = key(
        None,
        "for commonsense and maths: the column of the text to learn; null: output, or the answer if there is no such "
        "column",
    )
    scoring: str | None = key(
        None,
        "for commonsense: likelihood for the most probable choice, generation for the first choice that the generated "
        "text names; null: likelihood",
    )
    choices: list[str] | None = key(
        None, "for commonsense: the choices for rows that name none; null: the answers in the training file"
    )
    stride: int | None = key(None, "tokens shared by two windows of a context; null: a third of max_length", FROM_ZERO)
    max_answer_tokens: int | None = key(None, "the most tokens of an answer to a question; null: 30", COUNT)
    n_best: int | None = key(None, "how many answers to each question are reported; null: 5", COUNT)
    prompt: str | None = key(
        None,
        "for generation: the text that the model reads, with {input} in place of the input; null: the input alone, "
        "followed by a line break for a decoder-only model",
    )
    num_beams: int | None = key(None, "beams of a beam search; null: 1, greedy decoding", COUNT)
    validation: str | None = key(None, "the validation rows, from any source that data takes; null: those of data")
    held_out: float | None = key(
        None,
        "the share of the training rows held out for validation if there are no validation rows; null: 0.2",
        Range(positive=True, below=1),
    )
    held_out_seed: int | None = key(
        None, "the seed with which held-out rows are drawn, independent of training.seed; null: 0", Range(below=2**32)
    )

    @property
    def options(self) -> dict[str, Any]:
        """The given values of keys that only some tasks have."""
        common = ("name", "data", "max_length", "train_rows", "eval_rows", "tuning_split")
        given = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {name: value for name, value in given.items() if value is not None and name not in common}
