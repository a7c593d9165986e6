"""The hand-written gradient of the form to which most methods reduce: a scaled frozen product plus a low-rank one.

``y = ((x * left) W + s f(x low) high) * right + bias`` on rows x: SSL, SSB, LoRA and its relatives, PiSSA, DoRA,
spectral and parallel adapters. torch would build the step from a dozen operations, each with a pass over all rows and
a tensor kept for its gradient. Here a step has one product with W forward and one backward. With many rows the low-rank
term is added to W first, which saves a pass over them; otherwise the low-rank products start the sums into which the
products with W accumulate. Of size rows x width only x is kept (and x @ W if ``right`` is trained).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import rows as R
from ...nodes import NONLINEARITIES
from .composed import composed, composed_rows
from .form import (
    Parts,
    can_fold,
    folds_low_rank,
    formed_weight,
    is_transformed,
    joined,
    product_dtype,
    scaled_operands,
    scaled_sum,
    scales_weight,
    with_norms,
)
from .narrow import as_rows, column_sums, low_products, narrowed, row_products

# From the gradient of f(t) and t: the gradient of t.
_ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda gradient, t: torch.ops.aten.threshold_backward(gradient, t, 0),
    "gelu": torch.ops.aten.gelu_backward,
    "silu": torch.ops.aten.silu_backward,
    "tanh": lambda gradient, t: torch.ops.aten.tanh_backward(gradient, t.tanh()),
}


def scaled_low_rank(x: Tensor, parts: Parts) -> Tensor:
    """Return ``((x * left) @ W + scale * f(x @ low) @ high) * right + bias``, with gradients for all but W.

    Args:
        x: rows, (..., n). Under autocast the products are in its precision, otherwise in that of x.
        parts: W and the tensors around it. Scales may have a higher precision than x without losing any of it.

    Returns:
        (..., m), in the precision of the products.
    """
    if is_transformed():
        return composed(x, parts)
    dtype = product_dtype(x)
    flat = (x if x.ndim == 2 else x.reshape(-1, x.shape[-1])).to(dtype)
    folded = folds_low_rank(parts, flat, parts.weight.shape[0])
    formed = formed_weight(parts) if folded or parts.unit else None
    parts = with_norms(parts, formed) if parts.unit else parts
    weight, bias, left, right, lows, highs, *_ = parts
    scaled = left is not None or right is not None
    cast = parts._replace(
        weight=weight if scaled and can_fold(weight) else weight.to(dtype),
        bias=None if bias is None else bias.to(dtype),
        lows=tuple(low.to(dtype) for low in lows),
        highs=tuple(high.to(dtype) for high in highs),
    )
    # Without a left scale or a low-rank term nothing is accumulated in place: torch's own gradient is as good.
    if left is None and len(lows) == 0:
        y = composed_rows(flat, cast, _ScaledSum.apply)
    elif not torch.is_grad_enabled():
        y, _ = _forward(flat, cast, formed if folded else None)
    else:
        y = _ScaledLowRank.apply(formed if folded else None, flat, *_flat(cast))  # type: ignore[no-untyped-call]
    return y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[-1])


def _flat(parts: Parts) -> tuple[Any, ...]:
    """Flatten parts for autograd, which sees no tensor within a tuple. The tensors begin at ``_TENSORS``."""
    options = (len(parts.lows), parts.function, parts.scale, parts.right_scales_low_rank)
    return (*options, *parts[:4], *parts.lows, *parts.highs)


_TENSORS = 4


def _read(given: tuple[Any, ...], options: tuple[Any, ...]) -> Parts:
    count, function, scale, right_scales_low_rank = options
    weight, bias, left, right, *factors = given
    return Parts(
        weight,
        bias,
        left,
        right,
        tuple(factors[:count]),
        tuple(factors[count:]),
        function,
        scale,
        right_scales_low_rank,
    )


class _Kept(NamedTuple):
    """The tensors that the backward pass needs besides the parts."""

    product: Tensor | None = None  # what ``right`` scales
    # scale * x @ low of the trained ``highs``, transposed in chunks (see ``narrowed``); with a function x @ low
    t: Tensor | None = None
    value: Tensor | None = None  # scale * f(x @ low)
    low: Tensor | None = None  # all of ``lows`` and ``highs`` side by side, where there are several
    high: Tensor | None = None

    def joined(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Return all of ``lows`` and all of ``highs`` as one matrix each."""
        return (self.low, self.high) if self.low is not None and self.high is not None else (parts.low, parts.high)


