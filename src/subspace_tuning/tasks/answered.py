"""The base of the tasks of LLM-Adapters (arXiv:2304.01933): instructions whose answers are right or wrong."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .data.chats import Chats, Message, places_of
from .data.records import Records, check_text, is_missing
from .language import LanguageTask

_INSTRUCTION, _QUESTION = "instruction", "question"


@dataclass(frozen=True)
class AnsweredTask(LanguageTask):
    """A task of instructions, each with a text to learn and an answer by which it is scored.

    Attributes:
        template: the chat template, the same for training and scoring.
        text: the column of the instructions; by default ``instruction``, or ``question`` if there is no such column.
        input: the column of an instruction's input, which may be empty.
        output: the column of the text to learn; without such a column the answer is learned.
        label: the column of the answers.
    """

    truth = "truth"

    template: str | None = "alpaca"
    text: str = _INSTRUCTION
    label: str = "answer"
    input: str = "input"
    output: str = "output"

    def asked(self, records: Records) -> list[tuple[Message, ...]]:
        """Return the messages before each answer."""
        bare = self.text == _INSTRUCTION and _INSTRUCTION not in records.columns and _QUESTION in records.columns
        texts = records.texts(_QUESTION if bare else self.text, "task.text")
        about = records.columns.get(self.input, [None] * len(records))
        return [
            ({"role": "user", "content": text if is_missing(more) else f"{text}\n\n### Input:\n{more}"},)
            for text, more in zip(texts, about, strict=True)
        ]

    def learnt(self, records: Records) -> Sequence[str]:
        """Return the text to learn of each row."""
        return records.texts(self.output if self.output in records.columns else self.label, "task.output")

    def answers_of(self, records: Records) -> list[str]:
        """Return the answers as texts. Raises SubspaceError if a row has none."""
        found = records.column(self.label, "task.label")
        if missing := [row for row, value in enumerate(found) if is_missing(value)]:
            records.refuse(missing, f"column {self.label!r} has no answer", "write one, or remove the row")
        texts = [str(value).strip() for value in found]
        for row, text in enumerate(texts):
            check_text(records, row, text)
        return texts

    def chats(self, records: Records, said: Sequence[str] | None) -> Chats:
        """Return records as chats, with these answers or without any."""
        asked = self.asked(records)
        if said is None:
            return Chats(tuple(asked), places_of(records), labelled=False)
        chats = [(*one, {"role": "assistant", "content": text}) for one, text in zip(asked, said, strict=True)]
        return Chats(tuple(chats), places_of(records), labelled=True)

    def rows_of(self, *columns: Sequence[str]) -> Chats:
        """Return a row without an answer for each text."""
        [texts] = columns
        return self.rows(Records("--text", {self.text: texts}, range(1, len(texts) + 1), "number"), None)

    @abstractmethod
    def rows(self, records: Records, labels: list[Any] | None) -> Chats:
        """Return records as chats."""
