"""Instruction tuning: chats, or questions with answers, of which a decoder learns the answers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..tuner.calibration import Batch
from .data.chats import Chats, chats_of, check_answered, places_of, without_answer
from .data.records import Records
from .intervals import Figure
from .language import LanguageTask, chat_fields
from .likelihood import answer_losses
from .registry import register
from .rows import Seen, Values

_CHATS, _PROMPTS = "messages", "prompt"


@dataclass(frozen=True)
class Instruction(LanguageTask):
    """Answers to what is asked.

    Attributes:
        text: the column of the chats or the questions; by default ``messages``, or ``prompt`` without such a column.
        label: the column of the answers to questions.
    """

    name = "instruction"
    primary = "loss"
    larger_is_better = False

    text: str = _CHATS
    label: str = "answer"

    def _column(self, records: Records) -> str:
        bare = self.text == _CHATS and _CHATS not in records.columns and _PROMPTS in records.columns
        return _PROMPTS if bare else self.text

    def _has_chats(self, records: Records) -> bool:
        """Return whether the rows are chats: lists, or their JSON in a table."""
        column = records.columns.get(self._column(records), ())
        return any(not isinstance(one, str) or one.lstrip().startswith("[{") for one in column if one is not None)

    def raw_labels(self, records: Records) -> list[Any]:
        """Return the answers to the rows' questions; chats hold their own."""
        if self._has_chats(records):
            return [None] * len(records)
        return list(records.texts(self.label, "task.label"))

    def rows(self, records: Records, labels: list[Any] | None) -> Chats:
        """Return records as chats."""
        column = self._column(records)
        if self._has_chats(records) or column == _CHATS:
            chats = chats_of(records, column, "task.text")
            if labels is not None:
                check_answered(records, chats)
            else:
                chats = [without_answer(chat) for chat in chats]
        else:
            asked = [{"role": "user", "content": text} for text in records.texts(column, "task.text")]
            said = (
                [[{"role": "assistant", "content": text}] for text in labels]
                if labels is not None
                else [[]] * len(asked)
            )
            chats = [(question, *answer) for question, answer in zip(asked, said, strict=True)]
        return Chats(tuple(chats), places_of(records), labels is not None)

    def rows_of(self, *columns: Sequence[str]) -> Chats:
        """Return a question without an answer for each text."""
        [texts] = columns
        chats = tuple(({"role": "user", "content": text},) for text in texts)
        return Chats(chats, tuple(f"text {number}" for number in range(1, len(chats) + 1)), labelled=False)

    def generate(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss and the number of each row's answer tokens; for unlabelled rows, generated answers."""
        if "labels" not in batch:
            return self.written_by(model, batch)
        return answer_losses(model, batch["input_ids"], batch["attention_mask"], batch["labels"])

    def predict(self, outputs: Values) -> Values:
        """Return the losses unchanged."""
        return outputs

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return the mean loss of a token of the answers, and the perplexity, which is its exponential."""
        loss, tokens = np.asarray(predictions, dtype=np.float64).sum(0).tolist()
        return _figures(loss / tokens)

    def resampled(self, predictions: Values, labels: Values) -> Figure:
        """Return the mean loss of a token of rows."""
        return lambda rows: self.score(predictions[rows], labels)[self.primary]

    def answers(self, seen: Seen[Chats]) -> list[dict[str, Any]]:
        """Return each row's last question with the answer."""
        texts = self.texts_of(seen.outputs)
        return [fields | {"predicted": text} for fields, text in zip(chat_fields(seen.rows), texts, strict=True)]

    def baseline(self, train: Chats, rows: Chats) -> dict[str, float]:
        """Return the figures of the uniform distribution over the vocabulary."""
        assert self.tokenizer is not None
        return _figures(math.log(len(self.tokenizer)))


def _figures(loss: float) -> dict[str, float]:
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # exp overflows beyond


register(Instruction())
