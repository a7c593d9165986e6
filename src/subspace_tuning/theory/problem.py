"""The approximation problem: the target for phi(W), and the norm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import SubspaceError


@dataclass(frozen=True)
class Problem:
    """min ||W* - phi(W)||_F, or ||root @ (W* - phi(W))||_F.

    Attributes:
        W_star: n x m.
        root: a matrix with n columns; None for the identity.
        entries: the number of entries under a mask.
        directions: the number of chosen singular directions.
        keeps_mask: whether the mask is given instead of being part of the problem.
    """

    W_star: Tensor
    root: Tensor | None = None
    entries: int = 0
    directions: int = 0
    keeps_mask: bool = False

    @cached_property
    def norm(self) -> float:
        """||W*|| in the norm of the error."""
        return float(torch.linalg.vector_norm(self.seen(self.W_star)))

    def error(self, phi: Tensor) -> float:
        """Return how far phi(W) is from W*."""
        return float(torch.linalg.vector_norm(self.seen(self.W_star - phi)))

    def seen(self, matrix: Tensor) -> Tensor:
        """Return root @ matrix, for an n x m matrix."""
        return matrix if self.root is None else self.root @ matrix


def read_matrix(name: str, value: Tensor) -> Tensor:
    """Return a matrix in float64 on the CPU. Raises SubspaceError if it is not a matrix, or not finite."""
    if value.dim() != 2:
        raise SubspaceError(f"{name} has {value.dim()} dimensions; it must be a matrix, n x m")
    value = value.detach().to("cpu", torch.float64)
    if not torch.isfinite(value).all():
        raise SubspaceError(f"{name} has entries that are not finite")
    return value


def shape_of(matrix: Tensor) -> str:
    """Return a matrix's shape as text."""
    return " x ".join(map(str, matrix.shape))


def read_root(activations: Tensor | None, covariance: Tensor | None, n: int) -> Tensor | None:
    """Return a matrix with as few rows as possible whose Gram matrix is the covariance; None if none is given."""
    if activations is None and covariance is None:
        return None
    if activations is not None and covariance is not None:
        raise SubspaceError("give activations or their covariance, not both")
    if activations is not None:
        rows = read_matrix("activations", activations.reshape(-1, activations.shape[-1]))
        if rows.shape[1] != n:
            raise SubspaceError(f"the activations have {rows.shape[1]} columns and W has {n} rows: they must agree")
        reduced: Tensor = torch.linalg.qr(rows, mode="r")[1]
        return rows if len(rows) <= n else reduced
    assert covariance is not None
    gram = read_matrix("covariance", covariance)
    if gram.shape != (n, n):
        raise SubspaceError(f"the covariance is {shape_of(gram)} and W has {n} rows: it must be {n} x {n}")
    squares, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    if squares.min() < -1e-8 * squares.abs().max():
        raise SubspaceError("the covariance has negative eigenvalues: it is not one of X.T @ X")
    kept = squares > 1e-14 * squares.max()
    root: Tensor = squares[kept].sqrt().unsqueeze(1) * vectors[:, kept].T
    return root
