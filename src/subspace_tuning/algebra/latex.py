"""A formula as LaTeX, from its expression."""

from __future__ import annotations

import re
from functools import singledispatch

from .gate import Gate
from .nodes import (
    Activation,
    Affine,
    Diag,
    Elementwise,
    Expression,
    Hadamard,
    Identity,
    Kron,
    Leaf,
    Number,
    Product,
    Scale,
    Sparse,
    Sum,
    Transpose,
)
from .unit import Unit

_GREEK = {"delta": r"\delta", "sigma": r"\sigma", "Delta": r"\Delta"}


@singledispatch
def latex(node: Expression) -> str:
    r"""Return an expression in LaTeX.

    >>> from subspace_tuning.algebra import parse
    >>> print(latex(parse("D1 @ W @ D2 + s * A @ B").expression))
    D_{1} W D_{2} + s A B
    """
    raise TypeError(f"no LaTeX for {type(node).__name__}")


@latex.register
def _(node: Leaf) -> str:
    return _name(node.name)


@latex.register
def _(node: Number) -> str:
    return str(node)


@latex.register
def _(node: Identity) -> str:
    return "I"


@latex.register
def _(node: Activation) -> str:
    return rf"\operatorname{{{node.function}}}"


@latex.register
def _(node: Sparse) -> str:
    return rf"{_name(node.mask)} \odot {_name(node.entries)}"


@latex.register
def _(node: Product) -> str:
    joined = ""
    for factor in node.factors:
        # A nonlinearity acts on what stands left of it, so it is no factor.
        thin = r" \circ " if isinstance(factor, Activation) else " "
        after_activation = joined.endswith("}") and r"\operatorname" in joined.rpartition(" ")[2]
        text = _inside(factor)
        joined = text if not joined else joined + (r" \circ " if after_activation else thin) + text
    return joined


@latex.register
def _(node: Sum) -> str:
    text = latex(node.terms[0])
    for term in node.terms[1:]:
        number = term.scalar if isinstance(term, Scale) else term
        negative = isinstance(number, Number) and number.value < 0
        text += f" - {latex(-term)}" if negative else f" + {latex(term)}"
    return text


@latex.register
def _(node: Scale) -> str:
    inner = _inside(node.node)
    return f"-{inner}" if node.scalar == Number(-1.0) else f"{_inside(node.scalar)} {inner}"


@latex.register
def _(node: Hadamard) -> str:
    return rf"{_inside(node.left)} \odot {_inside(node.right)}"


@latex.register
def _(node: Kron) -> str:
    return r"(" + r" \otimes ".join(map(_inside, node.factors)) + ")"


@latex.register
def _(node: Transpose) -> str:
    return f"{_inside(node.node)}^\\top"


@latex.register
def _(node: Diag) -> str:
    return rf"\operatorname{{diag}}({latex(node.node)})"


@latex.register
def _(node: Elementwise) -> str:
    return rf"\operatorname{{{node.function}}}({latex(node.node)})"


@latex.register
def _(node: Affine) -> str:
    return rf"\begin{{bmatrix}} {latex(node.matrix)} \\ {latex(node.bias)} \end{{bmatrix}}"


@latex.register
def _(node: Unit) -> str:
    return rf"\operatorname{{unit}}({latex(node.node)})"


@latex.register
def _(node: Gate) -> str:
    return rf"\operatorname{{gate}}({latex(node.node)})"


def _inside(node: Expression) -> str:
    text = latex(node)
    return rf"({text})" if isinstance(node, (Sum, Hadamard, Sparse)) else text


def _name(name: str) -> str:
    """Return a name with its digits and what follows an underscore as an index."""
    if name == "rest":
        return r"W_{\mathrm{rest}}"
    match = re.fullmatch(r"([A-Za-z]+?)(?:_(\w+)|(\d+))?", name)
    assert match is not None
    stem, index = match[1], match[2] or match[3]
    shown = _GREEK.get(stem, stem if len(stem) == 1 else rf"\mathit{{{stem}}}")
    return f"{shown}_{{{index}}}" if index else shown
