"""Problems whose answers are numbers, solved step by step in words."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..tuner.calibration import Batch
from .answered import AnsweredTask
from .data.chats import Chats
from .data.records import Records, shown
from .language import chat_fields
from .registry import register
from .rows import Seen, Values

TOLERANCE = 1e-3
"""How far a number may be from the right one, as in LLM-Adapters."""
_MARK = "####"  # what GSM8K writes before the answer
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w.)])-)?              # a minus, unless something is subtracted
    (?:[$€£](?P<late>-)?)?               # -$5 and $-5
    (?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)
    """,
    re.VERBOSE,
)


def number_in(text: str) -> float:
    """Return the number that a text answers with: the first behind "####", or else the last; NaN if there is none.

    Examples:
        >>> [number_in(text) for text in ("16 - 3 = 13.", "she has $1,234.50", "x = -4", "#### 7 of 9")]
        [13.0, 1234.5, -4.0, 7.0]
    """
    before, mark, behind = text.replace("\N{MINUS SIGN}", "-").rpartition(_MARK)
    found = list(_NUMBER.finditer(behind))
    if mark and not found:
        found = list(_NUMBER.finditer(before))
        mark = ""
    if not found:
        return math.nan
    one = found[0 if mark else -1]
    value = float(one["digits"].replace(",", ""))
    return -value if one["sign"] or one["late"] else value


@dataclass(frozen=True)
class Maths(AnsweredTask):
    """Problems with numbers for answers, scored by the number in what the model writes."""

    name = "maths"
    primary = "accuracy"
    beside = ("truth",)

    @property
    def writes(self) -> bool:
        """Return whether the score depends on generated text."""
        return True

    def raw_labels(self, records: Records) -> list[Any]:
        """Return the number that answers each row."""
        texts = self.answers_of(records)
        numbers = [number_in(text) for text in texts]
        if wrong := [row for row, number in enumerate(numbers) if not math.isfinite(number)]:
            told = f"column {self.label!r} is {shown(texts[wrong[0]])}, in which there is no number"
            records.refuse(wrong, told, "write one, or remove the row")
        return numbers

    def rows(self, records: Records, labels: list[Any] | None) -> Chats:
        """Return records as chats, with their numbers where they are known."""
        if labels is None:
            return self.chats(records, None)
        return replace(self.chats(records, self.learnt(records)), truths=np.array(labels, dtype=np.float64))

    def encode(self, rows: Chats, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Return the rows as token numbers, with the numbers that answer them."""
        encoded = super().encode(rows, tokenizer, max_length)
        return encoded.add_column("truth", rows.known.tolist()) if rows.labelled else encoded

    def generate(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what the model writes."""
        return self.written_by(model, batch)

    def predict(self, outputs: Values) -> Values:
        """Return the number in each row's text; NaN where there is none."""
        return np.array([number_in(text) for text in self.texts_of(outputs)], dtype=np.float64)

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return the share of right numbers, and the share of texts without a number."""
        right = np.abs(np.asarray(predictions, dtype=np.float64) - labels) <= TOLERANCE  # NaN is near nothing
        return {"accuracy": float(right.mean()), "without_number": float(np.isnan(predictions).mean())}

    def answers(self, seen: Seen[Chats]) -> list[dict[str, Any]]:
        """Return each row's problem with the number and the text that it is in."""
        texts = self.texts_of(seen.outputs)
        numbers = [None if math.isnan(number := number_in(text)) else number for text in texts]
        fields = zip(chat_fields(seen.rows), numbers, texts, strict=True)
        return [one | {"predicted": number, "written": text} for one, number, text in fields]

    def baseline(self, train: Chats, rows: Chats) -> dict[str, float]:
        """Return the figures of the most frequent number of the training rows."""
        [(most, _)] = Counter(train.known.tolist()).most_common(1)
        return self.score(np.full(len(rows), most), rows.known)


register(Maths())
