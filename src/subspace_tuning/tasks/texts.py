"""What tasks have in common whose rows are one text or two, with a label that the head on the first token gives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from numpy.typing import DTypeLike
from peft import TaskType
from scipy.special import softmax
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from ..errors import SubspaceError
from .base import Task
from .data.tables import Table


class TextTask(Task[Table]):
    """A task of one text or two per row."""

    model_class: ClassVar[Any] = AutoModelForSequenceClassification
    task_type: ClassVar[TaskType] = TaskType.SEQ_CLS

    @property
    @abstractmethod
    def text_columns(self) -> tuple[str, ...]:
        """The columns of the texts, one or two, in the order in which the tokenizer gets them."""

    @property
    def label_type(self) -> DTypeLike:
        """The type of the labels that the loss takes."""
        return np.int64

    def rows_of(self, *columns: Sequence[str]) -> Table:
        """Return a row without a label for each text, or for each pair of texts."""
        if len(columns) < len(self.text_columns):
            raise SubspaceError(f"a row has two texts, {' and '.join(self.text_columns)}: give the rows as a file")
        return Table(tuple(map(tuple, columns)), None)

    def encode(self, rows: Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Return the rows as token numbers, with their labels in the type that the loss takes."""
        columns = [f"text{number}" for number in range(len(rows.texts))]
        labels = {} if rows.labels is None else {"labels": rows.labels.astype(self.label_type)}
        plain = Dataset.from_dict({**dict(zip(columns, rows.texts, strict=True)), **labels})

        def tokenize(batch: Any) -> Any:
            return tokenizer(*(batch[column] for column in columns), truncation=True, max_length=max_length)

        # Left to itself, `map` pickles the tokenizer's vocabulary to name a cache, which rows in memory do not have.
        return plain.map(
            tokenize, batched=True, remove_columns=columns, desc="tokenizing", new_fingerprint=rows.fingerprint()
        )

    def beside_texts(self, rows: Table, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the texts of each row, by column, with its answer."""
        texts = zip(*rows.texts, strict=True)
        return [
            {**dict(zip(self.text_columns, row, strict=True)), **answer}
            for row, answer in zip(texts, answers, strict=True)
        ]


def by_class(logits: np.ndarray[Any, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most probable class of each row of logits, with the probabilities of all."""
    return [
        {
            "predicted": names[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(names, map(float, row), strict=True)),
        }
        for row in softmax(logits, axis=-1)
    ]
