"""A formula for each matrix of a stack: experts that share one parameter have factors of their own, stacked alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..algebra import dense
from ..algebra.nodes import Environment, Expression
from ..methods import Factors

T = TypeVar("T")


def factors_of_each(make: Callable[[Tensor], Factors], matrix: Tensor) -> Factors:
    """Return the factors that ``make`` gives for W (n x m), or for each W of a stack (E x n x m), stacked by name."""
    if matrix.dim() == 2:
        return make(matrix)
    made = _of_each(make, matrix)
    return Factors(_stacked([one.parameters for one in made]), _stacked([one.constants for one in made]))


def constants_of_each(make: Callable[[Tensor], dict[str, Tensor]], matrix: Tensor) -> dict[str, Tensor]:
    """Return the constants that ``make`` gives for W, or for each W of a stack, stacked by name."""
    return make(matrix) if matrix.dim() == 2 else _stacked(_of_each(make, matrix))


def dense_each(expression: Expression, env: Environment, stacked: bool) -> Tensor:
    """Return the matrix of an expression, or one for each W of a stack where all tensors of the environment are stacks.

    Raises NotLinearError where there is none.
    """
    if not stacked:
        return dense(expression, env)
    tensors = {name: value for name, value in env.items() if isinstance(value, Tensor)}
    form = torch.vmap(lambda own: dense(expression, {**env, **own}), randomness="different")
    return form(tensors)


def _of_each(make: Callable[[Tensor], T], matrices: Tensor) -> list[T]:
    if matrices.is_meta:  # without numbers all are alike
        return [make(matrices[0])] * len(matrices)
    return [make(one) for one in matrices]


def _stacked(made: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in made]) for name in made[0]}
