"""The best value of one block with everything else fixed: min over X of ||target - weight * (left @ X @ right)||_F.

A one-dimensional tensor is a diagonal matrix, None is the identity. Everything is float64 on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..extras import needs
from ..linalg import Spectrum, exact_svd, svd

Side = Tensor | None
_EXCHANGES = 30
_DESCENTS = 50
_TOLERANCE = 1e-12  # relative to the largest: smaller ones are not counted as directions


def times(left: Side, matrix: Tensor, right: Side = None) -> Tensor:
    """Return left @ matrix @ right."""
    if left is not None:
        matrix = left.unsqueeze(1) * matrix if left.dim() == 1 else left @ matrix
    if right is not None:
        matrix = matrix * right if right.dim() == 1 else matrix @ right
    return matrix


class _Range(NamedTuple):
    """A matrix M as basis @ core, where basis has orthonormal columns that span M's; and the inverse of core on it."""

    basis: Tensor
    inverse: Tensor  # from basis coordinates back to M's own: M @ inverse = basis


def _range(matrix: Tensor) -> _Range:
    U, S, right = exact_svd(matrix)
    kept = _TOLERANCE * S.max() < S if S.numel() else S > 0
    return _Range(U[:, kept], right[kept].T / S[kept])


def inverse_diagonal(vector: Tensor) -> Tensor:
    """Return the pseudo-inverse of a diagonal."""
    small = vector.abs() <= _TOLERANCE * vector.abs().max()
    return torch.where(small, 0.0, 1.0 / torch.where(small, 1.0, vector))


def low_rank(target: Tensor, left: Side, right: Side, rank: int) -> Spectrum:
    """Return the X of rank at most ``rank`` as its SVD (Eckart and Young; with sides Friedland and Torokhti, 2007).

    X = L^+ [P_L target P_R]_rank R^+, where P_L and P_R project on the spans of the sides.
    """
    back_left: Side = None
    back_right: Side = None
    if left is not None and left.dim() == 2:
        found = _range(left)
        target, back_left = found.basis.T @ target, found.inverse
    if right is not None and right.dim() == 2:
        found = _range(right.T)
        target, back_right = target @ found.basis, found.inverse
    # Nothing can be reached where a diagonal side is zero.
    if left is not None and left.dim() == 1:
        back_left = inverse_diagonal(left)
        target = (back_left != 0).to(target.dtype).unsqueeze(1) * target
    if right is not None and right.dim() == 1:
        back_right = inverse_diagonal(right)
        target = target * (back_right != 0).to(target.dtype)
    rank = min(rank, *target.shape)
    if rank == 0 or not target.any():
        n = len(target) if back_left is None else len(back_left)
        m = target.shape[1] if back_right is None else len(back_right)
        return Spectrum(target.new_zeros(n, 0), target.new_zeros(0), target.new_zeros(m, 0))
    U, S, V = svd(target, rank, cache=False)
    if back_left is None and back_right is None:
        return Spectrum(U, S, V)
    return factored_svd(times(back_left, U * S), times(back_right, V))


def factored_svd(left: Tensor, right: Tensor) -> Spectrum:
    """Return the SVD of left @ right.T from their QR decompositions and a narrow SVD, without forming the product."""
    (Q_left, R_left), (Q_right, R_right) = torch.linalg.qr(left), torch.linalg.qr(right)
    U, S, V = exact_svd(R_left @ R_right.T)
    return Spectrum(Q_left @ U, S, Q_right @ V.T)


def diagonal(target: Tensor, left: Side, right: Side, start: Tensor, positive: bool = False) -> Tensor:
    """Return the vector x of the best diagonal X, equal to ``start`` where it makes no difference.

    The normal equations are (L.T L * R R.T) x = diag(L.T target R.T).
    """
    size = len(start)
    reached = times(None if left is None else left.T, target)
    if right is None:
        wanted = reached.diagonal()
    elif right.dim() == 1:
        wanted = reached.diagonal() * right
    else:
        wanted = (reached * right).sum(1)
    gram_left = _gram(left, size)
    gram_right = _gram(None if right is None else right.T, size)
    gram = gram_left * gram_right if gram_left.dim() == gram_right.dim() == 2 else _own(gram_left) * _own(gram_right)
    own = _own(gram)
    unseen = own <= torch.finfo(own.dtype).tiny
    scale = torch.where(unseen, 0.0, torch.where(unseen, 1.0, own).rsqrt())
    if gram.dim() == 2:
        # Scaled so that every entry counts equally, and no small row, column or feature is taken for zero.
        gram = scale.unsqueeze(1) * gram * scale
        if (gram - torch.diag(gram.diagonal())).abs().max() > _TOLERANCE:
            assert left is not None and right is not None
            inner = torch.where(unseen, 0.0, start / torch.where(unseen, 1.0, scale))
            best = scale * _Coupled(target, left * scale, right).best(gram, scale * wanted, inner, positive)
            return torch.where(unseen, start.clamp(min=0.0) if positive else start, best)
    best = torch.where(unseen, start, wanted / torch.where(unseen, 1.0, own))
    return best.clamp(min=0.0) if positive else best


def _gram(side: Side, size: int) -> Tensor:
    if side is None:
        return torch.ones(size, dtype=torch.float64)
    return side.square() if side.dim() == 1 else side.T @ side


