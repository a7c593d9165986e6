"""LaTeX for expressions and for names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import Expression

_GREEK = {"delta": r"\delta", "sigma": r"\sigma", "Delta": r"\Delta"}


def latex(node: Expression) -> str:
    r"""Return an expression in LaTeX.

    Examples:
        >>> from subspace_tuning.algebra import parse
        >>> print(latex(parse("D1 @ W @ D2 + s * A @ B").expression))
        D_{1} W D_{2} + s A B
    """
    return node.latex()


def name_in_latex(name: str) -> str:
    """Return a name in LaTeX, with its digits and anything after an underscore as a subscript."""
    if name == "rest":
        return r"W_{\mathrm{rest}}"
    match = re.fullmatch(r"([A-Za-z]+?)(?:_(\w+)|(\d+))?", name)
    assert match is not None
    stem, index = match[1], match[2] or match[3]
    shown = _GREEK.get(stem, stem if len(stem) == 1 else rf"\mathit{{{stem}}}")
    return f"{shown}_{{{index}}}" if index else shown
