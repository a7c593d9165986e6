"""Declared parameter counts: polynomials in the dimensions of a matrix."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping

from ..algebra import Sizes
from ..errors import SubspaceError

_OPERATIONS: Mapping[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}


def polynomial(text: str, sizes: Sizes) -> int:
    """Return the value of a count such as ``r * (n + m)``."""

    def value(tree: ast.expr) -> int:
        if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATIONS:
            return _OPERATIONS[type(tree.op)](value(tree.left), value(tree.right))
        if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
            return tree.value
        if isinstance(tree, ast.Name) and re.fullmatch(r"[nmkrpqcg]|[nmwv]\d", tree.id):
            return sizes.dimension(tree.id)
        raise SubspaceError(f"the count {text!r} is not a polynomial in n, m, k, r, p and q")

    return value(ast.parse(text, mode="eval").body)
