"""The form composed of as few of torch's own operations as possible, for few rows.

When launching an operation costs more than its work, the Python around a hand-written gradient costs the most. The
result can be differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import rows as R
from ...nodes import NONLINEARITIES
from .form import Parts, product_dtype, with_norms


def composed(x: Tensor, parts: Parts, dtype: torch.dtype | None = None) -> Tensor:
    """Return the result of ``scaled_low_rank``, with products in ``dtype`` (by default as there)."""
    dtype = product_dtype(x) if dtype is None else dtype
    if parts.unit:
        parts = with_norms(parts)
    if x.dtype is not dtype:
        x = x.to(dtype)
    if x.ndim == 2 or len(parts.lows) == 0:
        return composed_rows(x, parts)
    y = composed_rows(x.reshape(-1, x.shape[-1]), parts)
    return y.view(*x.shape[:-1], y.shape[-1])


def _scaled_sum(y: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """Return y * right + bias, not by `addcmul`, whose gradient would pass over the rows twice more."""
    if R.is_narrower(y, right):
        scaled = R.scale_rows(y, right)
    else:
        scaled = y * (right if right.dtype is y.dtype else right.to(y.dtype))
    return scaled if bias is None else scaled.add_(bias)


def composed_rows(
    rows: Tensor, parts: Parts, outer: Callable[[Tensor, Tensor, Tensor | None], Tensor] = _scaled_sum
) -> Tensor:
    """Apply the form to rows in the precision of the products; ``outer`` scales the columns and adds the bias.

    With low-rank terms the rows are a matrix.
    """
    weight, bias, left, right, lows, highs, function, scale, right_scales_low_rank, _ = parts
    dtype = rows.dtype
    weight = weight if weight.dtype is dtype else weight.to(dtype)
    bias = bias if bias is None or bias.dtype is dtype else bias.to(dtype)
    scaled = rows if left is None else R.scale_rows(rows, left)
    y = F.linear(scaled, weight.T, bias if right is None else None)
    if right is not None and not right_scales_low_rank:
        y = _scaled_sum(y, right, bias)
    if len(lows) > 0:  # dynamo cannot take the truth value of a tuple
        low, high = (torch.cat(lows, 1), torch.cat(highs)) if lows[1:] else (lows[0], highs[0])
        t = torch.mm(rows, low if low.dtype is dtype else low.to(dtype))
        value = t if function is None else NONLINEARITIES[function](t)
        y = torch.addmm(y, value, high if high.dtype is dtype else high.to(dtype), alpha=scale)
    return outer(y, right, bias) if right is not None and right_scales_low_rank else y