def _own(gram: Tensor) -> Tensor:
    return gram if gram.dim() == 1 else gram.diagonal()


class _Coupled(NamedTuple):
    """min over x of ||target - left @ diag(x) @ right||_F for interacting entries of x, each scaled to effect 1.

    The normal equations square the condition number and alone lose the directions in which entries nearly cancel. So
    they only give the coordinates for conjugate gradients on the problem itself (Björck, "Numerical Methods for Least
    Squares Problems", 1996, chapter 7).
    """

    target: Tensor
    left: Tensor
    right: Tensor

    def best(self, gram: Tensor, wanted: Tensor, start: Tensor, positive: bool) -> Tensor:
        """Return x, equal to ``start`` where it makes no difference, or to 0 if it must be ``positive``."""
        squares, vectors = torch.linalg.eigh(gram)
        least = len(gram) * torch.finfo(gram.dtype).eps * squares.max()  # below it, they are rounding errors
        if not positive:
            return self.descended(start, vectors / squares.clamp(min=least).sqrt())
        needs("the best positive diagonal", "theory", "scipy")
        from scipy.optimize import nnls

        kept = squares > least
        root, vectors = squares[kept].sqrt(), vectors[:, kept]
        solution, _ = nnls((root.unsqueeze(1) * vectors.T).numpy(), ((vectors.T @ wanted) / root).numpy())
        return torch.from_numpy(solution)

    def descended(self, x: Tensor, coordinates: Tensor) -> Tensor:
        """Return the result of conjugate gradients from x, in coordinates, when the error no longer falls."""
        residual = self.target - self.image(x)
        error, size, step = residual.square().sum(), torch.zeros(()), torch.zeros(())
        for _ in range(_DESCENTS):
            gradient = coordinates.T @ self.products(residual)
            before, size = size, gradient.square().sum()
            step = gradient + (size / before if before else 0.0) * step
            moved = coordinates @ step
            length = size / self.image(moved).square().sum()
            residual = self.target - self.image(x + length * moved)
            if not residual.square().sum() < error:  # also if there is nothing to change
                break
            x, error = x + length * moved, residual.square().sum()
        return x

    def image(self, x: Tensor) -> Tensor:
        return (self.left * x) @ self.right

    def products(self, residual: Tensor) -> Tensor:
        """Return the inner products of a residual with the effect of each entry of x."""
        return ((self.left.T @ residual) * self.right).sum(1)


def entries(target: Tensor, left: Side, count: int, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return positions (flat, ascending) and values of the best ``count`` entries, or the values at given positions.

    Without ``left`` the largest entries are the best. With it they are chosen by the gain of each alone; then entries
    that would gain more replace those that gain least, as long as the error falls (hard thresholding pursuit: Foucart,
    SIAM J. Numerical Analysis 49, 2011). The values are the best for their positions.
    """
    if left is None:
        chosen = target.abs().flatten().topk(count).indices.sort().values if positions is None else positions
        return chosen, target.flatten()[chosen]
    gram, wanted = left.T @ left, left.T @ target
    if positions is not None:
        return positions, _refitted(gram, wanted, positions)
    own = gram.diagonal().clamp(min=torch.finfo(gram.dtype).tiny).unsqueeze(1)
    best: tuple[Tensor, Tensor] | None = None
    values, explained = torch.zeros_like(wanted), -1.0
    for _ in range(_EXCHANGES):
        proxy = values + (wanted - gram @ values) / own
        positions = (proxy.square() * own).flatten().topk(count).indices.sort().values
        fitted = _refitted(gram, wanted, positions)
        gained = float((fitted * wanted.flatten()[positions]).sum())
        if best is not None and gained <= explained * (1.0 + _TOLERANCE):
            break
        best, explained = (positions, fitted), gained
        values = torch.zeros_like(wanted).flatten().index_put((positions,), fitted).view_as(wanted)
    assert best is not None
    return best


def _refitted(gram: Tensor, wanted: Tensor, positions: Tensor) -> Tensor:
    """Return the best values of the entries at given positions."""
    rows, columns = positions // wanted.shape[1], positions % wanted.shape[1]
    values = torch.zeros(len(positions), dtype=wanted.dtype)
    for column in columns.unique():
        own = columns == column
        inner = gram[rows[own]][:, rows[own]]
        values[own] = torch.linalg.lstsq(inner, wanted[rows[own], column].unsqueeze(1), driver="gelsd").solution[:, 0]
    return values


def weighted_low_rank(target: Tensor, weight: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return better factors for target = weight * (left @ right): first each row of left, then each column of right."""
    left = _weighted_rows(target, weight, right, left)
    right = _weighted_rows(target.T, weight.T, left.T, right.T).T
    return left, right


def _weighted_rows(target: Tensor, weight: Tensor, right: Tensor, start: Tensor) -> Tensor:
    rank = len(right)
    squares = (right.unsqueeze(0) * right.unsqueeze(1)).reshape(rank * rank, -1)
    gram = (weight.square() @ squares.T).view(-1, rank, rank)
    wanted = (weight * target) @ right.T
    change: Tensor = torch.linalg.pinv(gram, hermitian=True) @ (wanted.unsqueeze(2) - gram @ start.unsqueeze(2))
    return start + change.squeeze(2)
