"""The search for factors that solve a problem: at once, block by block, or by the general solver."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch

from ..algebra import dense
from ..algebra.nodes import Expression
from .blocks import Block, Diagonals
from .elements import Env, assign, is_free, trainable
from .general import least_squares
from .problem import Problem
from .reading import BY_NORM, NoRuleError, find_blocks, norms_taken, without_unit

How = Literal["exact", "iterative", "heuristic"]

SWEEPS = 500
SETTLED = 1e-10
"""The share of the error by which a sweep must reduce it to be followed by another."""


class Solution(NamedTuple):
    """The result of a search: the environment, and how it was reached."""

    env: dict[str, Any]
    how: How
    bound: float | None  # a lower bound on the error; None if unknown
    history: list[float]  # the error after every sweep
    reason: str | None  # why the general solver was needed


def is_solved_by_blocks(expression: Expression) -> bool:
    """Return whether every block of phi(W) has a rule; other formulas need the general solver, which is slow."""
    try:
        find_blocks(without_unit(expression))
    except NoRuleError:
        return False
    return True


@dataclass
class Search:
    """A search over the trainable factors of a formula's matrix.

    Attributes:
        expression: phi(W), a matrix.
        problem: the target and the norm.
        sweeps: the largest number of sweeps.
        settled: the share of the error by which a sweep must reduce it to be followed by another.
        seed: the seed for the starting points of the general solver.
    """

    expression: Expression
    problem: Problem
    sweeps: int = SWEEPS
    settled: float = SETTLED
    seed: int = 0

    def run(self, env: dict[str, Any]) -> Solution:
        """Search from the factors in ``env``, the formula's whole environment."""
        norms, solved = norms_taken(self.expression), without_unit(self.expression)
        try:
            blocks = find_blocks(solved)
            if self.problem.root is not None and any(block.place.weight is not None for block in blocks):
                raise NoRuleError("there is no rule for an element-wise product with activations")
        except NoRuleError as error:
            found = least_squares(self.expression, env, self.problem.W_star, self.problem.root, self.seed)
            return Solution({**env, **found}, "heuristic", None, [], str(error))
        env = env | {f"{name}{BY_NORM}": torch.ones_like(env[name]) for name in norms}
        env, how, history = self._solved(blocks, solved, env)
        for name, inner in norms.items():
            env[name] = env[f"{name}{BY_NORM}"] * torch.linalg.vector_norm(dense(inner, env), dim=0)
        bound = self.error(self.expression, env) if how == "exact" else self._bound(blocks, solved, env)
        return Solution(env, how, bound, history, None)

    def error(self, expression: Expression, env: Env) -> float:
        """Return how far an expression is from W*."""
        return self.problem.error(dense(expression, env))

    def _solved(
        self, blocks: list[Block], expression: Expression, env: dict[str, Any]
    ) -> tuple[dict[str, Any], How, list[float]]:
        choices = {block.choice(self.problem) for block in blocks}
        if not blocks:
            return env, "exact", []
        if len(blocks) == 1 and blocks[0].closed:
            env = self._turn(blocks, expression, env)
            return env, "heuristic" if "guess" in choices else "exact", []
        env, history = self._alternate(blocks, expression, env)
        # A choice beside other blocks is made for their current values only.
        return env, "heuristic" if choices != {"none"} else "iterative", history

    def _turn(self, blocks: list[Block], expression: Expression, env: dict[str, Any]) -> dict[str, Any]:
        """Solve for each block once, with everything else fixed."""
        for block in blocks:
            constant = dense(expression, env | block.zero(env))
            equation = block.place.equation(self.problem, constant, env)
            env = env | block.solved(equation, env, self.problem)
        return env

    def _alternate(
        self, blocks: list[Block], expression: Expression, start: dict[str, Any]
    ) -> tuple[dict[str, Any], list[float]]:
        """Solve for the blocks in turn, starting once from each of them, and keep the best result."""
        best: tuple[dict[str, Any], list[float]] | None = None
        for first in range(len(blocks)):
            order = blocks[first:] + blocks[:first]
            env: dict[str, Any] = start
            errors: list[float] = []
            for _ in range(self.sweeps):
                env = self._turn(order, expression, env)
                errors.append(self.error(expression, env))
                if len(errors) > 1 and errors[-2] - errors[-1] <= self.settled * errors[-2]:
                    break
            if best is None or errors[-1] < best[1][-1]:
                best = env, errors
        assert best is not None
        return self._balanced(blocks, expression, best[0]), best[1]

    def _balanced(self, blocks: list[Block], expression: Expression, env: dict[str, Any]) -> dict[str, Any]:
        """Fix the gauge of two diagonals that may exchange a factor: equal root mean squares, a positive mean first."""
        single = [block.run[0] for block in blocks if isinstance(block, Diagonals) and len(block.run) == 1]
        for one, other in pairwise(filter(is_free, single)):
            first, second = one.compact(env), other.compact(env)
            if not (first.any() and second.any()):
                continue
            ratio = float((second.square().mean() / first.square().mean()).sqrt().sqrt())
            ratio = -ratio if first.mean() < 0 else ratio
            moved = env | assign(one, first * ratio, env) | assign(other, second / ratio, env)
            change = self.error(expression, moved) - self.error(expression, env)
            if abs(change) <= 1e-9 * float(torch.linalg.vector_norm(self.problem.W_star)):
                env = moved
        return env

    def _bound(self, blocks: list[Block], expression: Expression, env: dict[str, Any]) -> float | None:
        """Return the lower bound from ranks alone: low-rank blocks do no better than one block of their total rank.

        None if a block is limited by more than its rank, or multiplies another block or W itself.
        """
        total, fixed = 0, env
        for block in blocks:
            rank = block.rank(env, self.problem)
            if rank is None or any(map(trainable, (*block.place.left, *block.place.right))):
                return None
            total, fixed = total + rank, fixed | block.zero(fixed)
        rest = self.problem.seen(self.problem.W_star - dense(expression, fixed))
        return float(torch.linalg.vector_norm(torch.linalg.svdvals(rest)[total:]))
