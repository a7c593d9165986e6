"""Free parts of a formula: the smallest parts that can take any value, and the factor that gives them a value.

``A`` is free, and so are ``U_r + A``, ``(V_r + B).T``, ``diag(sigma)`` and, among diagonals without negative entries,
``relu(S + D)``. Theory asks for the best value of such a part; ``assign`` then returns the factor that gives it.

Each node has one rule (``_way``): which of its children takes a value for it, and which value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..algebra import names
from ..algebra.nodes import Diag, Elementwise, Expression, Leaf, Scale, Sum, Transpose
from ..algebra.nodes.compact import added

Values = dict[str, Tensor]
Env = Mapping[str, Any]


class Way(NamedTuple):
    """How a node takes a value: ``child`` takes ``value(wanted, env)``, and everything else below it is unchanged."""

    child: Expression
    value: Callable[[Tensor, Env], Tensor]
    positive: bool = False  # reaches exactly the values without a negative entry


def trainable(node: Expression) -> tuple[str, ...]:
    """Return the names of the trainable factors of a node, without repetition."""
    return tuple(name for name in node.names if not names.is_frozen(name))


def is_free(node: Expression) -> bool:
    """Return whether a node can take any value of its shape (or any diagonal) through its trainable factor."""
    if isinstance(node, Leaf):
        return not names.is_frozen(node.name)
    way = _way(node)
    return way is not None and not way.positive and is_free(way.child)


def is_positive(node: Expression) -> bool:
    """Return whether a node can take exactly the diagonals without a negative entry."""
    way = _way(node)
    return way is not None and way.positive and is_free(way.child)


def assign(node: Expression, value: Tensor, env: Env) -> Values:
    """Return the trainable factor at which a free node has a value.

    Args:
        node: a node for which ``is_free`` or ``is_positive`` holds.
        value: in compact form: for a diagonal node, its vector.
        env: the values of the frozen names.
    """
    while not isinstance(node, Leaf):
        way = _way(node)
        assert way is not None
        node, value = way.child, way.value(value, env)
    return {node.name: value}


@singledispatch
def _way(node: Expression) -> Way | None:
    """Return how a node takes a value. A node without a rule is not free, but its parts may be."""
    return None


@_way.register
def _of_diag(node: Diag) -> Way:
    return Way(node.node, _unchanged)


@_way.register
def _of_transpose(node: Transpose) -> Way:
    return Way(node.node, lambda value, env: value if node.diagonal else value.T)


@_way.register
def _of_scale(node: Scale) -> Way | None:
    def divided(value: Tensor, env: Env) -> Tensor:
        number = float(node.value(env))
        return value / number if number else torch.zeros_like(value)

    return None if any(map(trainable, node.scalars)) else Way(node.node, divided)


@_way.register
def _of_sum(node: Sum) -> Way | None:
    moving = [term for term in node.terms if trainable(term)]
    if len(moving) != 1 or moving[0].diagonal != node.diagonal:
        return None
    fixed = [term for term in node.terms if not trainable(term)]

    def less(value: Tensor, env: Env) -> Tensor:
        for term in fixed:
            value = added(value, -term.compact(env))
        return value

    return Way(moving[0], less)


@_way.register
def _of_entries(node: Elementwise) -> Way | None:
    return Way(node.node, _unchanged, positive=True) if node.function == "relu" and node.diagonal else None


def _unchanged(value: Tensor, env: Env) -> Tensor:
    return value
