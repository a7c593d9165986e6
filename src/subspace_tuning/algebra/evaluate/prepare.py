"""What of a plan does not depend on the rows, taken out of it, so that it is computed once for many calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..nodes import Diagonal, Environment, Expression, Leaf, Matrix
from ..normal_form import Shape


class Prepared(NamedTuple):
    """An expression equal to another one, in which names stand for what was taken out: ``held``."""

    expression: Expression
    held: Mapping[str, Expression]

    def values(self, env: Environment) -> dict[str, Tensor]:
        """Return what was taken out. Autocast does not act on it: it also serves calls without."""
        device = next(value.device.type for value in env.values() if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return {name: node.compact(env) for name, node in self.held.items()}


def prepare(expression: Expression, shape: Shape, largest: int) -> Prepared:
    """Take out the vectors and small matrices that an expression computes from its names.

    Args:
        expression: a stage of a plan, of which nothing is drawn anew.
        shape: gives rows and columns of a node in numbers.
        largest: how many entries a matrix may have. A larger one is computed in every call: W's size for every layer
            would double a model.
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
            name = f"<{len(held)}>"  # no name of a formula
            held[name] = node
            return Diagonal(name) if node.diagonal else Matrix(name)
        node = node.apart
        return node.over(tuple(map(taken, node.children)))

    return Prepared(taken(expression), held)
