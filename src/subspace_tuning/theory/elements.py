"""What is free in a formula: the smallest parts that can take any value, and how a value is read back into a factor.

``A`` is free, and so are ``U_r + A``, ``(V_r + B).T``, ``diag(sigma)`` and, among diagonals of no negative entry,
``relu(S + D)``. Theory asks for the best value of such a part, and ``assign`` says at which value of the trainable
factor within the part has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..algebra import names
from ..algebra.nodes import (
    Diag,
    Diagonal,
    Elementwise,
    Expression,
    Leaf,
    Matrix,
    Scale,
    Sum,
    Transpose,
    Vector,
)

Values = dict[str, Tensor]


def trainable(node: Expression) -> tuple[str, ...]:
    """Return the names of the trainable factors of a node, each once."""
    return tuple(name for name in node.names if not names.is_frozen(name))


def is_free(node: Expression) -> bool:
    """Whether a node can take any value of its shape (of a diagonal: any diagonal) by its trainable factor."""
    if isinstance(node, (Matrix, Diagonal)):
        return not names.is_frozen(node.name)
    if isinstance(node, Diag):
        return _is_free_vector(node.node)
    if isinstance(node, Transpose):
        return is_free(node.node)
    if isinstance(node, Scale):
        return not any(map(trainable, node.scalars)) and is_free(node.node)
    return isinstance(node, Sum) and _one_free_term(node, is_free)


def is_positive(node: Expression) -> bool:
    """Whether a node can take any diagonal without a negative entry, and nothing else."""
    return isinstance(node, Elementwise) and node.function == "relu" and node.diagonal and is_free(node.node)


def _is_free_vector(node: Expression) -> bool:
    if isinstance(node, Vector):
        return not names.is_frozen(node.name)
    return isinstance(node, Sum) and _one_free_term(node, _is_free_vector)


def _one_free_term(node: Sum, free: Callable[[Expression], bool]) -> bool:
    moving = [term for term in node.terms if trainable(term)]
    return len(moving) == 1 and free(moving[0]) and moving[0].diagonal == node.diagonal


def assign(node: Expression, value: Tensor, env: Mapping[str, object]) -> Values:
    """Return the trainable factor at which a free node has a value.

    Args:
        node: a node for which ``is_free`` or ``is_positive`` holds.
        value: in compact form, that is of a diagonal node the vector.
        env: what the frozen names stand for.
    """
    if isinstance(node, Leaf):
        return {node.name: value}
    if isinstance(node, (Diag, Elementwise)):
        return assign(node.node, value, env)
    if isinstance(node, Transpose):
        return assign(node.node, value if node.diagonal else value.T, env)
    if isinstance(node, Scale):
        return assign(node.node, value / float(node.value(env)), env)  # type: ignore[arg-type]
    assert isinstance(node, Sum)
    for term in node.terms:
        if not trainable(term):
            value = value - term.compact(env)  # type: ignore[arg-type]
    return assign(next(term for term in node.terms if trainable(term)), value, env)
