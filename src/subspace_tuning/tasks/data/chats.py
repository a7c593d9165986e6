"""Chats as rows: what was said, by whom, and where it stands."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ...errors import nearest
from ..rows import Values
from .columns import Columns, digest_of
from .records import Records, check_text, is_missing, shown

Message: TypeAlias = Mapping[str, str]
"""A message: its ``role`` and its ``content``."""

ROLES = ("system", "user", "assistant")
ANSWERING = "assistant"
"""The role whose messages are learnt."""


@dataclass(frozen=True)
class Chats(Columns):
    """One split.

    Attributes:
        chats: the messages of each row; of labelled rows the last one is an answer.
        places: where each row stands, as messages call it.
        labelled: whether the rows have answers.
        truths: what predictions are compared with, an entry per row, where that is not the answer itself.
        choices: the answers between which each row chooses, where it does.
    """

    chats: tuple[tuple[Message, ...], ...]
    places: tuple[str, ...]
    labelled: bool
    truths: Values | None = None
    choices: tuple[tuple[str, ...], ...] | None = None

    @property
    def known(self) -> Values:
        """The truths of rows that have them."""
        assert self.truths is not None
        return self.truths

    def fingerprint(self) -> str:
        """Return the SHA-256 of all but the places."""
        return digest_of([self.chats, self.choices, self.labelled], self.truths)


def places_of(records: Records) -> tuple[str, ...]:
    """Return where each row stands: the file, and the line or the row."""
    return tuple(f"{records.where}, {records.unit} {number}" for number in records.numbers)


def chats_of(records: Records, column: str, key: str) -> list[tuple[Message, ...]]:
    """Return a column of chats.

    Raises:
        SubspaceError: there is no such column, or a row is no list of messages, each with a known role and a text.
    """
    return [_chat(records, row, column, value) for row, value in enumerate(records.column(column, key))]


def without_answer(chat: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return what comes before the last answer of a chat."""
    return chat[:-1] if chat[-1]["role"] == ANSWERING else chat


def check_answered(records: Records, chats: Sequence[tuple[Message, ...]]) -> None:
    """Raise SubspaceError if a chat does not end in an answer."""
    if without := [row for row, chat in enumerate(chats) if chat[-1]["role"] != ANSWERING]:
        told = f"the last message is of role {chats[without[0]][-1]['role']!r}, and no answer follows"
        records.refuse(without, told, f"end the chat with a message of role {ANSWERING!r}, or remove the row")


def _chat(records: Records, row: int, column: str, value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):  # a cell of a table
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, list) or not value or not all(isinstance(one, Mapping) for one in value):
        told = f"column {column!r} is {shown(value)}, which is not a chat"
        records.refuse([row], told, 'write a list of messages, {"role": "user", "content": "..."}')
    return tuple(_message(records, row, number, one) for number, one in enumerate(value, start=1))


def _message(records: Records, row: int, number: int, value: Mapping[str, Any]) -> Message:
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        records.refuse([row], f"message {number} has the role {shown(role)}", nearest(str(role), ROLES))
    if is_missing(content):
        records.refuse([row], f"message {number} has no content", "write one, or remove the row")
    if not isinstance(content, str):
        records.refuse([row], f"message {number} has the content {shown(content)}, which is not text", "write a text")
    check_text(records, row, content)
    return {"role": str(role), "content": content}
