"""What a formula means, by docs/formula-language.md alone: an interpreter of its text with plain torch operations.

It shares nothing with the nodes: Python's own syntax tree is walked, every matrix is formed, and rows are multiplied by
it. Slow, and obviously right.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

RowMap = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, RowMap] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}
NOISE = 1e-10  # a column no longer than that is nothing, or what rounding left of a difference


class CancelledError(Exception):
    """A column has no direction but that of its rounding errors, so its normalisation means nothing."""


@dataclass(frozen=True)
class Value:
    """A number times one of: a matrix, the identity of any size ("I"), a map on rows; or the number alone (None).

    A number within a product stands in front of all of it, also across a nonlinearity.
    """

    number: Tensor
    core: Tensor | RowMap | str | None

    def matrix(self, size: int) -> Tensor:
        """Return the matrix; ``size`` is that of an identity."""
        if isinstance(self.core, Tensor):
            return self.number * self.core
        assert self.core == "I"
        return self.number * torch.eye(size, dtype=torch.float64)

    def rows(self, x: Tensor) -> Tensor:
        """Return rows times the matrix, or what the map makes of them."""
        if isinstance(self.core, Tensor):
            x = x @ self.core
        elif self.core != "I":
            assert callable(self.core)
            x = self.core(x)
        return self.number * x


def evaluate(text: str, named: Mapping[str, Any]) -> RowMap:
    """Return phi(W) as a map on rows.

    Args:
        text: the formula.
        named: what each name stands for: matrices, of a diagonal or a vector its numbers, of a mask the flat positions
            in W, of the entries under one their values.
    """
    return _Interpreter(named).value(ast.parse(text.strip(), mode="eval").body).rows


class _Interpreter:
    def __init__(self, named: Mapping[str, Any]) -> None:
        self.named = named

    def value(self, tree: ast.expr) -> Value:
        if isinstance(tree, ast.Constant):
            return _number(tree.value)
        if isinstance(tree, ast.Name):
            return self.name(tree.id)
        if isinstance(tree, ast.UnaryOp):
            inner = self.value(tree.operand)
            return Value(-inner.number, inner.core)
        if isinstance(tree, ast.Attribute):
            inner = self.value(tree.value)
            return _one((inner.number * inner.core).T) if isinstance(inner.core, Tensor) else inner
        if isinstance(tree, ast.Call):
            assert isinstance(tree.func, ast.Name)
            return self.call(tree.func.id, tree.args)
        assert isinstance(tree, ast.BinOp)
        if isinstance(tree.op, ast.Mult) and isinstance(tree.left, ast.Name) and tree.left.id[0] == "M":
            assert isinstance(tree.right, ast.Name)
            entries = torch.zeros_like(self.named["W"]).flatten()
            entries = entries.index_put((self.named[tree.left.id],), self.named[tree.right.id])
            return _one(entries.view_as(self.named["W"]))
        left, right = self.value(tree.left), self.value(tree.right)
        if isinstance(tree.op, ast.MatMult):
            return Value(left.number * right.number, _composed(left.core, right.core))
        if isinstance(tree.op, ast.Mult):
            return Value(left.number * right.number, _entrywise(left.core, right.core))
        return _added(left, right if isinstance(tree.op, ast.Add) else Value(-right.number, right.core))

    def name(self, name: str) -> Value:
        if name == "I":
            return _one("I")
        if name in FUNCTIONS:
            return _one(FUNCTIONS[name])
        held = torch.as_tensor(self.named[name], dtype=torch.float64)
        if held.ndim == 0:
            return Value(held, None)
        return _one(held if held.ndim == 2 else torch.diag(held))  # a diagonal is held as its numbers

    def call(self, name: str, arguments: list[ast.expr]) -> Value:
        if name == "diag":
            return _one(torch.diag(self.vector(arguments[0])))
        first = self.value(arguments[0])
        if name == "affine":
            bias = self.vector(arguments[1])
            return _one(lambda x: first.rows(x) + bias)
        factors = [self.value(argument).matrix(0) for argument in arguments]
        if name == "kron":
            return _one(torch.kron(*factors))
        (matrix,) = factors
        if name == "unit":
            norms = torch.linalg.vector_norm(matrix.detach(), dim=0)
            if (norms < NOISE).any():
                raise CancelledError
            return _one(matrix / norms)
        if name == "gate":
            return _one((torch.sigmoid(matrix) * 1.2 - 0.1).clamp(0, 1))
        if name == "reflect":
            product = torch.eye(len(matrix), dtype=torch.float64)
            for v in (column for column in matrix.T if column.any()):
                product = product @ (torch.eye(len(v), dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v))
            return _one(product)
        return _one(FUNCTIONS[name](matrix))

    def vector(self, tree: ast.expr) -> Tensor:
        """Return what stands where a vector is wanted."""
        if isinstance(tree, ast.Constant):
            return torch.tensor(float(tree.value), dtype=torch.float64)
        if isinstance(tree, ast.Name):
            return torch.as_tensor(self.named[tree.id], dtype=torch.float64)
        if isinstance(tree, ast.UnaryOp):
            return -self.vector(tree.operand)
        assert isinstance(tree, ast.BinOp)
        left, right = self.vector(tree.left), self.vector(tree.right)
        if isinstance(tree.op, ast.Mult):
            return left * right
        return left + right if isinstance(tree.op, ast.Add) else left - right


def _number(value: float) -> Value:
    return Value(torch.tensor(float(value), dtype=torch.float64), None)


def _one(core: Any) -> Value:
    return Value(torch.ones((), dtype=torch.float64), core)


def _composed(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        return right
    if isinstance(right, str):
        return left
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left @ right
    return lambda x: _one(right).rows(_one(left).rows(x))


def _entrywise(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return right if left is None else left
    if isinstance(left, str) and isinstance(right, str):
        return "I"
    size = len(right if isinstance(left, str) else left)
    return _one(left).matrix(size) * _one(right).matrix(size)


def _added(left: Value, right: Value) -> Value:
    if left.core is None and right.core is None:
        return Value(left.number + right.number, None)
    if isinstance(left.core, str) and isinstance(right.core, str):
        return Value(left.number + right.number, "I")
    matrices = [isinstance(side.core, (Tensor, str)) for side in (left, right)]
    if all(matrices):
        size = len(right.core if isinstance(left.core, str) else left.core)  # type: ignore[arg-type]
        return _one(left.matrix(size) + right.matrix(size))
    return _one(lambda x: left.rows(x) + right.rows(x))
