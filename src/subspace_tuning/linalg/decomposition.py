"""Singular value decompositions of frozen weights: exact, leading part, trailing part, cached on disk.

Everything is computed in float64. In float32 the vectors depend visibly on the number of threads, but an adapter
trained in one basis must find the same basis when it is loaded. For the same reason the signs are fixed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import SubspaceError
from .cache import cached
from .exact import exact_svd
from .krylov import OVERSAMPLING, Part, Spectrum, partial_svd

_FEW = 16  # r triples are few if min(n, m) is at least this multiple of r plus the oversampling
_HUGE = 1e60  # above it, and below its inverse, powers of the entries may overflow or underflow


def svd(weight: Tensor, rank: int | None = None, part: Part = "top", cache: bool = True) -> Spectrum:
    """Decompose a weight.

    Args:
        weight: W, n x m, any floating type.
        rank: how many singular triples; None for all min(n, m).
        part: the largest or the smallest ones.
        cache: look the result up on disk, and store it there (see :func:`.cache.cache_folder`).

    Returns:
        U, S, V in float64 for a float64 weight, else in float32, on the weight's device. The columns of U and V are
        orthonormal. A few triples of a large matrix come from a randomised block Krylov space of it (Musco and
        Musco, arXiv 1504.05477), of its inverse or of a shifted inverse of its Gram matrix, if their residuals are
        below a millionth of the largest singular value; otherwise LAPACK computes the exact decomposition.

    Raises:
        SubspaceError: the weight has entries that are not finite, or the rank is above min(n, m).
    """
    k = min(weight.shape)
    if rank is not None and not 1 <= rank <= k:
        raise SubspaceError(f"rank {rank} is not between 1 and min(n, m) = {k}")
    weight = weight.detach()
    result = cached(weight, rank, part, _compute) if cache else _compute(weight, rank, part)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return Spectrum(*(tensor.to(dtype).to(weight.device).contiguous() for tensor in result))


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64: on its device, or on the CPU where the device has no such format (Apple's MPS)."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def _compute(weight: Tensor, rank: int | None, part: Part) -> Spectrum:
    matrix = in_float64(weight)
    size = float(torch.linalg.matrix_norm(matrix))
    # The norm is quicker to check than every entry, but that of finite entries may still overflow.
    if not (math.isfinite(size) or torch.isfinite(matrix).all()):
        raise SubspaceError("the weight has entries that are not finite")
    k = min(matrix.shape)
    if rank is not None and _FEW * (rank + OVERSAMPLING) <= k and 1 / _HUGE < size < _HUGE:
        wide = matrix.shape[0] < matrix.shape[1]
        found = partial_svd(matrix.T if wide else matrix, rank, part)
        if found is not None:
            return _fix_signs(Spectrum(found.V, found.S, found.U) if wide else found)
    U, S, right = exact_svd(matrix)
    chosen = slice(rank) if rank is None or part == "top" else slice(k - rank, k)
    return _fix_signs(Spectrum(U[:, chosen], S[chosen], right.T[:, chosen]))


def _fix_signs(spectrum: Spectrum) -> Spectrum:
    """Make the largest entry of every column of U positive."""
    U, S, V = spectrum
    largest = U.gather(0, U.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(U.dtype)
    return Spectrum(U * signs, S, V * signs)
