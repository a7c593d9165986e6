"""The nearest formula that works, for one that is refused.

Slips of writing are mended first, then what Python's grammar reads and a formula has not is replaced, and then the
rules of :mod:`.fitting` and :mod:`.starting` are tried, one after another and on what they made. Nothing is suggested
that was not read again and found to work.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Collection, Iterator

from . import constructs, fitting, starting, text  # noqa: F401 (their rules are registered, in this order)
from .rules import RULES

LONGEST = 200  # characters of a formula for which another is searched
_TRIED = 80  # formulas
_STEPS = 3  # rules after one another

reason = constructs.reason
beside = constructs.beside
unknown = constructs.unknown


def fault(written: str) -> tuple[tuple[int, int], str] | None:
    """Return place and reason of what keeps Python's grammar from reading a text; None if no rule knows it."""
    return None if len(written) > LONGEST else text.fault(written)


def nearest(written: str, functions: Collection[str], works: Callable[[str], bool]) -> str | None:
    """Return the nearest formula that works for one that does not, None if none is found.

    Args:
        written: the formula.
        functions: the functions of the language.
        works: whether a formula can be used; it is asked 80 times at most.
    """
    if len(written) > LONGEST:
        return None
    try:
        return next((found for found in _candidates(written, functions) if found != written and works(found)), None)
    except RecursionError:  # of Python's own walks: a formula that is nested so deeply is not a first attempt
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
    """Return the syntax tree of a text in a list, which is empty if Python's grammar does not read it."""
    tree = _tree(written)
    return [] if tree is None else [tree]


def _tree(written: str) -> ast.expr | None:
    """Return the syntax tree of a text, None if Python's grammar does not read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(written.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError):
        return None
