"""Weights of all shapes, and a method's environment on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from subspace_tuning.algebra import Formula, NotLinearError, Sizes, dense
from subspace_tuning.algebra.nodes import Affine
from subspace_tuning.methods import Method, environment, initial_factors

SHAPES = {"tall": (11, 6), "wide": (6, 11), "square": (8, 8), "deficient": (9, 7), "zero_column": (7, 6)}
RANK, SCALE, ENTRIES, DIRECTIONS = 3, 1.7, 9, 2
EPSILON = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 6e-2}


def weight_of(shape: str, dtype: torch.dtype = torch.float64) -> Tensor:
    n, m = SHAPES[shape]
    weight = torch.randn(n, m, dtype=torch.float64) / n**0.5
    if shape == "deficient":
        weight = weight[:, :3] @ torch.randn(3, m, dtype=torch.float64)
    if shape == "zero_column":
        weight[:, 2] = 0.0
    return weight.to(dtype)


def sizes_of(weight: Tensor) -> Sizes:
    return Sizes(weight.shape[0], weight.shape[1], RANK, ENTRIES, DIRECTIONS)


def rows_of(case: Method, weight: Tensor, count: int) -> Tensor:
    """Return rows that fit phi(W): as wide as W's inputs, or as what a normalisation sees."""
    width = weight.shape[1] if case.formula.wraps_norm else weight.shape[0]
    return torch.randn(count, width, dtype=torch.float64).to(weight.dtype)


def norm(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:])


def frozen(case: Method, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what the frozen layer gives, as far as phi stands for it."""
    if case.formula.wraps_norm:
        return norm(x)
    return x @ weight + bias if case.formula.names_bias and bias is not None else x @ weight


def environment_of(case: Method, weight: Tensor, random: bool, bias: Tensor | None = None) -> dict[str, Any]:
    """Return the environment, with the parameters as leaves that want gradients and the constants beside it."""
    factors = initial_factors(case, weight, RANK, random=random, scale=SCALE, entries=ENTRIES, directions=DIRECTIONS)
    leaves = {name: tensor.requires_grad_() for name, tensor in factors.parameters.items()}
    env: dict[str, Any] = dict(environment(case, weight, leaves, factors.constants, SCALE, bias, norm=norm))
    env |= {"leaves": leaves, "constants": factors.constants}
    return env


def split(formula: Formula, env: dict[str, Any]) -> tuple[Tensor, Tensor | float]:
    """Return the dense matrix and the bias of a linear formula, formed without the planner."""
    expression = formula.evaluated
    if not formula.is_linear:
        raise NotLinearError(str(formula))
    if isinstance(expression, Affine):
        return dense(expression.matrix, env), expression.bias.compact(env)
    return dense(expression, env), 0.0
