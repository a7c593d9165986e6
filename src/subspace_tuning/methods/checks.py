"""Checks of a start on small matrices: phi(W) = W there, and every factor can leave it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..algebra import Formula, FormulaError, names, nearest_formula
from ..errors import SubspaceError
from .factors import Factors, environment, initial_factors

if TYPE_CHECKING:
    from .method import Method

_ROWS = 16  # enough rows for every unit of a relu to be active in some
_HIGHEST = 16  # rank; whatever holds there holds for higher ranks
_SCALE, _ENTRIES, _DIRECTIONS = 2.0, 6, 2
_STEP = 0.1  # relative to the entry that moves most
_ZERO = 1e-10  # relative to the upstream gradient
_NO_VALUE = "phi(W) cannot be evaluated"
_STILL = re.compile(r"never moves (\w+)")


def row_norm(rows: Tensor) -> Tensor:
    """Return normalised rows: the N with which a formula is checked."""
    return torch.nn.functional.layer_norm(rows, rows.shape[-1:])


@lru_cache(maxsize=1024)
def start_problem(method: Method, rank: int = 3, one_hot: bool = False) -> str | None:
    """Return the problem with a method's start in one line, or None.

    phi(W) must be W, some factor must have a gradient there (otherwise the loss is stationary in all of them), and
    every factor must have one after at most two steps.

    Args:
        method: the method.
        rank: r.
        one_hot: the rows of W are looked up, as in an embedding.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            return _Case(method, min(rank, _HIGHEST), one_hot).problem()
    except SubspaceError as error:
        return f"{_NO_VALUE}: {error}"
    except RuntimeError as error:  # from torch, for shapes that do not fit after all
        return f"{_NO_VALUE}: {str(error).splitlines()[0]}"


def start_refusal(method: Method, rank: int, one_hot: bool, reason: str) -> FormulaError:
    """Return the error for a method's start, with the nearest formula or starts that have no problem.

    Args:
        method: the method.
        rank: r.
        one_hot: the rows of W are looked up.
        reason: the result of ``start_problem``.
    """
    formula, named = str(method.formula), method.name if method.is_named else None
    still = _STILL.search(reason)
    place = re.search(rf"\b{still[1]}\b", formula) if still else None
    span = place.span() if place else None
    if reason.startswith(_NO_VALUE):  # the problem is the rank or the layer
        return FormulaError(reason, formula, span, method=named)

    def starts_at_weight(other: Formula, starts: Mapping[str, str]) -> bool:
        return bool(other.trainable) and start_problem(method.like(other, starts), rank, one_hot) is None

    for starts in _other_starts(method):
        if starts_at_weight(method.formula, starts):
            return FormulaError(reason, formula, span, formula, starts, named)
    found = nearest_formula(formula, lambda other: starts_at_weight(other, {}))
    if found is None:
        return FormulaError(f"{reason}; set how the factors start with starts", formula, span, method=named)
    return FormulaError(reason, formula, span, str(found), method=named)


def _other_starts(method: Method) -> Iterator[dict[str, str]]:
    """Yield other starts for a formula: the inferred ones, then each dense factor at zero with the others drawn."""
    if method.starts:
        yield {}
    dense = [name for name in method.formula.trainable if len(method.formula.shapes[name]) == 2]
    for zero in dense if len(dense) > 1 else ():
        yield {name: "zeros" if name == zero else "kaiming_uniform" for name in dense}


class _Case:
    """A method at its start on a small random W."""

    def __init__(self, method: Method, rank: int, one_hot: bool) -> None:
        self.method, self.rank, self.one_hot = method, rank, one_hot
        around = method.formula.wraps_norm
        axes = method.formula.axes
        n, m = 2 * 3**axes if axes else max(7, rank + 4), max(5, rank + 2)
        self.weight, self.bias = _drawn(n, m), _drawn(m)
        self.rows = torch.eye(n).double() if one_hot and not around else _drawn(_ROWS, m if around else n)
        self.factors = _factors(method, self.weight, min(rank, n, m), one_hot, (3,) * axes)
        parameters = self.factors.parameters
        self.leaves = {name: tensor.requires_grad_() for name, tensor in parameters.items() if tensor.numel()}

    def output(self, training: bool) -> Tensor:
        parameters = self.factors.parameters | self.leaves
        env = environment(
            self.method, self.weight, parameters, self.factors.constants, _SCALE, self.bias, self.one_hot, row_norm
        )
        expression = self.method.formula.evaluated
        y = (expression.drawn() if training else expression).apply(self.rows, env)
        assert isinstance(y, Tensor)
        return y

    def problem(self) -> str | None:
        formula = self.method.formula
        shapes = {name: f" ({' x '.join(shape)})" if shape else "" for name, shape in formula.shapes.items()}
        starts = self.method.starts_for(self.one_hot)
        listed = ", ".join(f"{name}{shapes[name]} at {start}" for name, start in starts.items())
        y, wanted = self.output(training=False), self.frozen()
        if y.shape != wanted.shape or not torch.allclose(y, wanted):
            where = f", at rank {self.rank}" if formula.has_rank else ""
            return f"phi(W) is not W at its start{where}: {listed}"
        upstream = _drawn(*y.shape)
        gradients = self.gradients(upstream)
        moving = _moving(gradients, upstream)
        if not moving:
            return f"phi(W) cannot leave its start, where every gradient is 0: {listed}"
        largest = max(float(gradients[name].abs().max()) for name in moving)
        for name in moving:
            moved = self.leaves[name] - gradients[name] * (_STEP / largest)
            self.leaves[name] = moved.detach().requires_grad_()
        moving |= _moving(self.gradients(upstream), upstream)
        still = [name for name in self.leaves if name not in moving]
        if still:
            return f"phi(W) never moves {', '.join(still)} from the start, since the gradient is 0: {listed}"
        return None

    def frozen(self) -> Tensor:
        if self.method.formula.wraps_norm:
            return row_norm(self.rows)
        return self.rows @ self.weight + (self.bias if self.method.formula.names_bias else 0.0)

    def gradients(self, upstream: Tensor) -> dict[str, Tensor]:
        """Return the gradient of <upstream, output>, with the gates sampled as in training."""
        y = self.output(training=True)
        if not y.requires_grad:
            return {name: torch.zeros_like(leaf) for name, leaf in self.leaves.items()}
        found = torch.autograd.grad(y, list(self.leaves.values()), upstream, materialize_grads=True)
        return dict(zip(self.leaves, found, strict=True))


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _factors(method: Method, weight: Tensor, rank: int, one_hot: bool, window: tuple[int, ...]) -> Factors:
    factors = initial_factors(
        method,
        weight,
        rank,
        one_hot=one_hot,
        cache=False,
        scale=_SCALE,
        entries=_ENTRIES,
        directions=_DIRECTIONS,
        window=window,
        positions=torch.arange(_ENTRIES),
    )
    for name in factors.constants.keys() & names.CHOSEN_SHAPES:
        # As if the schedule had chosen them; before that nothing moves along them.
        factors.constants[name] = torch.linalg.qr(_drawn(*factors.constants[name].shape))[0]
    return factors


def _moving(gradients: dict[str, Tensor], upstream: Tensor) -> set[str]:
    least = _ZERO * float(torch.linalg.vector_norm(upstream))
    return {name for name, gradient in gradients.items() if least < float(gradient.abs().max()) < float("inf")}
