"""Documented dataclass fields: one text for ``help``, the commands and the settings page.

A field's metadata has its meaning under "help", the range of its numbers under "range", and under "default" the value
that applies if the field's own default is a placeholder.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import textwrap
import typing
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Numbers from 0 (excluded if ``positive``) to ``below`` (excluded).

    A bound above 1 is for whole numbers.
    """

    positive: bool = False
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        return (number > 0 if self.positive else number >= 0) and number < self.below

    def __str__(self) -> str:
        if 1 < self.below < math.inf:
            return f"{int(self.positive)} to {self.below - 1:,}"
        start = "positive" if self.positive else "at least 0"
        return start if self.below == math.inf else f"{start} and below {self.below}"


class Setting(NamedTuple):
    """A field as displayed. ``default`` is the value that applies if none is given."""

    name: str
    type: str
    default: Any
    range: Range | None
    meaning: str


def settings(cls: type) -> tuple[Setting, ...]:
    """Return a dataclass's own documented fields, in order."""
    return _settings(cls)


@lru_cache
def _settings(cls: Any) -> tuple[Setting, ...]:
    own, hints = inspect.get_annotations(cls), typing.get_type_hints(cls)
    return tuple(
        Setting(
            entry.name,
            _type(hints[entry.name], str(entry.type)),
            entry.metadata.get("default", default_of(entry)),
            entry.metadata.get("range"),
            entry.metadata["help"],
        )
        for entry in dataclasses.fields(cls)
        if entry.name in own and "help" in entry.metadata
    )


def default_of(entry: dataclasses.Field[Any]) -> Any:
    """Return the default of a field of a dataclass."""
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def documented(cls: type[T]) -> type[T]:
    """Decorate a dataclass so that its docstring, and hence ``help``, describes its fields."""
    wrap = textwrap.TextWrapper(120, initial_indent=" " * 4, subsequent_indent=" " * 8)
    lines = [wrap.fill(f"{one.name}: {one.meaning}") for one in settings(cls)]
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:", *lines])
    return cls


def _type(hint: Any, written: str) -> str:
    """Return an annotation as written, or the values of an enumeration."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(str(member.value) for member in hint)
    return written
