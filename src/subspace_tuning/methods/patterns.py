"""Matrix pattern constraints on the factors of a method's low-rank terms (arXiv 2407.05417, section IV-B).

A (n x r) leads down to the rank and B (r x m) back up. They are identified by these roles, whatever their names.

Two of the patterns are penalties added to the loss, computed on r x r Gram matrices, never on anything larger:

* ``orthogonal`` (MPC_o): ||A^T A - I||_F^2 + ||B B^T - I||_F^2;
* ``diagonal`` (MPC_d): ||A^T A - I||_F^2 + ||B B^T - diag(B B^T)||_F^2.

The third, ``nonlinear`` (MPC_n), rewrites the formula: an element-wise nonlinearity follows A.

The penalties also act on B, which most methods start at 0: they pull B towards the matrices with orthonormal rows, away
from W. The best weight depends on the scale of the loss, so try several powers of ten.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..algebra import Expression, Formula, parse
from ..algebra.low_rank import LowRank
from ..algebra.nodes import NONLINEARITIES, Activation
from ..algebra.rows import wide
from ..errors import SubspaceError, nearest
from .method import Method

ORTHOGONAL, DIAGONAL, NONLINEAR = "orthogonal", "diagonal", "nonlinear"
PATTERNS = (ORTHOGONAL, DIAGONAL, NONLINEAR)
PENALTIES = (ORTHOGONAL, DIAGONAL)
NONE = "none"
MEAN, SUM = "mean", "sum"
REDUCTIONS = (MEAN, SUM)
"""Reductions over an adapter's matrices: the mean does not grow with the model; the sum is the paper's."""


def read_patterns(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Parse one pattern, several joined by ``+`` or listed, or "none". Raises SubspaceError for an unknown one."""
    if given is None or given == NONE:
        return ()
    listed = given.split("+") if isinstance(given, str) else list(given)
    wanted = [name.strip() for name in listed]
    for name in wanted:
        if name not in PATTERNS:
            raise SubspaceError(f"unknown pattern {name!r}; {nearest(name, (*PATTERNS, NONE))}")
    return tuple(name for name in PATTERNS if name in wanted)


def pairs(formula: Formula) -> tuple[LowRank, ...]:
    """Return the terms whose factors A and B a pattern constrains: those in which both are trained directly."""
    return tuple(term for term in formula.low_rank if term.is_free)


def has_pair(formula: Formula) -> bool:
    """Return whether a formula has factors A and B of a low-rank term."""
    return bool(pairs(formula))


def constrained(method: Method, patterns: Sequence[str], nonlinearity: str = "relu") -> Method:
    """Return the method under these patterns. Only ``nonlinear`` changes the formula.

    Raises:
        SubspaceError: the method has no low-rank term, or is not W at its start with a nonlinearity in it.
    """
    if not patterns:
        return method
    if not has_pair(method.formula):
        raise SubspaceError(
            f"pattern {'+'.join(patterns)} constrains A and B of a low-rank term A @ ... @ B, under any names, "
            f"and method {method.name!r} has none: it is {method.formula}"
        )
    if NONLINEAR not in patterns:
        return method
    if nonlinearity not in NONLINEARITIES:
        raise SubspaceError(f"unknown nonlinearity {nonlinearity!r}; {nearest(nonlinearity, NONLINEARITIES)}")
    formula = parse(_bent(method.formula, nonlinearity))
    if formula.is_linear == method.formula.is_linear:
        raise SubspaceError(f"pattern nonlinear: method {method.name!r} already has a nonlinearity: {method.formula}")
    if method.convolution is not None:
        on_one_axis = parse(re.sub(r"\bC\b", "C1", method.convolution))
        convolution = re.sub(r"\bC1\b", "C", _bent(on_one_axis, nonlinearity))
        method = dataclasses.replace(method, convolution=convolution)
    changed = dataclasses.replace(method, formula=formula, includes={})
    if changed.start_problem is not None:
        raise SubspaceError(f"pattern nonlinear does not work with method {method.name!r}: {changed.start_problem}")
    return changed


def penalty(A: Tensor, B: Tensor, patterns: Iterable[str]) -> Tensor:
    """Return the penalty on A (n x r) and B (r x m), in float32 or wider.

    Examples:
        >>> penalty(torch.eye(3)[:, :2], torch.zeros(2, 4), ["orthogonal"])
        tensor(2.)
    """
    grams = _grams(A, B)
    total = grams.A.new_zeros(())
    for pattern in patterns:
        if pattern in PENALTIES:
            right = _deviation(grams.B) if pattern == ORTHOGONAL else grams.B - torch.diag(torch.diagonal(grams.B))
            total = total + _deviation(grams.A).square().sum() + right.square().sum()
    return total


class Orthogonality(NamedTuple):
    """How orthogonal A's columns and B's rows are.

    ``A`` and ``B`` are the Frobenius distances of their Gram matrices from the identity; ``cosine_A`` and ``cosine_B``
    are the root mean square cosines between distinct columns or rows: 0 if they are orthogonal, whatever their norms
    (and 0 for rank 1 and for zero vectors).
    """

    A: float
    B: float
    cosine_A: float  # noqa: N815 (the factors' names)
    cosine_B: float  # noqa: N815


@torch.no_grad()
def orthogonality(A: Tensor, B: Tensor) -> Orthogonality:
    """Measure the orthogonality of A (n x r) and B (r x m)."""
    grams = _grams(A, B)
    return Orthogonality(
        *(float(torch.linalg.matrix_norm(_deviation(gram))) for gram in grams), *(map(_mean_cosine, grams))
    )


class _Grams(NamedTuple):
    A: Tensor
    B: Tensor


def _grams(A: Tensor, B: Tensor) -> _Grams:
    with torch.autocast(A.device.type, enabled=False):
        A, B = (factor.to(wide(factor.dtype)) for factor in (A, B))
        return _Grams(A.T @ A, B @ B.T)


def _deviation(gram: Tensor) -> Tensor:
    return gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _mean_cosine(gram: Tensor) -> float:
    norms = torch.diagonal(gram).clamp_min(0.0).sqrt()
    cosines = gram / (norms[:, None] * norms).clamp_min(torch.finfo(gram.dtype).tiny)
    others = cosines[~torch.eye(len(gram), dtype=torch.bool, device=gram.device)]
    return float(others.square().mean().sqrt()) if others.numel() else 0.0


def _bent(formula: Formula, nonlinearity: str) -> str:
    """Return the formula with a nonlinearity after each A, unless there is already one before its B."""
    places: dict[Expression, list[int]] = {}
    for term in pairs(formula):
        if not any(isinstance(node, Activation) for node in term.core):
            places.setdefault(term.product, []).append(term.first + 1)

    def bent(node: Expression) -> Expression:
        if not node.children:
            return node
        children = tuple(map(bent, node.children))
        for place in reversed(places.get(node, ())):
            children = (*children[:place], Activation(nonlinearity), *children[place:])
        return node.rebuilt(children)

    return str(bent(formula.expression))
