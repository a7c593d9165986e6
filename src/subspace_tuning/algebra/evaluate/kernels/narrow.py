"""Narrow products, and sums over columns.

On the CPU a BLAS runs narrow float32 products on one thread, so they are split into chunks of rows. The narrow tensor
is then stored transposed: chunks x k x rows per chunk. Without chunks it is stored as rows x k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import rows as R

_FEW = 256  # rows below which splitting does not pay


def _chunks(rows: Tensor) -> int:
    if rows.device.type != "cpu" or rows.dtype is not torch.float32 or len(rows) <= _FEW:
        return 1
    threads = torch.get_num_threads()
    return math.gcd(len(rows), 2 * threads) if threads > 1 else 1


def narrowed(x: Tensor, low: Tensor, scale: float) -> Tensor:
    """Return scale * x @ low in the layout of narrow tensors."""
    count = _chunks(x)
    if count == 1:
        return torch.mm(x, low if scale == 1.0 else low * scale)
    turned = (low.T if scale == 1.0 else low.T * scale).contiguous().expand(count, -1, -1)
    return torch.bmm(turned, x.view(count, -1, x.shape[1]).transpose(1, 2))


def as_rows(t: Tensor) -> Tensor:
    """Return a narrow tensor as rows x k."""
    return t if t.ndim == 2 else t.transpose(1, 2).reshape(-1, t.shape[1])


def row_products(t: Tensor, rows: Tensor) -> Tensor:
    """Return t.T @ rows for a narrow t."""
    return torch.mm(t.T, rows) if t.ndim == 2 else torch.bmm(t, rows.view(len(t), -1, rows.shape[1])).sum(0)


def low_products(t: Tensor, rows: Tensor) -> Tensor:
    """Return rows.T @ t for a narrow t."""
    return torch.mm(rows.T, t) if t.ndim == 2 else row_products(t, rows).T


_TILE = 2**18  # numbers: three tensors of that size fit a processor's cache


def column_sums(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of the columns, in float32 or wider."""
    dtype = R.wide(a.dtype)
    rows = max(1, _TILE // a.shape[1])
    if a.device.type != "cpu" or len(a) < 2 * rows or torch.is_grad_enabled():
        return (a * b).sum(0, dtype=dtype)
    # In tiles, so that no tensor of the product's size is written. What a low precision loses in their sum, which
    # has few terms, is no more than what it loses in the products.
    tiles = list(zip(a.split(rows), b.split(rows), strict=True))
    total = tiles[0][0] * tiles[0][1]
    for left, right in tiles[1:]:
        total[: len(left)].addcmul_(left, right)
    sums: Tensor = total.sum(0, dtype=dtype)
    return sums
