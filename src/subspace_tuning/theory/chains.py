"""From the value of a chain such as ``A @ D @ B`` to the values of its factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..algebra.nodes import Expression
from . import solve
from .elements import Values, assign, trainable


def reachable(run: tuple[Expression, ...], shapes: list[torch.Size], env: Mapping[str, Any]) -> int:
    """Return the largest rank that a chain's product can have."""
    frozen = [node.compact(env) for node in run if not trainable(node)]
    return min([min(shape) for shape in shapes] + [int(value.count_nonzero()) for value in frozen])


def spread_diagonal(run: tuple[Expression, ...], value: Tensor, env: Mapping[str, Any]) -> Values:
    """Set the value of a product of diagonals: the last factor takes it, the others become 1."""
    found: Values = {}
    free = [node for node in run if trainable(node)]
    for node in run:
        if not trainable(node):
            value = value * solve.inverse_diagonal(node.compact(env))
        elif node is not free[-1]:
            found |= assign(node, torch.ones_like(value), env)
    return found | assign(free[-1], value, env)


def spread(
    run: tuple[Expression, ...], shapes: list[torch.Size], value: tuple[Tensor, Tensor, Tensor], env: Mapping[str, Any]
) -> Values:
    """Set the product of a chain to U @ diag(S) @ V.T.

    Two dense factors get the square root of S each. If there are trainable factors between them, these take S, and the
    outer ones are the singular vectors, which satisfy the orthogonal pattern. A frozen diagonal in between is divided
    out.
    """
    U, S, V = value
    thick = [index for index, node in enumerate(run) if not node.diagonal]
    first, last = thick[0], thick[-1]
    found: Values = {}
    for index, node in enumerate(run):
        if trainable(node) and not first <= index <= last:
            found |= assign(node, torch.ones(shapes[index][0], dtype=S.dtype), env)
    if first == last:
        matrix = (U * S) @ V.T
        for index, node in enumerate(run):
            if not trainable(node):
                inverse = solve.inverse_diagonal(node.compact(env))
                matrix = solve.times(inverse, matrix) if index < first else solve.times(None, matrix, inverse)
        return found | assign(run[first], matrix, env)
    between = range(first + 1, last)
    cores = [index for index in between if trainable(run[index])]
    width, end = shapes[first][1], shapes[last][0]
    half = torch.ones_like(S) if cores else S.sqrt()
    frozen = [run[index].compact(env) for index in between if not trainable(run[index])]
    places = torch.arange(width)
    if frozen:  # as many as are reachable, where it is not zero
        middle = torch.stack([value.expand(width) for value in frozen]).prod(0)
        places = middle.nonzero().flatten()
        outer = middle[places[: len(S)]]
        halves = outer.abs().rsqrt()
        left, right = U * (half * halves), V * (half * halves * outer.sign())
    else:
        left, right = U * half, V * half
    found |= assign(run[first], _placed(left, places, width), env)
    found |= assign(run[last], _placed(right, places, end).T, env)
    for index in cores:
        rows, columns = shapes[index]
        core = torch.ones(min(rows, columns), dtype=S.dtype)
        if index == cores[0]:
            core = torch.zeros_like(core)
            core[places[: len(S)]] = S
        found |= assign(run[index], core if run[index].diagonal else _rectangle(core, rows, columns), env)
    return found


def _placed(columns: Tensor, places: Tensor, width: int) -> Tensor:
    """Return a matrix of this many columns, with the given ones at some places and zeros elsewhere."""
    matrix = columns.new_zeros(len(columns), width)
    matrix[:, places[: columns.shape[1]]] = columns
    return matrix


def padded(columns: Tensor, width: int) -> Tensor:
    return _placed(columns, torch.arange(columns.shape[1]), width)


def _rectangle(values: Tensor, rows: int, columns: int) -> Tensor:
    matrix = values.new_zeros(rows, columns)
    matrix.diagonal()[:] = values
    return matrix
