"""From the factors of one method to those of another: exactly if both reach the matrix, otherwise approximately."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algebra import Sizes, dense, symbol
from ..algebra.names import CHOSEN_SHAPES
from ..algebra.nodes import Affine, Matrix, Scale, Sum, substitute
from ..algebra.special import corresponding
from ..errors import SubspaceError
from ..linalg import Spectrum
from ..methods import Method, environment, initial_factors
from .approximate import approximate
from .blocks import Chain
from .chains import spread
from .change import Change, change_of
from .elements import trainable
from .reading import NoRuleError, find_blocks

EXACT = 1e-6
"""The relative error of the change below which a conversion counts as exact: that of float32 factors."""


@dataclass(frozen=True)
class Conversion:
    """Factors of the other method.

    Attributes:
        parameters: as stored in an adapter, as offsets from a fixed start if there is one.
        constants: masks and chosen directions, if the method has any.
        r: the rank of the factors.
        scale: s.
        error: ||change - new change||_F / ||change||_F, the change being phi(W) - W.
        how: "renamed" (the same numbers under other names), "factored" (the best of rank r, from the factors alone) or
            "approximated" (the best for the whole matrix).
    """

    parameters: dict[str, Tensor]
    constants: dict[str, Tensor]
    r: int
    scale: float
    error: float
    how: str


def convert(
    source: Method,
    target: Method,
    sizes: Sizes,
    env: Mapping[str, Any],
    *,
    r: int | None = None,
    scale: float = 1.0,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Conversion:
    """Convert the factors of one matrix.

    Args:
        source: the method of the factors.
        target: the method to convert to.
        sizes: n, m and r of the source.
        env: the environment of the source's formula, in float64.
        r: the rank of the result; by default the source's own, or that of its change.
        scale: s of the result; the source's s if its factors are reused.
        weight: W, n x m; needed unless the factors alone determine the change.
        bias: b, for formulas that name it.

    Raises:
        SubspaceError: the conversion is impossible; the message says why.
    """
    renamed = _renamed(source, target, env, sizes, r)
    if renamed is not None:
        return renamed
    for method in (source, target):
        if not method.formula.is_linear or method.formula.wraps_norm:
            raise SubspaceError(
                f"{source.name} cannot become {target.name}: {method.name} = {method.formula} is not one matrix"
            )
    if source.formula.bias is not None and not target.formula.names_bias:
        raise SubspaceError(f"{source.name} cannot become {target.name}, which has no place for its change of the bias")
    change, block = change_of(source, sizes, env), _only_block(target)
    if change is not None and block is not None:
        return factored(target, change, sizes, r, scale)
    if weight is None:
        raise SubspaceError(
            f"{source.name} cannot become {target.name} from its factors alone: give the base model, whose weights "
            f"{target.formula if change is not None else source.formula} needs"
        )
    W = weight.to("cpu", torch.float64)
    phi = dense_of(source, env)
    rank = min(r or sizes.r, *W.shape)
    new_bias = bias_of(source, env)
    found = approximate(
        target, W, phi, r=rank, scale=scale, bias=bias, bias_star=new_bias if bias is not None else None, cache=False
    )
    moved = float(torch.linalg.vector_norm(phi - W))
    return Conversion(
        found.parameters, found.constants, rank, scale, found.error / moved if moved else found.error, "approximated"
    )


def factored(target: Method, change: Change, sizes: Sizes, r: int | None, scale: float) -> Conversion:
    """Convert a change, given by its factors, to the best rank r of a target with one low-rank term.

    By default the rank is that of the change, without directions of zero weight.
    """
    U, S, V = change.svd()
    count = int((1e-12 * S.max() < S).sum()) if S.numel() and S.max() > 0 else 1
    rank = min(count if r is None else r, min(sizes.n, sizes.m))
    kept = min(rank, len(S))
    block = _only_block(target)
    assert block is not None
    meta = torch.empty(sizes.n, sizes.m, device="meta")
    started = initial_factors(target, meta, rank)
    empty = environment(target, meta, started.parameters, started.constants, scale)
    shapes = [dense(node, empty).shape for node in block.run]
    env = {"s": scale}
    number = block.place.scale(env)
    value = Spectrum(U[:, :kept] * math.copysign(1.0, number), S[:kept] / abs(number), V[:, :kept])
    parameters = spread(block.run, shapes, value, env)
    norm = float(torch.linalg.vector_norm(S))
    lost = float(torch.linalg.vector_norm(S[kept:]))
    return Conversion(parameters, {}, rank, scale, lost / norm if norm else 0.0, "factored")


def is_low_rank(method: Method) -> bool:
    """Return whether a formula is W plus one low-rank term, so that it reaches every change up to its rank."""
    return _only_block(method) is not None


def bias_of(method: Method, env: Mapping[str, Any]) -> Tensor | None:
    """Return the bias of a formula that names it, or None."""
    expression = method.formula.evaluated
    return expression.bias.compact(env) if isinstance(expression, Affine) else None


def dense_of(method: Method, env: Mapping[str, Any]) -> Tensor:
    """Return phi(W) of a linear formula, n x m."""
    expression = method.formula.evaluated
    return dense(expression.matrix if isinstance(expression, Affine) else expression, env)


def _only_block(method: Method) -> Chain | None:
    """Return the chain of a formula W + chain, possibly scaled by untrained numbers; None for other formulas."""
    expression = method.formula.expression
    if not isinstance(expression, Sum) or Matrix("W") not in expression.terms or len(expression.terms) != 2:
        return None
    (term,) = (term for term in expression.terms if term != Matrix("W"))
    if isinstance(term, Scale) and not any(map(trainable, term.scalars)):
        term = term.node
    try:
        blocks = find_blocks(expression)
    except NoRuleError:
        return None
    whole = [block for block in blocks if isinstance(block, Chain) and block.run == term.factored]
    return whole[0] if whole and len(term.factored) > 1 else None


def _renamed(source: Method, target: Method, env: Mapping[str, Any], sizes: Sizes, r: int | None) -> Conversion | None:
    """Use a declared inclusion: the target with some factors fixed is the source, up to the names of factors."""
    if r not in (None, sizes.r) and target.formula.has_rank:
        return None
    for fixed in ({}, *target.includes.values()):
        special = substitute(target.formula.expression, {name: symbol(value) for name, value in fixed.items()})
        own = corresponding(special, source.formula.expression)
        if own is not None:
            named = {name: env.get(of) for name, of in own.items()}
            return _fixed(target, {"s": env["s"], **named}, fixed, sizes)
    return None


def _fixed(target: Method, env: Mapping[str, Any], fixed: Mapping[str, str], sizes: Sizes) -> Conversion | None:
    """Return the target's factors, some of them fixed and the others taken from the environment."""
    factors = {}
    for name in target.formula.trainable:
        shape = sizes.of(target.formula.shapes[name])
        replacement = fixed.get(name, name)
        if replacement == "I":
            factors[name] = torch.ones(shape, dtype=torch.float64) if len(shape) == 1 else torch.eye(*shape).double()
        else:
            value = env.get(replacement)
            if not isinstance(value, Tensor):
                return None
            factors[name] = torch.diag(value) if value.dim() < len(shape) else value
    parameters = {}
    for name, anchored in target.anchors().items():
        number = target.fixed_anchors().get(name)
        if anchored and number is None:
            return None
        parameters[name] = factors[name] - (number if anchored and number is not None else 0.0)
    constants = {name: env[name] for name in (*target.formula.masked, *CHOSEN_SHAPES) if name in env}
    return Conversion(parameters, constants, sizes.r, float(env["s"]), 0.0, "renamed")
