"""How close phi(W) can come to a known W*: the factors that minimise ||W* - phi(W)||_F.

The paper judges a method by this number (arXiv 2407.05417). How it is computed follows from the formula (see
``reading``): in closed form if the formula is one block, by solving for the blocks in turn if it is several, and by a
general least-squares solver otherwise.
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
    """The best phi(W) found for a W*.

    Attributes:
        method: the method.
        factors: the value of each trainable factor in the formula (for example, a scale near 1).
        constants: masks and chosen directions that were part of the search, and the formula's other constants.
        matrix: phi(W), n x m.
        error: ||W* - phi(W)||_F, or ||X (W* - phi(W))||_F for given activations.
        norm: ||W*||_F in the same norm.
        how: "exact": no factors do better; "iterative": blocks were solved in turn, with the error falling to a
            stationary point; "heuristic": a discrete choice or the general solver was involved.
        lower_bound: a relative error below which no factors of this method can fall; None if none is known.
        sweeps: the number of sweeps over the blocks.
        history: the relative error after every sweep.
        reason: why the general solver was needed; None if it was not.
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
        """The factors as stored in an adapter: those with a fixed nonzero start as the offset from it."""
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
        method: a registered method or its name, or a formula such as "D1 @ W @ D2 + s * A @ B".
        W: the frozen weight, n x m (in x out).
        W_star: the target weight, n x m.
        r: the rank.
        scale: s; 2 by default, as for alpha = 2 r. The factors absorb any other value.
        activations: X, rows x n: the error is then that of the outputs, ||X (W* - phi(W))||_F.
        covariance: X.T @ X instead, n x n, symmetric without negative eigenvalues (see ``Covariance``).
        bias: b (m), for formulas that name it.
        bias_star: the target bias, which such formulas reach exactly.
        entries: the number of entries under a mask; by default the method's own share.
        directions: the number of chosen singular directions.
        sweeps: the largest number of sweeps over the blocks.
        settled: stop when a sweep reduces the error by less than this share.
        seed: the seed for the starting points of the general solver.
        cache: look W's own decomposition up on disk, and store it there.
        starts: the starts of a formula's factors, from which the sweeps and the general solver begin; inferred by
            default. Nothing is trained, so phi(W) need not be W there.

    Returns:
        The factors in float64 with the error and how they were found.

    Raises:
        SubspaceError: phi(W) is not a matrix (it has a nonlinearity), or the shapes or the rank do not fit.
    """
    chosen = _resolve(method, starts)
    W, W_star = read_matrix("W", W), read_matrix("W*", W_star)
    if W.shape != W_star.shape:
        raise SubspaceError(f"W is {shape_of(W)} and W* is {shape_of(W_star)}: they must have the same shape")
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
        raise SubspaceError(f"starts are for formulas, and method {name!r} has its own")
    if isinstance(method, Method):
        return method
    return methods.get(method) if method.isidentifier() else methods.from_formula(method, starts)


def _wide(tensors: Mapping[str, Tensor]) -> Values:
    return {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}


def _bias(node: Expression, target: Tensor, env: Env) -> Values:
    """Return the factor that gives a formula the target bias, if there is such a factor."""
    for term in node.terms if isinstance(node, Sum) else (node,):
        if is_free(term):
            return assign(term, target - (node.compact(env) - term.compact(env)), env)
    return {}


def _is_constant(name: str, named: set[str]) -> bool:
    return (name in named or is_start(name)) and name not in ("W", "b", "rest") and is_frozen(name)
