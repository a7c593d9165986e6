"""What a change of W did to W's subspaces: sizes, ranks, angles, shares, new directions.

Every figure that could arise by chance comes with its value for a random subspace of the same dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..linalg import Spectrum, exact_svd
from ..methods.schedules.lora_dash import EPSILON
from .change import Change

INTRUDER = 0.5
"""The cosine below which a leading singular vector counts as new."""


@dataclass(frozen=True)
class Angles:
    """The relative position of two subspaces of one space.

    Attributes:
        smallest: the smallest principal angle, degrees.
        largest: the largest one.
        overlap: the mean squared cosine of the principal angles: 1 if one subspace contains the other, 0 if orthogonal.
        random: the mean overlap of random subspaces of the same dimensions.
        chordal: the chordal distance, the root of the sum of squared sines.
        chordal_random: the chordal distance at the random overlap.
    """

    smallest: float
    largest: float
    overlap: float
    random: float
    chordal: float
    chordal_random: float


def angles(one: Tensor, other: Tensor) -> Angles:
    """Compare the spans of two matrices with orthonormal columns, n x p and n x q."""
    one, other = (one, other) if one.shape[1] >= other.shape[1] else (other, one)
    product = one.T @ other
    cosines = torch.linalg.svdvals(product).clamp(0.0, 1.0)
    # For a small angle the cosine loses half the digits; the sine keeps them all.
    sines = torch.linalg.svdvals(other - one @ product).flip(0).clamp(0.0, 1.0)[: len(cosines)]
    radians = torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos())
    count, n = len(cosines), len(one)
    if not count:
        return Angles(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
    squares = float(cosines.square().sum())
    chance = max(one.shape[1], other.shape[1]) / n  # p q / n over min(p, q)
    return Angles(
        smallest=math.degrees(float(radians[0])),
        largest=math.degrees(float(radians[-1])),
        overlap=squares / count,
        random=chance,
        chordal=float(torch.linalg.vector_norm(sines)),
        chordal_random=math.sqrt(count * max(0.0, 1.0 - chance)),
    )


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of one change of one matrix.

    Args:
        W: the frozen weight, n x m, float64.
        change: phi(W) - W.
        k: the number of singular directions in W's leading subspace.
    """

    W: Tensor
    change: Change
    k: int

    @cached_property
    def before(self) -> Spectrum:
        """W's singular value decomposition."""
        U, S, right = exact_svd(self.W)
        return Spectrum(U, S, right.T)

    @cached_property
    def after(self) -> Spectrum:
        """That of W plus the change."""
        U, S, right = exact_svd(self.W + self.change.matrix)
        return Spectrum(U, S, right.T)

    @cached_property
    def moved(self) -> Spectrum:
        """That of the change, without directions of zero weight."""
        U, S, V = self.change.svd()
        kept = 1e-10 * S.max() < S if len(S) and S.max() > 0 else torch.zeros(len(S), dtype=torch.bool)
        return Spectrum(U[:, kept], S[kept], V[:, kept])

    @property
    def size(self) -> float:
        """||dW||_F / ||W||_F; if W is zero, 0 without a change and infinite otherwise."""
        moved, before = (float(torch.linalg.vector_norm(part.S)) for part in (self.moved, self.before))
        if not before:
            return math.inf if moved else 0.0
        return moved / before

    @property
    def stable_rank(self) -> float:
        """||dW||_F^2 / ||dW||_2^2."""
        S = self.moved.S
        return float(S.square().sum() / S[0].square()) if len(S) else 0.0

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the singular values as shares of their sum (Roy and Vetterli, 2007)."""
        S = self.moved.S
        shares = S / S.sum()
        entropy = float(-(shares * shares.log()).sum()) if len(S) else -math.inf
        return math.exp(entropy)

    @property
    def left(self) -> Angles:
        """Between the leading left singular subspaces of dW and of W."""
        return angles(self.moved.U[:, : self.k], self.before.U[:, : self.k])

    @property
    def right(self) -> Angles:
        """Between the leading right ones."""
        return angles(self.moved.V[:, : self.k], self.before.V[:, : self.k])

    @property
    def reconstruction_share(self) -> float:
        """||P dW Q||^2 / ||dW||^2, P and Q the projections on W's k leading left and right singular vectors."""
        U, _, V = self.before
        inner = (U[:, : self.k].T @ self.change.left) @ (V[:, : self.k].T @ self.change.right).T
        total = float(self.moved.S.square().sum())
        return float(inner.square().sum()) / total if total else 0.0

    @property
    def reconstruction_random(self) -> float:
        """The share of a random dW: k^2 / (n m)."""
        leading = min(self.k, *self.W.shape)
        return float(leading * leading) / self.W.numel()

    def intruders(self, subspace: bool = False, threshold: float = INTRUDER) -> int:
        """Return how many of the k leading left singular vectors of phi(W) are new, those of the thin decomposition.

        A vector counts if its cosine with *every single* left singular vector of W is below the threshold (Shuttleworth
        et al., arXiv 2410.21228). With ``subspace`` it counts if its projection on the *span* of W's k leading ones is
        shorter than the threshold: a rotation within that span then does not count.
        """
        leading = self.after.U[:, : self.k]
        if subspace:
            near = torch.linalg.vector_norm(self.before.U[:, : self.k].T @ leading, dim=0)
        else:
            near = (self.before.U.T @ leading).abs().amax(0)
        return int((near < threshold).sum())

    def task_directions(self, count: int = 8) -> list[tuple[int, float]]:
        """Return W's singular directions with the largest relative change: index and |u_i.T dW v_i| / (sigma_i + eps).

        The directions that LoRA-Dash launches (arXiv 2409.01035).
        """
        U, S, V = self.before
        along = ((U.T @ self.change.left) * (V.T @ self.change.right)).sum(1).abs()
        rates = along / (S + EPSILON)
        chosen = rates.topk(min(count, len(rates)))
        return [(int(index), float(rate)) for rate, index in zip(chosen.values, chosen.indices, strict=True)]


def skewness(matrix: Tensor) -> float:
    """Return how far a matrix's columns are from orthogonal: the root mean square cosine of their pairs, 0 to 1."""
    columns = matrix / torch.linalg.vector_norm(matrix, dim=0).clamp(min=torch.finfo(matrix.dtype).tiny)
    count = columns.shape[1]
    if count < 2:
        return 0.0
    gram = columns.T @ columns
    off = gram - torch.diag(gram.diagonal())
    return float((off.square().sum() / (count * (count - 1))).sqrt())


def cosine(one: Change, other: Change) -> float:
    """Return the cosine between two changes of one matrix, as vectors, computed from their factors."""
    product = float(((one.left.T @ other.left) * (one.right.T @ other.right)).sum())
    norms = [float(torch.linalg.vector_norm(change.svd().S)) for change in (one, other)]
    return product / (norms[0] * norms[1]) if all(norms) else 0.0
