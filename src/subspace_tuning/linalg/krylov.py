"""A few singular triples of a large matrix, from randomised block Krylov spaces (Musco and Musco, arXiv 1504.05477)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .exact import exact_svd

Part = Literal["top", "bottom"]
OVERSAMPLING = 8
_STEPS = 40  # about where another factorisation costs as much
_INVERSE_STEPS = 12
_SHIFTED_STEPS = 20
_FIRST_CHECK = 4  # steps before the first test of convergence
_TOLERANCE = 1e-6  # of residuals: of W, and of an inverse, whose errors W enlarges
_INVERSE_TOLERANCE = 1e-9
_ROUNDING = 1e-13
_PANEL = 512


class Spectrum(NamedTuple):
    """W = U @ diag(S) @ V.T, or r of its singular triples: U is n x k, S has k numbers in falling order, V is m x k."""

    U: Tensor
    S: Tensor
    V: Tensor


def partial_svd(matrix: Tensor, rank: int, part: Part) -> Spectrum | None:
    """Find r triples of a matrix that is not wide; None if only the exact decomposition can."""
    found, near = _largest(matrix, rank) if part == "top" else _smallest(matrix, rank)
    return _crowded(matrix, rank, near) if found is None and near is not None else found


class _Operator(NamedTuple):
    """A matrix M as products with blocks of a few rows, X @ M.T and Y @ M. With columns, some products are slow."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]


