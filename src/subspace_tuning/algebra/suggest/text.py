"""Typing slips: notation from mathematics, LaTeX and other languages, and missing or superfluous signs.

A slip is a regular expression, its replacement, and the reason for the message. The results need not be formulas: every
suggestion is parsed again before it is shown.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

_TRANSPOSES = r"(?:\^\s*\{?\s*(?:T\b|⊤|\\top)\s*\}?|ᵀ|⊤)"  # noqa: RUF001
_OPERATORS = {
    "@": "·⋅∙•×✕",
    "*": "⊙∘∗⊛⊚",  # noqa: RUF001
    "-": "−–—",
    "+": "⊕",
    "/": "÷∕",  # noqa: RUF001
}
_WORDS = "|".join(set(keyword.kwlist) - {"if", "else", "and", "or", "not", "None", "True", "False"})
_GREEK = {"λ": "lam", "Λ": "Lam", "ς": "sigma", "Ω": "Omega", "∆": "Delta"}


class Slip(NamedTuple):
    """A regular expression, its replacement, and the reason, in which {0} is the matched text."""

    pattern: re.Pattern[str]
    instead: str | Callable[[re.Match[str]], str]
    reason: str
    anywhere: bool = True  # False: only in a text that Python cannot parse


def _slip(pattern: str, instead: str | Callable[[re.Match[str]], str], reason: str, anywhere: bool = True) -> Slip:
    return Slip(re.compile(pattern), instead, reason, anywhere)


def _latin(match: re.Match[str]) -> str:
    """Return Greek letters by name, subscripts as digits, and other letters without accents."""
    letter = match[0]
    if letter in _GREEK:
        return _GREEK[letter]
    name = unicodedata.name(letter, "").split()
    if name[:1] == ["GREEK"]:
        return name[3].lower() if "SMALL" in name else name[3].capitalize()
    plain = unicodedata.normalize("NFKD", letter)
    return "".join(part for part in plain if part.isascii())


_SLIPS = (
    _slip(r"^\s*return\b", "", "a formula is the expression alone, without {0}"),
    _slip(
        r"^\s*[^\s=+*@/-]+(?:\s*\(\s*\w+\s*\))?\s*:?=(?!=)\s*",
        "",
        "a formula is the right side of the equation, phi(W) itself",
    ),
    _slip(r"^(.*?)([-+*@/])=\s*(.*)$", r"\1\2 (\3)", "a formula is all of phi(W), not what changes W in place"),
    _slip(rf"(?<=[\w)\]])\s*{_TRANSPOSES}", ".T", "the transpose is written .T"),
    _slip(r"(?<=[\w)\]])['’′]", ".T", "the transpose is written .T", False),  # noqa: RUF001
    _slip(r"(?:\\Delta|[Δ∆])\s*W\w*", "Delta", "the change of W is a matrix with a name of its own, such as Delta"),
    _slip(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"(\1 / \2)", "a quotient is written with /"),
    _slip(r"/\s*\|\|?([^|]*)\|\|?", r"/ norm(\1)", "unit(X) scales the columns of X to norm 1"),
    _slip(r"_\{(\w+)\}", r"\1", "a name is written without braces"),
    _slip(r"\\(?:cdot|times)\b", " @ ", "the product of matrices is written @, a number in front *"),
    _slip(r"\\(?:odot|circ)\b", " * ", "the element-wise product is written *"),
    _slip(r"\\([A-Za-z]+)", r"\1 ", "names are written without a backslash"),
    _slip(r"[$`]", "", "{0} has no meaning in a formula"),
    _slip(r"(\w+)\s*(?:⊗|\\otimes)\s*(\w+)", r"kron(\1, \2)", "the Kronecker product is written kron(A, B)"),
    _slip(r"%\s*\*\s*%", "@", "the product of matrices is written @"),
    _slip(r"\.\*", " * ", "the element-wise product is written *"),
    *(
        _slip(f"[{letters}]", f" {sign} ", f"{{0}} is written {sign} in a formula")
        for sign, letters in _OPERATORS.items()
    ),
    _slip(r"[^\x00-\x7f]", _latin, "{0} is not allowed in a formula; names use the letters A to Z and a to z"),
    _slip(r"[&|]+", " @ ", "the product of matrices is written @"),
    _slip(r"@(?:\s*@)+", "@", "@ is repeated"),
    _slip(r"\blambda\b(?!\s*[\w,\s]*:)", "lam", "{0} is a Python keyword; choose another name", False),
    _slip(
        rf"\b(?!lambda\b)({_WORDS})\b",
        r"\g<1>1",
        "{0} is a Python keyword; choose another name",
        False,
    ),
    _slip(r"\s*[-+*@/%,;:.&|\s]+$", "", "{0!r} has no right operand", False),
    _slip(r"^[*@/%,;:.&|\s]+", "", "{0!r} has no left operand", False),
    _slip(
        r"(?<![\w.])(\d+(?:\.\d*)?)\s*(?!e[-+]?\d)(?=[A-Za-z(])",
        r"\1 * ",
        "a name starts with a letter, and a number in front of a matrix is followed by *",
        False,
    ),
    _slip(
        r"(?<=[\w)\]])(?:\s+(?=[\w(])|(?<=[)\]])(?=\w))(?!(?:if|else|and|or|not|in|is|for)\b)",
        " @ ",
        "an operator is missing between two operands; @ multiplies matrices, and * by a number",
        False,
    ),
)


def fault(text: str) -> tuple[tuple[int, int], str] | None:
    """Return place and reason of the first slip in a text that Python cannot parse, or None."""
    for slip in _SLIPS:
        match = slip.pattern.search(text)
        if match is not None:
            start, end = match.span()
            written = match[0].strip()
            if not written:  # between two operands: mark the second
                word = re.compile(r"\w+|\S").match(text, end)
                end = end if word is None else word.end()
            start += len(text[start:end]) - len(text[start:end].lstrip())
            return (start, max(start, end)), slip.reason.format(written)
    opened = _unbalanced(text)
    if opened is None:
        return None
    return (opened, opened + 1), "this bracket is never closed" if text[opened] in "([{" else "no bracket is open here"


def tidied(text: str, reads: bool) -> str:
    """Return the text with every known slip fixed; ``reads`` says whether Python can parse it as written."""
    for slip in _SLIPS:
        if slip.anywhere or not reads:
            text = slip.pattern.sub(slip.instead, text)
    return " ".join(_balanced(text).split())


def _unbalanced(text: str) -> int | None:
    """Return the place of the first bracket without a partner."""
    open_at: list[int] = []
    for place, letter in enumerate(text):
        if letter in "([{":
            open_at.append(place)
        elif letter in ")]}":
            if not open_at:
                return place
            open_at.pop()
    return open_at[0] if open_at else None


def _balanced(text: str) -> str:
    """Return the text with missing brackets added at its end, and without those that close nothing."""
    text = text.translate(str.maketrans("{}", "()"))
    while (place := _unbalanced(text)) is not None:
        text = f"{text})" if text[place] in "([" else text[:place] + text[place + 1 :]
    return text
