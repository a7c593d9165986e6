"""Takes out of a plan whatever does not depend on the rows, so that it is computed once for many calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..narrow_form import ShapeOf
from ..nodes import Diagonal, Environment, Expression, Leaf, Matrix


class Prepared(NamedTuple):
    """An equal expression in which names replace the parts taken out: ``held``."""

    expression: Expression
    held: Mapping[str, Expression]

    def values(self, env: Environment) -> dict[str, Tensor]:
        """Return the parts taken out. Autocast does not act on them: they also serve calls without it."""
        device = next(value.device.type for value in env.values() if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return {name: node.compact(env) for name, node in self.held.items()}


def prepare(expression: Expression, shape: ShapeOf, largest: int) -> Prepared:
    """Take out the vectors and small matrices that an expression computes from its names.

    Args:
        expression: a stage of a plan, in which nothing is sampled.
        shape: gives rows and columns of a node in numbers.
        largest: the most entries of a matrix taken out. A larger one is computed in every call: keeping one of W's size
            per layer would double the model.
    """
    held: dict[str, Expression] = {}

    def size(node: Expression) -> int:
        rows, columns = shape(node)
        return rows if node.diagonal else rows * columns

    def taken(node: Expression) -> Expression:
        if isinstance(node, Leaf) or node.is_shapeless:
            return node
        if (node.diagonal or node.forms_itself) and node.has_matrix:
            if size(node) > largest:
                return node
            name = f"<{len(held)}>"  # not a valid name in a formula
            held[name] = node
            return Diagonal(name) if node.diagonal else Matrix(name)
        node = node.apart
        return node.over(tuple(map(taken, node.children)))

    return Prepared(taken(expression), held)
