"""Questions in SQuAD's format: nested as published, or one per row."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from .columns import Columns, digest_of
from .records import Records, is_missing, shown

Answers: TypeAlias = tuple[tuple[str, int], ...]
"""The correct answers to a question, each with its first character in the context; empty if there is no answer."""

_FORM = '{"text": ["..."], "answer_start": [0]}'


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        context: the text that may hold the answer.
        question: the question.
        answers: the correct answers, if the row is labelled.
        id: its id in the file, if it has one.
        place: the file and row, for messages.
    """

    context: str
    question: str
    answers: Answers | None
    id: str | None
    place: str


@dataclass(frozen=True)
class Questions(Columns):
    """Rows of questions."""

    rows: tuple[Question, ...]

    def fingerprint(self) -> str:
        """Return SHA-256 over texts, questions and answers."""
        return digest_of([[one.context, one.question, one.answers] for one in self.rows])

    @property
    def known(self) -> list[list[str]]:
        """The texts of the correct answers; empty for a question without an answer."""
        return [[text for text, _ in one.answers or ()] for one in self.rows]


def flat(records: Records, context: str, question: str, answers: str) -> Records:
    """Return one row per question if the rows are articles with paragraphs, else the rows unchanged.

    Args:
        records: the rows of a file.
        context: the name of the column of contexts.
        question: that of the questions.
        answers: that of the answers.

    Raises:
        SubspaceError: an article is not in SQuAD's format.
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
            told = f"a paragraph is {shown(paragraph)}, not an object with 'context' and a list 'qas'"
            records.refuse([row], told, "use SQuAD's format")
        yield from ((paragraph.get("context"), one) for one in found)


def _answers_of(question: dict[str, Any]) -> Any:
    """Return the answers of a nested question; an empty list counts only if the question is marked impossible."""
    answers = question.get("answers")
    return None if answers == [] and not question.get("is_impossible") else answers


def read_answers(records: Records, row: int, value: Any, context: str, column: str) -> Answers:
    """Return the answers in a cell: texts with their starts, as an object, a list of objects, or JSON of either.

    Args:
        records: the rows.
        row: the number of the cell's row.
        value: the cell.
        context: the context of the question.
        column: the cell's column.

    Raises:
        SubspaceError: there are no answers, or one is not in the context at its start.
    """
    if is_missing(value):
        way_out = 'write them, or {"text": [], "answer_start": []} if the context has none'
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
            records.refuse([row], f"column {column!r} is {shown(value)}, not answers", f"write {_FORM}")
        if not text.strip():
            records.refuse([row], f"column {column!r} has an empty answer", "write one, or remove it")
        if start < 0 or context[start : start + len(text)] != text:
            records.refuse([row], *_misplaced(text, start, context))
    return tuple(found)


def _misplaced(text: str, start: int, context: str) -> tuple[str, str]:
    held = context[max(start, 0) : max(start, 0) + len(text)]
    told = f"answer {shown(text)} is not in its context at answer_start {start}, which has {shown(held)}"
    places = [place for place in range(len(context)) if context.startswith(text, place)]
    if not places:
        return told, "the context does not contain it"
    return told, f"it starts at {min(places, key=lambda place: abs(place - start))}"
