"""How close phi(W) can come to a known W*: the factors that minimise ||W* - phi(W)||_F.

The paper defines a method by this number (arXiv 2407.05417). How it is found follows from the formula (see ``blocks``):
in closed form where the formula is one block, by solving for the blocks in turn where it is several, and by a general
least-squares solver where it is neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from .. import methods
from ..algebra import Formula, dense
from ..algebra.names import is_start, start_of
from ..algebra.nodes import Expression, Number, Product, Sparse, Vector
from ..errors import SubspaceError
from ..linalg import svd
from ..methods import Method, environment, initial_factors
from . import solve
from .blocks import BY_NORM, Block, find_blocks, norms_taken, without_unit
from .chains import padded, reachable, spread, spread_diagonal
from .elements import Values, assign, is_free, is_positive, trainable
from .general import least_squares

How = Literal["exact", "iterative", "heuristic"]

SWEEPS = 500
SETTLED = 1e-10
"""The share of the error that a sweep must gain for the next one."""
_WEIGHTED_SWEEPS = 20
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
    W, W_star = _matrix("W", W), _matrix("W*", W_star)
    if W.shape != W_star.shape:
        raise SubspaceError(f"W is {_shape(W)} and W* is {_shape(W_star)}: they must have one shape")
    formula = chosen.formula
    if not formula.is_linear or formula.wraps_norm:
        raise SubspaceError(f"method {chosen.name!r} has no dense phi(W) to compare with W*: {formula} is not linear")
    k = min(W.shape)
    if formula.has_rank and not 1 <= r <= k:
        raise SubspaceError(f"rank {r} is not between 1 and min(n, m) = {k}")
    root = _root(activations, covariance, W.shape[0])
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
    target = W_star if root is None else root @ W_star
    wide_star = None if bias is None or bias_star is None else bias_star.double()
    search = _Search(chosen, env, W_star, root, entries, directions, sweeps, settled, seed, wide_star)
    return search.run(float(torch.linalg.vector_norm(target)))


def _resolve(method: str | Method, starts: Mapping[str, str] | None) -> Method:
    if starts is not None and (isinstance(method, Method) or method.isidentifier()):
        name = method.name if isinstance(method, Method) else method
        raise SubspaceError(f"starts go with a formula, and method {name!r} has its own")
    if isinstance(method, Method):
        return method
    return methods.get(method) if method.isidentifier() else methods.from_formula(method, starts)


def _matrix(name: str, value: Tensor) -> Tensor:
    if value.dim() != 2:
        raise SubspaceError(f"{name} has {value.dim()} dimensions; it must be a matrix, n x m")
    value = value.detach().to("cpu", torch.float64)
    if not torch.isfinite(value).all():
        raise SubspaceError(f"{name} has entries that are not finite")
    return value


def _wide(tensors: Mapping[str, Tensor]) -> Values:
    return {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}


def _shape(matrix: Tensor) -> str:
    return " x ".join(map(str, matrix.shape))


def _root(activations: Tensor | None, covariance: Tensor | None, n: int) -> Tensor | None:
    """Return a matrix with as few rows as can be whose Gram matrix is the covariance."""
    if activations is None and covariance is None:
        return None
    if activations is not None and covariance is not None:
        raise SubspaceError("give activations or their covariance, not both")
    if activations is not None:
        rows = _matrix("activations", activations.reshape(-1, activations.shape[-1]))
        if rows.shape[1] != n:
            raise SubspaceError(f"the activations have {rows.shape[1]} columns and W has {n} rows: they must agree")
        reduced: Tensor = torch.linalg.qr(rows, mode="r")[1]
        return rows if len(rows) <= n else reduced
    assert covariance is not None
    gram = _matrix("covariance", covariance)
    if gram.shape != (n, n):
        raise SubspaceError(f"the covariance is {_shape(gram)} and W has {n} rows: it must be {n} x {n}")
    squares, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    if squares.min() < -1e-8 * squares.abs().max():
        raise SubspaceError("the covariance has negative eigenvalues: it is not one of X.T @ X")
    kept = squares > 1e-14 * squares.max()
    root: Tensor = squares[kept].sqrt().unsqueeze(1) * vectors[:, kept].T
    return root


def _bias(node: Expression, target: Tensor, env: Mapping[str, Any]) -> Values:
    """Return the factor at which the bias of a formula is the wanted one."""
    for term in getattr(node, "terms", (node,)):
        if isinstance(term, Vector) and trainable(term):
            return {term.name: target - (node.compact(env) - env[term.name])}
    return {}


@dataclass
class _Search:
    method: Method
    env: dict[str, Any]
    W_star: Tensor
    root: Tensor | None
    entries: int
    directions: int
    sweeps: int
    settled: float
    seed: int
    bias_star: Tensor | None = None
    history: list[float] = field(default_factory=list)

    @property
    def formula(self) -> Formula:
        return self.method.formula

    @property
    def expression(self) -> Expression:
        return self.formula.matrix

    def run(self, norm: float) -> Approximation:
        norms = norms_taken(self.expression)
        solved = without_unit(self.expression)
        for name in norms:
            self.env[f"{name}{BY_NORM}"] = torch.ones_like(self.env[name])
        blocks = find_blocks(solved)
        sweeps, bound = 0, None
        if blocks is None or (self.root is not None and any(block.weight is not None for block in blocks)):
            blocks = None
            found = least_squares(self.expression, self.env, self.W_star, self.root, self.seed)
            self.env.update(found)
            how: How = "heuristic"
        elif not blocks:
            how, bound = "exact", self.error(self.expression, self.env)
        elif len(blocks) == 1 and (blocks[0].weight is None or len(blocks[0].run) == 1):
            self.env.update(self.solved(blocks[0], solved, self.env))
            how = "heuristic" if self._guesses(blocks[0]) else "exact"
        else:
            self.env, sweeps = self.alternate(blocks, solved)
            how = "heuristic" if any(map(self._chooses, blocks)) else "iterative"
        for name, inner in norms.items():
            self.env[name] = self.env[f"{name}{BY_NORM}"] * torch.linalg.vector_norm(dense(inner, self.env), dim=0)
        if self.bias_star is not None and self.formula.bias is not None:
            self.env.update(_bias(self.formula.bias, self.bias_star, self.env))
        error = self.error(self.expression, self.env)
        if how == "exact":
            bound = error
        elif blocks:
            bound = self.bound(blocks, solved)
        names = (*self.formula.expression.names, *self.formula.evaluated.names)
        return Approximation(
            self.method,
            {name: self.env[name] for name in self.formula.trainable},
            {
                name: value
                for name, value in self.env.items()
                if isinstance(value, Tensor) and _is_constant(name, names)
            },
            dense(self.expression, self.env),
            self.env["s"],
            error,
            norm,
            how,
            None if bound is None else bound / norm if norm else bound,
            sweeps,
            tuple(value / norm for value in self.history) if norm else (),
        )

    def error(self, expression: Expression, env: Mapping[str, Any]) -> float:
        difference = self.W_star - dense(expression, env)
        return float(torch.linalg.vector_norm(difference if self.root is None else self.root @ difference))

    def _guesses(self, block: Block) -> bool:
        return block.kind == "entries" and self.root is not None and self.method.selection != "magnitude"

    def _chooses(self, block: Block) -> bool:
        """Whether a block beside others has a discrete choice: it is made for the others as they are, not for all."""
        return block.kind == "directions" or (block.kind == "entries" and self.method.selection != "magnitude")

    # Several blocks

    def alternate(self, blocks: list[Block], expression: Expression) -> tuple[dict[str, Any], int]:
        """Solve for the blocks in turn, once from each of them on, and keep the best end."""
        best: tuple[float, dict[str, Any], int, list[float]] | None = None
        for first in range(len(blocks)):
            order = blocks[first:] + blocks[:first]
            env, errors = dict(self.env), []
            for _ in range(self.sweeps):
                for block in order:
                    env.update(self.solved(block, expression, env))
                errors.append(self.error(expression, env))
                if len(errors) > 1 and errors[-2] - errors[-1] <= self.settled * errors[-2]:
                    break
            if best is None or errors[-1] < best[0]:
                best = errors[-1], env, len(errors), errors
        assert best is not None
        _, env, sweeps, self.history = best
        return self._balanced(blocks, expression, env), sweeps

    def _balanced(self, blocks: list[Block], expression: Expression, env: dict[str, Any]) -> dict[str, Any]:
        """Fix the gauge of two diagonals that may exchange a factor: equal root mean squares, a positive mean first."""
        free = [block for block in blocks if block.kind == "diagonal" and len(block.run) == 1 and is_free(block.run[0])]
        for one, other in pairwise(free):
            first, second = one.run[0].compact(env), other.run[0].compact(env)
            if not (first.any() and second.any()):
                continue
            ratio = float((second.square().mean() / first.square().mean()).sqrt().sqrt())
            ratio = -ratio if first.mean() < 0 else ratio
            moved = env | assign(one.run[0], first * ratio, env) | assign(other.run[0], second / ratio, env)
            change = self.error(expression, moved) - self.error(expression, env)
            if abs(change) <= 1e-9 * float(torch.linalg.vector_norm(self.W_star)):
                env = moved
        return env

    def bound(self, blocks: list[Block], expression: Expression) -> float | None:
        """What ranks alone leave: a fixed matrix and blocks of limited rank do no better than all ranks at once.

        None where a block multiplies another one or W itself.
        """
        total = 0
        for block in blocks:
            inner = {name for node in (*block.left, *block.right) for name in trainable(node)}
            if inner or block.weight is not None or block.kind not in ("matrix", "directions"):
                return None
            total += self.directions if block.kind == "directions" else self._rank(block)
        fixed = self.env
        for block in blocks:
            fixed = fixed | self._zero(block, fixed)
        rest = self.W_star - dense(expression, fixed)
        rest = rest if self.root is None else self.root @ rest
        return float(torch.linalg.vector_norm(torch.linalg.svdvals(rest)[total:]))

    def _rank(self, block: Block) -> int:
        return min(min(dense(node, self.env).shape) for node in block.run)

    # One block

    def solved(self, block: Block, expression: Expression, env: Mapping[str, Any]) -> Values:
        """Return the best factors of a block, everything else as in ``env``."""
        constant = dense(expression, {**env, **self._zero(block, env)})
        scale = math.prod(float(_number(scalar, env)) for scalar in block.scalars)
        target = (self.W_star - constant) / scale if scale else torch.zeros_like(constant)
        left, right = _side(block.left, env), _side(block.right, env)
        if block.flipped:
            target, left, right = target.T, _turned(right), _turned(left)
        if self.root is not None:
            if block.flipped:
                target = target @ self.root.T
                right = self.root.T if right is None else solve.times(right, self.root.T)
            else:
                target = self.root @ target
                left = self.root if left is None else solve.times(None, self.root, left)
        if block.weight is not None:
            return self._weighted(block, target, dense(block.weight, env), env)
        if block.kind == "entries":
            return self._entries(block, target, left, env)
        if block.kind == "directions":
            return self._directions(block, target, left, env)
        if block.kind == "scalar":
            image = solve.times(left, right) if right is not None else left
            assert image is not None
            size = float(image.square().sum())
            return {block.names[0]: (target * image).sum() / size} if size else {}
        if block.kind == "diagonal":
            start = Product(block.run).compact(env) if len(block.run) > 1 else block.run[0].compact(env)
            positive = is_positive(block.run[0])
            return spread_diagonal(block.run, solve.diagonal(target, left, right, start, positive), env)
        shapes = [dense(node, env).shape for node in block.run]
        found = solve.low_rank(target, left, right, reachable(block.run, shapes, env))
        return spread(block.run, shapes, found, env)

    def _zero(self, block: Block, env: Mapping[str, Any]) -> Values:
        """Return factors at which a block is zero."""
        if block.kind == "entries":
            (sparse,) = block.run
            assert isinstance(sparse, Sparse)
            return {sparse.entries: torch.zeros_like(env[sparse.entries])}
        if block.kind == "scalar":
            return {block.names[0]: torch.zeros((), dtype=torch.float64)}
        node = block.run[1] if block.kind == "directions" else next(node for node in block.run if trainable(node))
        return assign(node, torch.zeros_like(node.compact(env)), env)

    def _entries(self, block: Block, target: Tensor, left: Tensor | None, env: Mapping[str, Any]) -> Values:
        (sparse,) = block.run
        assert isinstance(sparse, Sparse)
        fixed = env[sparse.mask] if self.method.selection == "magnitude" else None
        count = min(self.entries, self.W_star.numel())
        positions, values = solve.entries(target, left, count, fixed)
        return {sparse.mask: positions, sparse.entries: values}

    def _directions(self, block: Block, target: Tensor, left: Tensor | None, env: Mapping[str, Any]) -> Values:
        """Choose the singular directions that take most off the error; each by itself, for they are orthogonal."""
        U, _, V = svd(env["W"])
        images = U if left is None else left @ U
        sizes = images.square().sum(0)
        products = ((images.T @ target) * V.T).sum(1)
        values = products / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
        chosen = (products * values).topk(self.directions).indices.sort().values
        name = block.names[0]
        return {"U_k": U[:, chosen], "V_k": V[:, chosen], name: values[chosen]}

    def _weighted(self, block: Block, target: Tensor, weight: Tensor, env: Mapping[str, Any]) -> Values:
        """Solve for what is multiplied element by element."""
        if len(block.run) == 1:
            (node,) = block.run
            seen = weight.abs() > torch.finfo(weight.dtype).tiny
            return assign(node, torch.where(seen, target / torch.where(seen, weight, 1.0), 0.0), env)
        (one, other) = (node.compact(env) for node in block.run)
        if not weight.any():
            return {}
        if not (one @ other).any():  # the start of a method: begin at the best product for a weight that is flat
            flat = solve.low_rank(target * weight / weight.square().mean(), None, None, one.shape[1])
            one, other = padded(flat.U * flat.S.sqrt(), one.shape[1]), padded(flat.V * flat.S.sqrt(), one.shape[1]).T
        for _ in range(_WEIGHTED_SWEEPS):
            one, other = solve.weighted_low_rank(target, weight, one, other)
        return assign(block.run[0], one, env) | assign(block.run[1], other, env)


def _is_constant(name: str, names: tuple[str, ...]) -> bool:
    own = name in names or is_start(name)
    return own and name not in ("W", "b", "rest") and not trainable(Vector(name))


def _number(node: Expression, env: Mapping[str, Any]) -> Any:
    return node.value if isinstance(node, Number) else node.compact(env)


def _side(factors: tuple[Expression, ...], env: Mapping[str, Any]) -> Tensor | None:
    """Return the product of what stands on one side of a block, None for nothing."""
    if not factors:
        return None
    value = Product(factors).compact(env)
    return value if value.dim() else None


def _turned(side: Tensor | None) -> Tensor | None:
    return side if side is None or side.dim() == 1 else side.T
