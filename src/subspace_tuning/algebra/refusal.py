"""The error for a refused formula: its text, the place, the reason, and the nearest formula that works."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import SubspaceError


class FormulaError(SubspaceError):
    """A refused formula.

    The message is one line: the formula with the place marked as ``>>>here<<<``, the reason, and what to write instead.

    Attributes:
        reason: why the formula is refused, in one line.
        formula: the formula as written, in one line; empty if there is none to show.
        span: the place in it, as the half-open range of its characters.
        suggestion: the nearest formula that works, or None if none was found.
        starts: the starts that go with the suggestion, by factor.
        method: the name of the method whose formula it is, or None.
    """

    def __init__(
        self,
        reason: str,
        formula: str = "",
        span: tuple[int, int] | None = None,
        suggestion: str | None = None,
        starts: Mapping[str, str] | None = None,
        method: str | None = None,
    ) -> None:
        self.reason, self.suggestion, self.starts = _printable(reason), suggestion, dict(starts or {})
        self.formula, self.span, self.method = formula, span or (0, len(formula)), method
        super().__init__(reason, formula, self.span, suggestion, self.starts, method)

    def __str__(self) -> str:
        whole = self.reason
        if self.formula:
            before, place, after = self.parts
            whole = f"formula '{before}>>>{place}<<<{after}': {self.reason}"
        return f"{self.of}{whole}{self.hint}"

    @property
    def parts(self) -> tuple[str, str, str]:
        """The printable formula before, in and after the place."""
        start, end = self.span
        before, place, after = map(_printable, (self.formula[:start], self.formula[start:end], self.formula[end:]))
        return before, place, after

    @property
    def of(self) -> str:
        """The method, as the beginning of a message; empty for a formula without one."""
        return "" if self.method is None else f"method {self.method!r}: "

    @property
    def hint(self) -> str:
        """The way out, to follow the reason; empty if none is known."""
        if self.suggestion is None:
            return ""
        if self.suggestion == self.formula:
            return f"; give starts={self.starts}" if self.starts else "; leave starts out"
        return f"; write '{self.suggestion}'" + (f" with starts={self.starts}" if self.starts else "")

    def within(self, method: str) -> FormulaError:
        """Return the same error for a method's formula."""
        return FormulaError(self.reason, self.formula, self.span, self.suggestion, self.starts, method)


def _printable(text: str) -> str:
    """Return a text in one line, with unprintable characters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
