"""How close phi(W) can come to a known W*: the factors that minimise ||W* - phi(W)||_F.

The paper defines a method by this number (arXiv 2407.05417). How it is found follows from the formula (see
``reading``): in closed form where the formula is one block, by solving for the blocks in turn where it is several, and
by a general least-squares solver where it is neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import methods
from ..algebra import dense
from ..algebra.names import is_frozen, is_start, start_of
from ..algebra.nodes import Expression, Sum
from ..errors import SubspaceError
from ..methods import Method, environment, initial_factors
from .elements import Env, Values, assign, is_free
from .problem import Problem, read_matrix, read_root, shape_of
from .search import SETTLED, SWEEPS, How, Search

_DEFAULT_DIRECTIONS = 8


@dataclass(frozen=True)
class Approximation:
    """The best phi(W) that was found for a W*.

    Attributes:
        method: whose formula it is.
        factors: the value of each trainable factor as it stands in the formula (a scale near 1, say).
        constants: masks and chosen directions that were part of the search, and what else the formula names.
        matrix: phi(W), n x m.
        error: ||W* - phi(W)||_F, or ||X (W* - phi(W))||_F for given activations.
        norm: ||W*||_F in the same norm.
        how: "exact" - no factors do better; "iterative" - blocks solved in turn, the error falling from step to step
            to a stationary point; "heuristic" - a discrete choice or a general solver stands between.
        lower_bound: a relative error that no factors of this method can fall below; None if none is known.
        sweeps: how often the blocks took turns.
        history: the relative error after every sweep.
        reason: why a general solver was needed; None if it was not.
    """

    method: Method
    factors: dict[str, Tensor]
    constants: dict[str, Tensor]
    matrix: Tensor
    scale: float
    error: float
    norm: float
    how: How
    lower_bound: float | None
    sweeps: int = 0
    history: tuple[float, ...] = ()
    reason: str | None = None

    @property
    def relative_error(self) -> float:
        """||W* - phi(W)|| / ||W*||."""
        return self.error / self.norm if self.norm else self.error

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The factors as an adapter keeps them: those with a fixed nonzero start as the offset from it."""
        found = {}
        for name, anchored in self.method.anchors().items():
            number = self.method.fixed_anchors().get(name)
            start = 0.0 if not anchored else self.constants[start_of(name)] if number is None else number
            found[name] = self.factors[name] - start
        return found


def approximate(
    method: str | Method,
    W: Tensor,
    W_star: Tensor,
    *,
    r: int = 8,
    scale: float | None = None,
    activations: Tensor | None = None,
    covariance: Tensor | None = None,
    bias: Tensor | None = None,
    bias_star: Tensor | None = None,
    entries: int | None = None,
    directions: int | None = None,
    sweeps: int = SWEEPS,
    settled: float = SETTLED,
    seed: int = 0,
    cache: bool = True,
    starts: Mapping[str, str] | None = None,
) -> Approximation:
    """Find the factors of a method that bring phi(W) closest to W*.

    Args:
        method: a registered method, by its name or itself, or a formula such as "D1 @ W @ D2 + s * A @ B".
        W: the frozen weight, n x m (in x out).
        W_star: the weight to come to, n x m.
        r: the rank.
        scale: s; 2 if not given, as alpha = 2 r makes it. The factors take up any other.
        activations: X, rows x n: the error is then that of the outputs, ||X (W* - phi(W))||_F.
        covariance: X.T @ X instead, n x n, symmetric without negative eigenvalues (see ``Covariance``).
        bias: b (m), for formulas that name it.
        bias_star: the bias to come to; such formulas take it exactly.
        entries: how many entries a mask lets train; the method's own share if not given.
        directions: how many singular directions are chosen.
        sweeps: the maximum number of turns of the blocks.
        settled: no further turn if the last one gained less than this share of the error.
        seed: of the starts of the general solver.
        cache: look W's own decomposition up on disk, and keep it there.
        starts: where the factors of a formula start, which the turns of its blocks and the general solver begin from;
            inferred if not given. Nothing is trained, so phi(W) need not be W there.

    Returns:
        The factors in float64 with the error and how they were found.

    Raises:
        SubspaceError: phi(W) is not a matrix (it has a nonlinearity), or the shapes or the rank do not fit.
    """
    chosen = _resolve(method, starts)
    W, W_star = read_matrix("W", W), read_matrix("W*", W_star)
    if W.shape != W_star.shape:
        raise SubspaceError(f"W is {shape_of(W)} and W* is {shape_of(W_star)}: they must have one shape")
    formula = chosen.formula
    if not formula.is_linear or formula.wraps_norm:
        raise SubspaceError(f"method {chosen.name!r} has no dense phi(W) to compare with W*: {formula} is not linear")
    k = min(W.shape)
    if formula.has_rank and not 1 <= r <= k:
        raise SubspaceError(f"rank {r} is not between 1 and min(n, m) = {k}")
    root = read_root(activations, covariance, W.shape[0])
    if entries is None:
        entries = max(1, round((chosen.budget or 0.005) * W.numel())) if formula.masked else 0
    if directions is None:
        directions = min(_DEFAULT_DIRECTIONS, k) if formula.chooses_directions else 0
    scale = 2.0 if scale is None else scale
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        factors = initial_factors(chosen, W, r, cache=cache, scale=scale, entries=entries, directions=directions)
    constants, parameters = _wide(factors.constants), _wide(factors.parameters)
    wide_bias = None if bias is None else bias.double()
    env: dict[str, Any] = dict(environment(chosen, W, parameters, constants, scale, wide_bias))
    if "rest" in formula.expression.names:
        env["rest"] = W - (env["U_r"] * env["S_r"]) @ env["V_r"].T
    problem = Problem(W_star, root, entries, directions, keeps_mask=chosen.chooses_by_weight)
    found = Search(formula.matrix, problem, sweeps, settled, seed).run(env)
    env = found.env
    if bias is not None and bias_star is not None and formula.bias is not None:
        env.update(_bias(formula.bias, bias_star.double(), env))
    norm, matrix = problem.norm, dense(formula.matrix, env)
    named = {*formula.expression.names, *formula.evaluated.names}
    return Approximation(
        chosen,
        {name: env[name] for name in formula.trainable},
        {name: value for name, value in env.items() if isinstance(value, Tensor) and _is_constant(name, named)},
        matrix,
        env["s"],
        problem.error(matrix),
        norm,
        found.how,
        None if found.bound is None else found.bound / norm if norm else found.bound,
        len(found.history),
        tuple(value / norm for value in found.history) if norm else (),
        found.reason,
    )


def _resolve(method: str | Method, starts: Mapping[str, str] | None) -> Method:
    if starts is not None and (isinstance(method, Method) or method.isidentifier()):
        name = method.name if isinstance(method, Method) else method
        raise SubspaceError(f"starts go with a formula, and method {name!r} has its own")
    if isinstance(method, Method):
        return method
    return methods.get(method) if method.isidentifier() else methods.from_formula(method, starts)


def _wide(tensors: Mapping[str, Tensor]) -> Values:
    return {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}


def _bias(node: Expression, target: Tensor, env: Env) -> Values:
    """Return the factor at which the bias of a formula is the wanted one; none if there is no such factor."""
    for term in node.terms if isinstance(node, Sum) else (node,):
        if is_free(term):
            return assign(term, target - (node.compact(env) - term.compact(env)), env)
    return {}


def _is_constant(name: str, named: set[str]) -> bool:
    return (name in named or is_start(name)) and name not in ("W", "b", "rest") and is_frozen(name)