def _forward(
    x: Tensor, parts: Parts, formed: Tensor | None = None, of_highs: Sequence[bool] = ()
) -> tuple[Tensor, _Kept]:
    """Return the output and the tensors its gradient needs. ``of_highs`` says which of ``highs`` are trained."""
    weight, bias, left, right, lows, _, function, scale, right_scales_low_rank, _ = parts
    within = bias if right is None else None  # the sum before ``right``
    kept, added = _Kept(), None
    if lows and formed is None:
        low, high = parts.low, parts.high
        t = narrowed(x, low, 1.0 if function else scale)
        value = NONLINEARITIES[function](t).mul_(scale) if function else t
        added = _product(within, as_rows(value), high)
        kept = _Kept(None, t, value) if function else _Kept(None, chosen_blocks(t, lows, of_highs))
        kept = kept if len(lows) == 1 else kept._replace(low=low, high=high)
    if formed is not None:
        y = _product(within, x, formed)
    elif added is None or right_scales_low_rank or right is None:
        scaled, matrix = scaled_operands(x, weight, left, None)
        # The product with W accumulates into the low-rank one, which saves a pass over y.
        y = _product(within, scaled, matrix) if added is None else added.addmm_(scaled, matrix)
    else:
        product = torch.mm(*scaled_operands(x, weight, left, None))
        return scaled_sum(product, right, bias).add_(added), kept._replace(product=product)
    if right is None:
        return y, kept
    return scaled_sum(y, right, bias), kept._replace(product=y)


def _product(start: Tensor | None, rows: Tensor, matrix: Tensor) -> Tensor:
    return torch.mm(rows, matrix) if start is None else torch.addmm(start, rows, matrix)


class _ScaledSum(torch.autograd.Function):
    """y * right + bias; torch would write the product of two tensors as large as y to get the gradient of ``right``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(y, right)
        return scaled_sum(y, right, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (y, right) = gradients, ctx.saved_tensors
        of_y, of_right, of_bias = ctx.needs_input_grad
        return (
            R.scale_rows(g, right) if of_y else None,
            column_sums(g, y).to(right.dtype) if of_right else None,
            g.sum(0) if of_bias else None,
        )


class _ScaledLowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, formed: Tensor | None, x: Tensor, *given: Any) -> Tensor:
        ctx.options, (weight, *others) = given[:_TENSORS], given[_TENSORS:]
        parts = _read((weight, *others), ctx.options)
        of_highs = ctx.needs_input_grad[-len(parts.highs) :] if parts.highs else ()
        y, kept = _forward(x, parts, formed, of_highs)
        of_x, (_, _, of_left, of_right) = ctx.needs_input_grad[1], ctx.needs_input_grad[2 + _TENSORS :][:4]
        if not (of_x or of_left or of_right):
            # No gradient reads W. Its placeholder takes no memory, unlike a copy in another precision.
            weight = weight.new_zeros(()).expand(weight.shape)
        ctx.save_for_backward(*kept, x, weight, *others)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: with gradient checkpointing each access would recompute them
        count = len(_Kept._fields)
        kept, (x, *tensors) = _Kept(*saved[:count]), saved[count:]
        parts = _read(tuple(tensors), ctx.options)
        needed = (ctx.needs_input_grad[1], *ctx.needs_input_grad[2 + _TENSORS :])
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            by_x, *others = _plain_backward(needed, x, parts, gradients[0])
        else:
            by_x, *others = _backward(needed, x, parts, gradients[0].contiguous(), kept)
        return (None, by_x, *(None for _ in range(_TENSORS)), *others)


def _backward(needed: tuple[bool, ...], x: Tensor, parts: Parts, g: Tensor, kept: _Kept) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and of the tensors among the parts, in the order of ``_flat``."""
    of_x, _, of_bias, of_left, of_right, *of_factors = needed
    weight, _, left, right, lows, highs, function, scale, right_scales_low_rank, _ = parts
    of_lows, of_highs = of_factors[: len(lows)], of_factors[len(lows) :]
    outer = right if right_scales_low_rank else None
    folded = of_x and not of_left and folds_low_rank(parts, g, weight.shape[1])
    by_x = by_bias = by_left = by_right = u = None
    by_lows: Sequence[Tensor | None] = [None] * len(lows)
    by_highs: Sequence[Tensor | None] = [None] * len(lows)
    # What reads g alone comes first, while g is still in the cache.
    if of_bias:
        by_bias = g.sum(0)
    if of_right:
        assert kept.product is not None
        by_right = column_sums(g, kept.product)
    if outer is not None and (of_x or of_left) and not (folded or scales_weight(g, weight, len(weight))):
        g, right, outer = R.scale_rows(g, outer), None, None  # once for every product that follows
    if any(of_highs):
        by_highs = _highs_gradients(g, x, parts, kept, of_highs, outer)
    # Frozen terms only pass their gradient on to x, unless W does so for them.
    terms = of_lows if folded or not of_x else [True] * len(lows)
    if any(terms):
        high = kept.joined(parts)[1] if all(terms) else joined(chosen(highs, terms), 0)
        u = narrowed(g, (high if outer is None else high * outer.to(high.dtype)).T, scale)
        if function is not None:
            assert kept.t is not None
            u = _ACTIVATION_GRADIENTS[function](u, kept.t)
    if of_left:
        assert left is not None
        by_x = torch.mm(*scaled_operands(g, weight.T, right, None))
        by_left = column_sums(x, by_x)
        by_x = R.scale_rows_(by_x, left)
        by_x = by_x if u is None or not of_x else by_x.addmm_(as_rows(u), kept.joined(parts)[0].T)
    elif of_x:
        by_x = _rows_gradient(g, parts._replace(right=right), kept, u, folded)
    if any(of_lows):
        assert u is not None
        own = u if terms is of_lows else chosen_blocks(u, lows, of_lows)
        assert own is not None
        by_lows = spread(parted(low_products(own, x), chosen(lows, of_lows), 1), of_lows)
    return (by_x if of_x else None, None, by_bias, by_left, by_right, *by_lows, *by_highs)


