"""A class for each word of a row, from own files.

A word's class is that of its first piece: the other pieces are neither in the loss nor scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from peft import TaskType
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from ..errors import SubspaceError
from ..tuner.loss import IGNORED
from .classes import ClassesTask, balanced, class_name
from .data.columns import Columns, digest_of
from .data.records import Records, as_list, check_text
from .intervals import Figure, f1
from .registry import register
from .rows import Seen, Values


@dataclass(frozen=True)
class Sentences(Columns):
    """Rows of words; `labels` has the number of each word's class, if there are labels."""

    words: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[int, ...], ...] | None

    def fingerprint(self) -> str:
        """Return SHA-256 over words and labels."""
        return digest_of([self.words, self.labels])

    @property
    def known(self) -> NDArray[np.int64]:
        """The labels of all words, one row after the other."""
        assert self.labels is not None
        return np.array([label for row in self.labels for label in row], dtype=np.int64)


@dataclass(frozen=True)
class TokenClassification(ClassesTask[Sentences]):
    """A class for each word.

    Attributes:
        text: the column of the words, as lists or as texts with spaces between the words.
        label: the column of their classes, in the same form.
    """

    name = "token_classification"
    primary = "f1_macro"
    model_class: ClassVar[Any] = AutoModelForTokenClassification
    task_type: ClassVar[TaskType] = TaskType.TOKEN_CLS

    text: str = "tokens"
    label: str = "tags"

    def raw_labels(self, records: Records) -> list[list[str]]:
        """Return the names of each row's classes, one per word."""
        words = self._words(records)
        found = []
        for row, value in enumerate(records.column(self.label, "task.label")):
            names = as_list(value)
            if not names:
                records.refuse([row], f"column {self.label!r} has no labels", "write them, or remove the row")
            if len(names) != len(words[row]):
                records.refuse(
                    [row],
                    f"column {self.text!r} has {len(words[row])} words and {self.label!r} {len(names)} labels",
                    "write one label per word",
                )
            found.append([class_name(name) for name in names])
        return found

    def _words(self, records: Records) -> tuple[tuple[str, ...], ...]:
        found = []
        for row, value in enumerate(records.column(self.text, "task.text")):
            words = as_list(value)
            if not words:
                records.refuse([row], f"column {self.text!r} has no words", "write them, or remove the row")
            for word in words:
                if not isinstance(word, str) or not word.strip():
                    records.refuse([row], f"column {self.text!r} holds {word!r}, which is not a word", "write a text")
                check_text(records, row, word)
            found.append(tuple(words))
        return tuple(found)

    def weights_of(self, records: Records, labels: list[list[str]]) -> tuple[float, ...]:
        """Return the inverse of each class's share of the words."""
        return balanced(self.rows(records, labels).known, len(self.names))

    def rows(self, records: Records, labels: list[list[str]] | None) -> Sentences:
        """Return records as sentences."""
        numbers = None if labels is None else tuple(map(tuple, self.numbers_of(records, labels)))
        return Sentences(self._words(records), numbers)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The column of the words."""
        return (self.text,)

    def rows_of(self, *columns: Sequence[str]) -> Sentences:
        """Return the words of each text, separated by spaces."""
        [texts] = columns
        return Sentences(tuple(tuple(text.split()) for text in texts), None)

    def encode(self, rows: Sentences, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Return the rows as token ids, with the number of a word's class at its first piece.

        Rows without labels have the word's number there, which ``answers`` uses.
        """
        if not tokenizer.is_fast:
            raise SubspaceError(
                "the model's tokenizer does not map pieces to words: task token_classification needs "
                "one of transformers' fast tokenizers"
            )
        known = [range(len(words)) for words in rows.words] if rows.labels is None else rows.labels
        plain = Dataset.from_dict({"words": list(map(list, rows.words)), "known": list(map(list, known))})

        def tokenize(batch: Any) -> Any:
            found = tokenizer(batch["words"], is_split_into_words=True, truncation=True, max_length=max_length)
            found["labels"] = [_at_first_pieces(found.word_ids(i), known) for i, known in enumerate(batch["known"])]
            return found

        return plain.map(
            tokenize,
            batched=True,
            remove_columns=["words", "known"],
            desc="tokenizing",
            new_fingerprint=rows.fingerprint(),
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Any]], Any]:
        """Return the collator that pads rows and their labels to the longest."""
        return DataCollatorForTokenClassification(tokenizer)

    def predict(self, outputs: Values) -> Values:
        """Return a class number for each piece, rows x pieces."""
        return np.asarray(outputs.argmax(axis=-1))

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return the mean of the classes' F1, and the accuracy, over the words."""
        words = labels != IGNORED
        found, wanted = predictions[words], labels[words]
        return {
            "f1_macro": float(f1_score(wanted, found, labels=np.unique(wanted), average="macro", zero_division=0.0)),
            "accuracy": float(accuracy_score(wanted, found)),
        }

    def resampled(self, predictions: Values, labels: Values) -> Figure:
        """Return the mean of the classes' F1 over the words of rows."""
        classes = np.unique(labels[labels != IGNORED])[:, None, None]
        wanted, found = labels == classes, (predictions == classes) & (labels != IGNORED)
        hits, truths, claims = ((wanted & found).sum(-1), wanted.sum(-1), found.sum(-1))  # classes x rows

        def f1_macro(rows: NDArray[np.intp]) -> float:
            right, true, claimed = (of[:, rows].sum(-1) for of in (hits, truths, claims))
            return float(f1(right, true + claimed)[true > 0].mean())

        return f1_macro

    def answers(self, seen: Seen[Sentences]) -> list[dict[str, Any]]:
        """Return each row's words with their classes and probabilities, null for truncated words."""
        answers = []
        for words, numbers, logits in zip(seen.rows.words, seen.encoded["labels"], seen.outputs, strict=True):
            predicted: list[str | None] = [None] * len(words)
            probability: list[float | None] = [None] * len(words)
            for word, chances in zip(numbers, softmax(logits[: len(numbers)], axis=-1), strict=True):
                if word != IGNORED:
                    predicted[word], probability[word] = self.names[int(chances.argmax())], float(chances.max())
            answers.append({self.text: list(words), "predicted": predicted, "probability": probability})
        return answers

    def baseline(self, train: Sentences, rows: Sentences) -> dict[str, float]:
        """Return the figures of the most frequent class of the training words."""
        return self.score(np.full(len(rows.known), np.bincount(train.known).argmax()), rows.known)


def _at_first_pieces(words: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    before = [None, *words[:-1]]
    return [IGNORED if word is None or word == last else labels[word] for word, last in zip(words, before, strict=True)]


register(TokenClassification())
