"""Products with something narrow, and sums over columns.

A BLAS of the CPU gives products of float32 with something narrow to one thread, so they are cut into chunks of rows.
There what is narrow is kept transposed, and in chunks: chunks x k x rows per chunk. Elsewhere it is kept as rows x k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FEW = 256  # rows, which are not worth the cutting


def _chunks(rows: Tensor) -> int:
    threaded = rows.device.type == "cpu" and rows.dtype == torch.float32 and len(rows) > _FEW
    return math.gcd(len(rows), 2 * torch.get_num_threads()) if threaded else 1


def narrowed(x: Tensor, low: Tensor, scale: float) -> Tensor:
    """Return scale * x @ low, as what is narrow is kept."""
    if not _is_cut(x):
        return torch.mm(x, low if scale == 1.0 else low * scale)
    count = _chunks(x)
    turned = (low.T if scale == 1.0 else low.T * scale).contiguous().expand(count, -1, -1)
    return torch.bmm(turned, x.view(count, -1, x.shape[1]).transpose(1, 2))


def _is_cut(rows: Tensor) -> bool:
    return rows.device.type == "cpu"


def as_rows(t: Tensor) -> Tensor:
    """Return what is narrow as rows x k."""
    return t if t.ndim == 2 else t.transpose(1, 2).reshape(-1, t.shape[1])


def row_products(t: Tensor, rows: Tensor) -> Tensor:
    """Return t.T @ rows for a t that is narrow."""
    return t.T @ rows if t.ndim == 2 else torch.bmm(t, rows.view(len(t), -1, rows.shape[1])).sum(0)


_TILE = 2**18  # numbers: what a processor's own cache holds of three tensors


def column_sums(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of the columns, in float32 or wider."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    rows = max(1, _TILE // a.shape[1])
    if a.device.type != "cpu" or len(a) < 2 * rows or torch.is_grad_enabled():
        return (a * b).sum(0, dtype=dtype)
    # In tiles, so that no tensor of the size of the product is written. What a low precision loses in their sum, which
    # has few terms, is no more than what it loses in the products.
    tiles = list(zip(a.split(rows), b.split(rows), strict=True))
    total = tiles[0][0] * tiles[0][1]
    for left, right in tiles[1:]:
        total[: len(left)].addcmul_(left, right)
    sums: Tensor = total.sum(0, dtype=dtype)
    return sums
