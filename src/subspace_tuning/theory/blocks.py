"""The parts of a formula that can be solved for, each with the others fixed.

With everything else fixed, phi(W) = constant + weight * (left @ X @ right) in a *block* X: a diagonal, a matrix of
limited rank, entries under a mask, some of W's singular directions, or a number. For each of these the best X is known
(see ``solve``). ``reading`` finds the blocks of a formula.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..algebra import dense
from ..algebra.nodes import Expression, Product, Sparse
from ..linalg import svd
from . import solve
from .chains import padded, reachable, spread, spread_diagonal
from .elements import Env, Values, assign, is_positive, trainable
from .problem import Problem
from .solve import Side

_WEIGHTED_SWEEPS = 20


class Equation(NamedTuple):
    """target = weight * (left @ X @ right), to solve for X by least squares. None means identity, or no weight."""

    target: Tensor
    left: Side
    right: Side
    weight: Tensor | None


@dataclass(frozen=True)
class Place:
    """The place of a part X: phi(W), or its transpose if ``flipped``, is c + scalars * weight * (left @ X @ right)."""

    left: tuple[Expression, ...] = ()
    right: tuple[Expression, ...] = ()
    scalars: tuple[Expression, ...] = ()
    weight: Expression | None = None
    flipped: bool = False

    @property
    def alone(self) -> bool:
        """Whether there are no factors beside X."""
        return not (self.left or self.right)

    def between(self, before: Sequence[Expression], after: Sequence[Expression]) -> Place:
        """Return the place between factors of a product at this place."""
        return replace(self, left=(*self.left, *before), right=(*after, *self.right))

    def scaled(self, *scalars: Expression) -> Place:
        """Return the place after numbers."""
        return replace(self, scalars=(*self.scalars, *scalars))

    def turned(self) -> Place:
        """Return the place within a transpose."""
        left, right = (tuple(factor.T for factor in reversed(side)) for side in (self.right, self.left))
        weight = None if self.weight is None else self.weight.T
        return Place(left, right, self.scalars, weight, not self.flipped)

    def scale(self, env: Env) -> float:
        """Return the numbers before X, multiplied."""
        return math.prod(float(scalar.compact(env)) for scalar in self.scalars)

    def equation(self, problem: Problem, constant: Tensor, env: Env) -> Equation:
        """Return the equation for X, if phi(W) is ``constant`` where X is zero."""
        scale = self.scale(env)
        target = (problem.W_star - constant) / scale if scale else torch.zeros_like(constant)
        left, right, root = _side(self.left, env), _side(self.right, env), problem.root
        if self.flipped:
            target = target.T
        if root is not None and self.flipped:
            target = target @ root.T
            right = root.T if right is None else solve.times(right, root.T)
        elif root is not None:
            target = root @ target
            left = root if left is None else solve.times(None, root, left)
        return Equation(target, left, right, None if self.weight is None else dense(self.weight, env))


def _side(factors: tuple[Expression, ...], env: Env) -> Side:
    """Return the product of the factors on one side of a block, or None if there are none."""
    if not factors:
        return None
    value = Product(factors).compact(env)
    return value if value.dim() else None


@dataclass(frozen=True)
class Block(ABC):
    """A part of a formula whose best value is known, and its place. It is the product of the factors in ``run``."""

    run: tuple[Expression, ...]
    place: Place

    closed: ClassVar[bool] = True
    """Whether ``solved`` gives the best value at once; otherwise it gives a better one."""

    @property
    def names(self) -> tuple[str, ...]:
        """The trainable factors in it."""
        return tuple(name for node in self.run for name in trainable(node))

    @abstractmethod
    def solved(self, equation: Equation, env: Env, problem: Problem) -> Values:
        """Return the factors at which the block solves its equation."""

    def zero(self, env: Env) -> Values:
        """Return factors at which the block is zero."""
        node = next(node for node in self.run if trainable(node))
        return assign(node, torch.zeros_like(node.compact(env)), env)

    def rank(self, env: Env, problem: Problem) -> int | None:
        """Return the largest rank of the block, or None if it is limited by more than its rank."""
        return None

    def choice(self, problem: Problem) -> Literal["none", "best", "guess"]:
        """Return whether solving makes a discrete choice, and whether that is the best one for the block alone."""
        return "none"


class Diagonals(Block):
    """A product of diagonals."""

    def solved(self, equation: Equation, env: Env, problem: Problem) -> Values:
        target, left, right, _ = equation
        start = Product(self.run).compact(env)
        positive = is_positive(self.run[0])
        return spread_diagonal(self.run, solve.diagonal(target, left, right, start, positive), env)


class Chain(Block):
    """A product of free matrices, with diagonals among them: any matrix of limited rank."""

    def solved(self, equation: Equation, env: Env, problem: Problem) -> Values:
        target, left, right, _ = equation
        shapes = [dense(node, env).shape for node in self.run]
        found = solve.low_rank(target, left, right, reachable(self.run, shapes, env))
        return spread(self.run, shapes, found, env)

    def rank(self, env: Env, problem: Problem) -> int:
        return min(min(dense(node, env).shape) for node in self.run)


class Entries(Block):
    """Entries under a mask, which is also chosen if not given."""

    def solved(self, equation: Equation, env: Env, problem: Problem) -> Values:
        mask, entries = self._names
        fixed = env[mask] if problem.keeps_mask else None
        count = min(problem.entries, problem.W_star.numel())
        positions, values = solve.entries(equation.target, equation.left, count, fixed)
        return {mask: positions, entries: values}

    def zero(self, env: Env) -> Values:
        _, entries = self._names
        return {entries: torch.zeros_like(env[entries])}

    def choice(self, problem: Problem) -> Literal["none", "best", "guess"]:
        if problem.keeps_mask:
            return "none"
        return "best" if problem.root is None else "guess"

    @property
    def _names(self) -> tuple[str, str]:
        (node,) = self.run
        assert isinstance(node, Sparse)
        return node.mask, node.entries


class Directions(Block):
    """``U_k @ diag(sigma) @ V_k.T``: chosen singular directions of W, and their values."""

    def solved(self, equation: Equation, env: Env, problem: Problem) -> Values:
        """Choose the directions that reduce the error most; independently, since they are orthogonal."""
        U, _, V = svd(env["W"])
        images = U if equation.left is None else solve.times(equation.left, U)
        sizes = images.square().sum(0)
        products = ((images.T @ equation.target) * V.T).sum(1)
        values = products / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
        chosen = (products * values).topk(problem.directions).indices.sort().values
        return {"U_k": U[:, chosen], "V_k": V[:, chosen]} | assign(self.run[1], values[chosen], env)

    def rank(self, env: Env, problem: Problem) -> int:
        return problem.directions

    def choice(self, problem: Problem) -> Literal["none", "best", "guess"]:
        return "best"


class Multiple(Block):
    """A number times a fixed matrix, which is part of the place."""

    def solved(self, equation: Equation, env: Env, problem: Problem) -> Values:
        target, left, right, _ = equation
        if right is None or right.dim() == 1:
            right = torch.diag(target.new_ones(target.shape[1]) if right is None else right)
        image = solve.times(left, right)
        square = float(image.square().sum())
        return assign(self.run[0], (target * image).sum() / square, env) if square else {}


class Weighted(Block):
    """A free matrix in an element-wise product with another."""

    def solved(self, equation: Equation, env: Env, problem: Problem) -> Values:
        target, weight = equation.target, equation.weight
        assert weight is not None
        seen = weight.abs() > torch.finfo(weight.dtype).tiny
        return assign(self.run[0], torch.where(seen, target / torch.where(seen, weight, 1.0), 0.0), env)


class WeightedProduct(Block):
    """A product of two free matrices, in an element-wise product with another."""

    closed = False

    def solved(self, equation: Equation, env: Env, problem: Problem) -> Values:
        target, weight = equation.target, equation.weight
        assert weight is not None
        (one, other) = (node.compact(env) for node in self.run)
        if not weight.any():
            return {}
        if not (one @ other).any():  # the start of a method: begin at the best product for a constant weight
            flat = solve.low_rank(target * weight / weight.square().mean(), None, None, one.shape[1])
            one, other = padded(flat.U * flat.S.sqrt(), one.shape[1]), padded(flat.V * flat.S.sqrt(), one.shape[1]).T
        for _ in range(_WEIGHTED_SWEEPS):
            one, other = solve.weighted_low_rank(target, weight, one, other)
        return assign(self.run[0], one, env) | assign(self.run[1], other, env)
