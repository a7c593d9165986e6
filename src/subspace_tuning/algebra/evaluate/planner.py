"""The cheapest steps for one layer and one number of rows, by dynamic programming over products.

In training each product counts once more per operand that needs a gradient. The cost of a node by itself is the node's
own rule (``step``, ``form_step``); this module chooses between forming a matrix or not, and the order of products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

from .. import names
from ..formula import Formula
from ..narrow_form import with_bias
from ..nodes import Expression, Identity, Leaf, Product, Step, W
from ..shapes import NodeShapes, Sizes
from .cost import CPU, CostModel
from .fuse import Fused
from .rewrite import Formed

_MOST_FACTORS = 12  # factors of a chain of which every order is tried, in cubic time


class _Part(NamedTuple):
    """A part of a chain: how its matrix is formed, and the cost of its product with another one."""

    step: Step
    rows: int
    columns: int
    trains: bool
    diagonal: bool


@dataclass
class CheapestSteps:
    """The planner that the nodes' rules call. ``apply`` multiplies rows by a node, ``form`` forms its matrix."""

    formula: Formula
    sizes: Sizes
    rows: int
    training: bool
    model: CostModel = CPU
    choose: bool = True
    opaque: bool = False
    """W is an operator (see :class:`.Operator`): it is formed only where it cannot be multiplied, and every product
    with it passes over all of its entries once more."""
    formed: dict[Expression, Step] = field(default_factory=dict)  # holds for every number of rows
    applied: dict[Expression, Step] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.shape: Callable[[Expression], tuple[int, int]] = NodeShapes(self.formula.shapes, self.sizes)

    def fused(self, node: Fused) -> float:
        """Return the cost of the kernel, or of the few torch operations in its place.

        In evaluation everything they need besides the rows is computed once for many calls.
        """
        rows, (n, m) = self.rows, self.shape(W)
        cost = self.product(rows, n, m, True, False)
        cost += 0.0 if node.composed else self.model.kernel * (1.0 if self.training else 0.5)
        for low, high in zip(node.lows, node.highs, strict=True):
            k = self.shape(low)[1]
            cost += self.form(low)[0] + self.form(high)[0] if self.training else 0.0
            cost += self.product(rows, n, k, True, self.trains(low)) + self.product(rows, k, m, True, self.trains(high))
            # A product that accumulates in place is written once: in the kernel, and in torch for a bias.
            cost -= self.model.move * rows * (n + m) if not node.composed else 0.0
            cost += self.elements(rows * n, 0) if node.composed and self.training else 0.0
        for scale, width in ((node.left, n), (node.right, m)):
            # torch writes the product whose column sums are the scales' gradient, the kernel only sums.
            cost += 0.0 if scale is None else self.elements(rows * width, 1 + (1 + node.composed) * self.trains(scale))
        if node.unit:  # form the matrix, compute its norms, scale the rows by them
            cost += self.elements(n * m, 0) * (2 if self.training else 0) + (node.right is None) * self.elements(
                rows * m
            )
        return cost

    def whole(self, expression: Expression) -> list[tuple[float, Fused]]:
        """Return the alternative with phi(W) formed as one matrix, if there is one."""
        matrix, bias = with_bias(expression)
        if self._stays_whole(matrix) or not matrix.has_matrix or matrix.diagonal or isinstance(matrix, Leaf):
            return []
        cost, formed = self.form(matrix)
        n, m = self.shape(matrix)
        return [
            (
                cost + self.product(self.rows, n, m, True, self.trains(matrix)),
                Fused(expression, bias, formed, composed=True),
            )
        ]

    def apply(self, node: Expression) -> Step:
        """Return the cheapest way to multiply the rows by the node."""
        if node not in self.applied:
            self.applied[node] = self._cheapest(node)
        return self.applied[node]

    def form(self, node: Expression) -> Step:
        """Return the cheapest way to form the node's matrix."""
        if node not in self.formed:
            if self.opaque and node == W:
                return self.elements(math.prod(self.shape(W))), W
            vector = node.diagonal and not isinstance(node, Product)
            self.formed[node] = (0.0, node) if vector else node.form_step(self)
        return self.formed[node]

    def _cheapest(self, node: Expression) -> Step:
        if node.diagonal and not isinstance(node, Identity):
            # torch writes the product whose column sums are the scales' gradient
            width = 0 if node.is_shapeless else self.shape(node)[0]
            return self.elements(self.rows * width, 1 + 2 * self.trains(node)), node
        step = node.step(self)
        if not self.choose or node.forms_itself or not node.has_matrix or node.diagonal or self._stays_whole(node):
            return step
        return min(step, self.by_matrix(node), key=lambda one: one[0])

    def by_matrix(self, node: Expression) -> Step:
        """Form the node's matrix, then multiply the rows by it."""
        cost, formed = self.form(node)
        n, m = self.shape(node)
        if node.diagonal:
            return cost + self.elements(self.rows * n, 1 + self.trains(node)), formed
        return cost + self.product(self.rows, n, m, True, self.trains(node)), Formed(formed)

    def _stays_whole(self, node: Expression) -> bool:
        """Return whether the rows must go through a node's parts: forming its matrix would form an operator."""
        return self.opaque and "W" in node.names

    # Products

    def chain(self, factors: tuple[Expression, ...]) -> Step:
        """Multiply the rows by a chain: each step takes one factor, or several formed into one matrix."""
        weighs = self.choose and len(factors) <= _MOST_FACTORS
        width = [0, *(0 for _ in factors)]
        best: list[tuple[float, tuple[Expression, ...]]] = [(0.0, ())]
        for end in range(1, len(factors) + 1):
            options = []
            for start in range(0 if weighs else end - 1, end):
                part = factors[start:end]
                if len(part) > 1 and not all(factor.has_matrix and not self._stays_whole(factor) for factor in part):
                    continue
                if len(part) == 1 and part[0].is_shapeless:
                    step: Step = (self.elements(self.rows * width[start]), part[0])
                    columns = width[start]
                else:
                    step = self.apply(part[0]) if len(part) == 1 else self.by_matrix(Product(part))
                    columns = self.shape(part[-1])[1]
                options.append((best[start][0] + step[0], (*best[start][1], step[1]), columns))
            cost, steps, width[end] = min(options, key=lambda option: option[0])
            best.append((cost, steps))
        cost, steps = best[-1]
        return cost, steps[0] if len(steps) == 1 else Product(steps)

    def formed_chain(self, factors: tuple[Expression, ...]) -> Step:
        """Form a chain in its best order, by dynamic programming; from left to right if it is long."""
        parts = [self._part(factor) for factor in factors]
        if not self.choose or len(parts) > _MOST_FACTORS:
            return reduce(self._joined, parts).step[0], Product(tuple(part.step[1] for part in parts))
        best = {(i, i + 1): part for i, part in enumerate(parts)}
        for length in range(2, len(parts) + 1):
            for i in range(len(parts) - length + 1):
                j = i + length
                options = [self._joined(best[i, k], best[k, j]) for k in range(i + 1, j)]
                best[i, j] = min(options, key=lambda option: option.step[0])
        return best[0, len(parts)].step

    def _part(self, factor: Expression) -> _Part:
        return _Part(self.form(factor), *self.shape(factor), self.trains(factor), factor.diagonal)

    def _joined(self, left: _Part, right: _Part) -> _Part:
        cost = left.step[0] + right.step[0]
        if left.diagonal or right.diagonal:
            cost += self.elements(left.rows * right.columns, 1 + left.trains + right.trains)
        else:
            cost += self.product(left.rows, left.columns, right.columns, left.trains, right.trains)
        formed = Product((left.step[1], right.step[1]))
        trains, diagonal = left.trains or right.trains, left.diagonal and right.diagonal
        return _Part((cost, formed), left.rows, right.columns, trains, diagonal)

    # Units of work

    def product(self, rows: int, middle: int, columns: int, left: bool, right: bool) -> float:
        """Return the cost of a product; left and right say which operands need a gradient."""
        return self.model.product(rows, middle, columns, 1 + self.training * (left + right))

    def elements(self, count: int, gradients: int = 1) -> float:
        """Return the cost of one pass over ``count`` numbers."""
        return self.model.elements(count, 1 + self.training * gradients)

    def trains(self, node: Expression) -> bool:
        return any(not names.is_frozen(name) for name in node.names)