def _highs_gradients(
    g: Tensor, x: Tensor, parts: Parts, kept: _Kept, wanted: Sequence[bool], outer: Tensor | None
) -> list[Tensor | None]:
    value = kept.t if kept.value is None else kept.value
    if value is None:
        value = narrowed(x, joined(chosen(parts.lows, wanted), 1), parts.scale)
    found = row_products(value, g)
    found = found if outer is None else found * outer.to(found.dtype)
    return spread(parted(found, chosen(parts.highs, wanted), 0), wanted)


def _rows_gradient(g: Tensor, parts: Parts, kept: _Kept, u: Tensor | None, folded: bool) -> Tensor:
    """Return the gradient of x; ``u`` is that of x @ low, and ``folded`` says whether low @ high is added to W."""
    if folded:
        matrix, right = formed_weight(parts).T, parts.right
        return torch.mm(g, matrix if right is None else matrix.mul_(right.to(matrix.dtype).unsqueeze(1)))
    rows, matrix = scaled_operands(g, parts.weight.T, parts.right, parts.left)
    if u is None:
        return torch.mm(rows, matrix)
    return torch.mm(as_rows(u), kept.joined(parts)[0].T).addmm_(rows, matrix)


def chosen(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [tensor for tensor, want in zip(tensors, wanted, strict=True) if want]


def spread(found: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Return the results in the places where they are wanted, None in the others."""
    left = iter(found)
    return [next(left) if want else None for want in wanted]


def parted(matrix: Tensor, like: Sequence[Tensor], dim: int) -> Sequence[Tensor]:
    """Split a gradient of matrices stored side by side (dim 1) or one below the other (dim 0)."""
    return (matrix,) if len(like) == 1 else matrix.split([one.shape[dim] for one in like], dim)


def chosen_blocks(t: Tensor, lows: Sequence[Tensor], wanted: Sequence[bool]) -> Tensor | None:
    """Return the blocks of x @ low, transposed in chunks, that belong to the wanted ``lows``."""
    if not any(wanted):
        return None
    if all(wanted):
        return t
    return joined(chosen(t.split([low.shape[1] for low in lows], dim=1), wanted), 1)


def _plain_backward(needed: tuple[bool, ...], x: Tensor, parts: Parts, g: Tensor) -> tuple[Tensor | None, ...]:
    given = (x, *_flat(parts)[_TENSORS:])
    wanted = [tensor for tensor, need in zip(given, needed, strict=True) if need]
    found = iter(torch.autograd.grad(composed_rows(x, parts), wanted, g, create_graph=True))
    return tuple(next(found) if need else None for need in needed)
