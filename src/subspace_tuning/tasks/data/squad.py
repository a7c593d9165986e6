"""Questions about texts, in the nested form in which SQuAD is published and with one question per row."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .records import Records, is_missing, shown

Answers: TypeAlias = tuple[tuple[str, int], ...]
"""The right answers to a question, each with the character of the text at which it begins; none if there is none."""

_FORM = '{"text": ["..."], "answer_start": [0]}'


@dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
        context: the text.
        question: the question.
        answers: the right ones, if they are known.
        id: by which the file names it.
        place: where it is found again.
    """

    context: str
    question: str
    answers: Answers | None
    id: str | None
    place: str


@dataclass(frozen=True)
class Questions:
    """Rows of questions."""

    rows: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, count: int) -> Questions:
        """Return the first rows."""
        return Questions(self.rows[:count])

    def select(self, rows: Sequence[int]) -> Questions:
        """Return the rows of these numbers."""
        return Questions(tuple(self.rows[row] for row in rows))

    def fingerprint(self) -> str:
        """Return SHA-256 over texts, questions and answers."""
        plain = [[one.context, one.question, one.answers] for one in self.rows]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    @property
    def known(self) -> list[list[str]]:
        """The texts of the right answers, an empty list for a question that has none."""
        return [[text for text, _ in one.answers or ()] for one in self.rows]


def flat(records: Records, context: str, question: str, answers: str) -> Records:
    """Return a row for each question where rows are articles with paragraphs; other rows as they are.

    Args:
        records: what was read.
        context, question, answers: the names of the columns.

    Raises:
        SubspaceError: an article is not of SQuAD's form.
    """
    if "paragraphs" not in records.columns:
        return records
    columns: dict[str, list[Any]] = {"id": [], context: [], question: [], answers: []}
    for row, paragraphs in enumerate(records.columns["paragraphs"]):
        for text, one in _questions(records, row, paragraphs):
            entry = {"id": one.get("id"), context: text, question: one.get("question"), answers: _answers_of(one)}
            for name, value in entry.items():
                columns[name].append(value)
    ids = [number if one is None else str(one) for number, one in enumerate(columns["id"], start=1)]
    return Records(records.where, columns, ids, "question")


def _questions(records: Records, row: int, paragraphs: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    for paragraph in paragraphs if isinstance(paragraphs, list) else [paragraphs]:
        found = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            told = f"a paragraph is {shown(paragraph)}, which is no object with 'context' and a list 'qas'"
            records.refuse([row], told, "write it as SQuAD has it")
        yield from ((paragraph.get("context"), one) for one in found)


def _answers_of(question: dict[str, Any]) -> Any:
    """The answers of SQuAD's nested form; an empty list says nothing unless the question is said to be impossible."""
    answers = question.get("answers")
    return None if answers == [] and not question.get("is_impossible") else answers


def read_answers(records: Records, row: int, value: Any, context: str, column: str) -> Answers:
    """Return the answers in a cell: texts with their places, as an object, a list of objects, or the JSON of these.

    Args:
        records, row: where the cell is.
        value: the cell.
        context: the text that the question is about.
        column: the cell's column.

    Raises:
        SubspaceError: there are no answers, or one does not stand where it is said to.
    """
    if is_missing(value):
        way_out = 'write them, or {"text": [], "answer_start": []} if the text does not hold any'
        records.refuse([row], f"column {column!r} has no answers", way_out)
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    parts = value if isinstance(value, list) else [value]
    found: list[tuple[Any, Any]] = []
    for part in parts:
        texts, starts = (
            (part.get(name) for name in ("text", "answer_start")) if isinstance(part, dict) else (None, None)
        )
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            found += zip(texts, starts, strict=True)
        else:
            found.append((texts, starts))
    for text, start in found:
        if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, int):
            records.refuse([row], f"column {column!r} is {shown(value)}, which has no answers", f"write {_FORM}")
        if not text.strip():
            records.refuse([row], f"column {column!r} has an answer without text", "write one, or take it away")
        if start < 0 or context[start : start + len(text)] != text:
            records.refuse([row], *_misplaced(text, start, context))
    return tuple(found)


def _misplaced(text: str, start: int, context: str) -> tuple[str, str]:
    held = context[max(start, 0) : max(start, 0) + len(text)]
    told = f"answer {shown(text)} is not in its text at answer_start {start}, where {shown(held)} is"
    places = [place for place in range(len(context)) if context.startswith(text, place)]
    if not places:
        return told, "the text does not hold it anywhere"
    return told, f"it is there at {min(places, key=lambda place: abs(place - start))}"
