"""The kernel's form, its parts, and what its passes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....compat import differentiates_forward, functorch_is_active
from ... import rows as R
from ...nodes import one_for_zero


class Parts(NamedTuple):
    """The parts of the form; each except W can be absent.

    ``left`` has n numbers, ``right`` and ``bias`` m. ``lows`` are n x k and ``highs`` k x m, with k below both; side by
    side and one below the other they are two matrices, with the nonlinearity ``function`` and ``scale`` between them.
    ``right_scales_low_rank`` says whether ``right`` scales their product, too, or only that with W. If ``unit``, the
    columns of what ``right`` scales are divided by their norms first, which are constants to the gradient.
    """

    weight: Tensor
    bias: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    lows: tuple[Tensor, ...] = ()
    highs: tuple[Tensor, ...] = ()
    function: str | None = None
    scale: float = 1.0
    right_scales_low_rank: bool = True
    unit: bool = False

    @property
    def low(self) -> Tensor:
        """All of ``lows`` as one matrix."""
        return joined(self.lows, 1)

    @property
    def high(self) -> Tensor:
        """All of ``highs`` as one matrix."""
        return joined(self.highs, 0)

    def settled(self, dtype: torch.dtype) -> Parts:
        """Return equal parts, ready for products in this precision.

        W and the bias are unchanged; autocast keeps its own copies.
        """
        parts = with_norms(self) if self.unit else self
        if len(parts.lows) == 0:
            return parts
        return parts._replace(lows=(parts.low.to(dtype),), highs=(parts.high.to(dtype),))


def joined(matrices: Sequence[Tensor], dim: int) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(tuple(matrices), dim)


def product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def can_fold(weight: Tensor) -> bool:
    """Return whether W can absorb a scale: in a low precision it would lose anything finer than its own steps."""
    return weight.dtype in (torch.float32, torch.float64)


def folds_low_rank(parts: Parts, rows: Tensor, width: int) -> bool:
    """Return whether to add the low-rank term to W instead of to the product of that many rows with W.

    A pass over W then replaces one over the product, which is larger if there are more rows than ``width``, W's other
    dimension. In a low precision W would lose small changes.
    """
    inside = parts.right is None or parts.right_scales_low_rank
    exact = parts.weight.dtype == rows.dtype and can_fold(parts.weight)
    return len(parts.lows) > 0 and parts.function is None and inside and exact and len(rows) >= width


def with_norms(parts: Parts, formed: Tensor | None = None) -> Parts:
    """Return parts whose ``right`` divides by the column norms, those of ``formed`` if it is given."""
    norms = one_for_zero(torch.linalg.vector_norm(formed_weight(parts) if formed is None else formed, dim=0))
    return parts._replace(right=norms.reciprocal() if parts.right is None else parts.right / norms, unit=False)


def formed_weight(parts: Parts) -> Tensor:
    """Return ``left * W + scale * low @ high`` in float32 or wider, a constant to the gradient, also under autocast."""
    if torch.is_autocast_enabled(parts.weight.device.type):
        with torch.autocast(parts.weight.device.type, enabled=False):
            return _formed_weight(parts)
    return _formed_weight(parts)


def _formed_weight(parts: Parts) -> Tensor:
    dtype = R.wide(parts.weight.dtype)
    matrix = parts.weight.detach().to(dtype)
    if parts.left is not None:
        matrix = matrix * parts.left.detach().to(dtype).unsqueeze(1)
    if len(parts.lows) == 0:
        return matrix
    low, high = parts.low.detach().to(dtype), parts.high.detach().to(dtype)
    # In W's memory layout: a BLAS accumulates into another one ten times as slowly.
    if R.lies_transposed(matrix):
        return torch.addmm(matrix.T, high.T, low.T, alpha=parts.scale).T
    return torch.addmm(matrix, low, high, alpha=parts.scale)


def is_transformed() -> bool:
    """Return whether torch.compile, torch.func or forward-mode differentiation is tracing, which needs plain code."""
    return torch.compiler.is_compiling() or functorch_is_active() or differentiates_forward()


def scaled_sum(y: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """Return y * right + bias."""
    if bias is None or R.is_narrower(y, right):
        scaled = R.scale_rows(y, right)
        return scaled if bias is None else scaled.add_(bias)
    return torch.addcmul(bias, y, right if right.dtype is y.dtype else right.to(y.dtype))


def scales_weight(rows: Tensor, weight: Tensor, width: int) -> bool:
    """Return whether a scale of the rows goes to W instead, which has fewer numbers; ``width`` is the product's."""
    return len(rows) > width and can_fold(weight)


def scaled_operands(x: Tensor, weight: Tensor, left: Tensor | None, right: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return rows and a matrix whose product is ``(x * left) @ weight * right``, with the smaller of them scaled."""
    if left is not None and scales_weight(x, weight, weight.shape[1]):
        weight, left = weight * left.to(weight.dtype).unsqueeze(1), None
    if right is not None:
        weight = weight * right.to(weight.dtype)
    return x if left is None else R.scale_rows(x, left), weight.to(x.dtype)
