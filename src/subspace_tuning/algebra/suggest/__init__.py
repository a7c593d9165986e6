"""The nearest working formula for a refused one.

Typing slips are fixed first, then Python constructs that are not in the language are replaced, and then the rules of
:mod:`.fitting` and :mod:`.starting` are tried, repeatedly. Every suggestion has been parsed again and found to work.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Collection, Iterator

from . import constructs, fitting, starting, text  # noqa: F401 (their rules are registered, in this order)
from .rules import RULES

LONGEST = 200  # characters of the longest formula for which another is searched
_TRIED = 80  # formulas
_STEPS = 3  # rules applied in a row

reason = constructs.reason
beside = constructs.beside
unknown = constructs.unknown


def fault(written: str) -> tuple[tuple[int, int], str] | None:
    """Return place and reason of a syntax error in a text, or None if no rule explains it."""
    return None if len(written) > LONGEST else text.fault(written)


def nearest(written: str, functions: Collection[str], works: Callable[[str], bool]) -> str | None:
    """Return the nearest working formula for a refused one, or None if none is found.

    Args:
        written: the formula.
        functions: the functions of the language.
        works: whether a formula can be used; called at most 80 times.
    """
    if len(written) > LONGEST:
        return None
    try:
        return next((found for found in _candidates(written, functions) if found != written and works(found)), None)
    except RecursionError:  # in ast: a formula nested that deeply is not a first attempt
        return None


def _candidates(written: str, functions: Collection[str]) -> Iterator[str]:
    """Yield other formulas, the nearest first."""
    tree = _tree(text.tidied(written, reads=_tree(written) is not None))
    if tree is None:
        return
    candidate = ast.unparse(constructs.translated(tree, functions))
    yield candidate
    seen = {written, candidate}
    level = _trees(candidate)
    for _ in range(_STEPS):
        following: list[ast.expr] = []
        for tree in level:
            for changed in (new for rule in RULES for new in rule(tree)):
                candidate = ast.unparse(changed)
                if candidate in seen:
                    continue
                if len(seen) == _TRIED:
                    return
                seen.add(candidate)
                yield candidate
                following += _trees(candidate)
        level = following


def _trees(written: str) -> list[ast.expr]:
    """Return a list with the syntax tree of a text, empty if Python cannot parse it."""
    tree = _tree(written)
    return [] if tree is None else [tree]


def _tree(written: str) -> ast.expr | None:
    """Return the syntax tree of a text, or None if Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(written.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError):
        return None