def _largest(matrix: Tensor, rank: int) -> tuple[Spectrum | None, Tensor]:
    """Find triples, and estimate the largest singular values."""
    # A few rows times the transpose of a stored matrix is the fast product, so W is stored both ways.
    straight, turned = matrix.contiguous(), matrix.T.contiguous()
    operator = _Operator(lambda block: block @ straight.T, lambda block: block @ turned.T)
    steps = min(_STEPS, matrix.shape[1] // (2 * (rank + OVERSAMPLING)))
    return _krylov(operator, matrix, rank, steps, _TOLERANCE)


def _smallest(matrix: Tensor, rank: int) -> tuple[Spectrum | None, Tensor | None]:
    """Find triples as the largest ones of the inverse, or else estimate them; neither for a singular matrix."""
    outer, square = (None, matrix) if matrix.shape[0] == matrix.shape[1] else torch.linalg.qr(matrix)
    factors, pivots, _ = torch.linalg.lu_factor_ex(square)
    diagonal = factors.diagonal().abs()
    if diagonal.min() <= _ROUNDING * diagonal.max():
        return None, None
    operator = _Operator(
        lambda block: torch.linalg.lu_solve(factors, pivots, block, left=False),
        lambda block: torch.linalg.lu_solve(factors, pivots, block, left=False, adjoint=True),
    )
    inverse, near = _krylov(operator, square, rank, _INVERSE_STEPS, _INVERSE_TOLERANCE)
    if inverse is None:
        return None, 1 / near
    U, S, V = (tensor.flip(-1) for tensor in inverse)
    found = Spectrum(U if outer is None else outer @ U, 1 / S, V)
    return (found, None) if _holds(matrix, found) else (None, None)


def _crowded(matrix: Tensor, rank: int, near: Tensor) -> Spectrum | None:
    """Find triples at an end of the spectrum where singular values are dense, but not near zero.

    They are separated by the inverse of W.T @ W, shifted by a number slightly beyond that end.

    Args:
        matrix: W, not wide.
        rank: how many triples.
        near: estimates of the singular values at that end, outermost first.
    """
    size = matrix.shape[1]
    gram = matrix.new_empty(size, size)
    for start in range(0, size, _PANEL):  # only the lower triangle is read
        torch.mm(matrix[:, start:].T, matrix[:, start : start + _PANEL], out=gram[start:, start : start + _PANEL])
    end, inside = float(near[0]) ** 2, float(near[-1]) ** 2
    if abs(end - inside) <= _ROUNDING * float(gram.trace()):
        return None  # the squares are too coarse for these
    sign = 1.0 if end > inside else -1.0
    for distance in (1.0, 4.0, 16.0):
        root = -sign * gram
        root.diagonal().add_(sign * (end + distance * (end - inside)))
        root, failed = torch.linalg.cholesky_ex(root)  # fails if part of the spectrum is beyond that number
        if not failed:
            break
    else:
        return None
    operator = _Operator(
        lambda block: torch.linalg.solve_triangular(root.T, block, upper=True, left=False),
        lambda block: torch.linalg.solve_triangular(root, block, upper=False, left=False),
    )
    directions = _krylov(operator, gram, rank, _SHIFTED_STEPS, _INVERSE_TOLERANCE)[0]
    if directions is None:
        return None
    image = directions.V.T.contiguous() @ matrix.T
    U, S, right = exact_svd(image.T)
    found = Spectrum(U, S, directions.V @ right.T)
    return found if _holds(matrix, found) else None


def _holds(matrix: Tensor, found: Spectrum) -> bool:
    """Check that triples belong to W: the solves that gave them may have amplified rounding errors."""
    U, S, V = found.U.T.contiguous(), found.S[:, None], found.V.T.contiguous()
    errors = torch.cat([V @ matrix.T - S * U, U @ matrix - S * V], dim=1)
    mean = torch.linalg.matrix_norm(matrix) / matrix.shape[1] ** 0.5  # is not above the largest singular value
    return bool(torch.linalg.vector_norm(errors, dim=1).max() <= _TOLERANCE * mean)


def _krylov(
    operator: _Operator, like: Tensor, rank: int, steps: int, tolerance: float
) -> tuple[Spectrum | None, Tensor]:
    """Find the largest triples of M in the span of a random block and its images under powers of M.T @ M.

    Flat spectra need the blocks of all powers together, not only the last one.

    Args:
        operator: M.
        like: a tensor of M's shape and type, on its device.
        rank: how many triples.
        steps: the largest number of blocks.
        tolerance: the largest residual, relative to the least of the r singular values.

    Returns:
        The triples, or None if they are not within the tolerance; and the largest singular values found so far.
    """
    width = rank + OVERSAMPLING
    generator = torch.Generator().manual_seed(0)  # leave torch's global generator alone
    block = torch.randn(width, like.shape[1], generator=generator, dtype=like.dtype).to(like.device)
    space, images, gram = (like.new_empty(width * steps, size) for size in (*like.shape[::-1], width * steps))
    near = like.new_zeros(width)
    check, before, missing_before = _FIRST_CHECK, 0, 0.0
    for count in range(1, steps + 1):
        old, new, known = slice((count - 1) * width), slice((count - 1) * width, count * width), slice(count * width)
        for _ in range(2):  # twice: where nearly everything cancels, one pass leaves rounding errors
            length = torch.linalg.vector_norm(block, dim=1).max()
            Q, R = torch.linalg.qr((block - (block @ space[old].T) @ space[old]).T)
            block = Q.T
            if R.diagonal().abs().min() > 0.1 * length:
                break
        space[new] = block
        images[new] = image = operator.forward(block)
        gram[new, known] = image @ images[known].T
        if count in (check, steps):
            squares, vectors = torch.linalg.eigh(gram[known, known])  # reads the lower triangle
            near = squares[-width:].flip(0).clamp(min=0).sqrt()
            # Squaring costs small values their accuracy, so the r directions are decomposed again.
            chosen = vectors[:, -rank:].T
            U, S, right = exact_svd((chosen @ images[known]).T)
            V = right @ chosen @ space[known]
            error = float(torch.linalg.vector_norm(operator.backward(U.T) - S[:, None] * V, dim=1).max())
            allowed = max(tolerance * float(S[-1]), _ROUNDING * float(S[0]))
            if error <= allowed:
                return Spectrum(U, S, V.T), near
            missing = math.log(error / allowed)
            wait = count // 2
            if before:
                left = missing * (count - before) / max(missing_before - missing, 1e-3)
                # Convergence accelerates from step to step, but rarely threefold.
                if count + left / 3 > steps:
                    break
                wait = min(wait, math.ceil(0.75 * left))
            check, before, missing_before = count + wait, count, missing
        block = operator.backward(image)
    return None, near
