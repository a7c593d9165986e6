"""The second moment of a layer's inputs, accumulated batch by batch, without keeping rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SubspaceError


class Covariance:
    """Accumulates X.T @ X over batches of rows, and the statistics for shrinking their mean.

    Shrinkage follows Ledoit and Wolf (J. Multivariate Analysis 88, 2004), about zero instead of the mean: the best mix
    of the sample's second moment and a multiple of the identity. It makes few rows usable and every direction count.

    Examples:
        >>> covariance = Covariance(384)
        >>> covariance.add(inputs)  # (..., 384), once per batch
        >>> approximate("lora", W, W_star, covariance=covariance.shrunk())
    """

    def __init__(self, n: int) -> None:
        self.rows = 0
        self._sum = torch.zeros(n, n, dtype=torch.float64)
        self._fourth = 0.0  # the sum of |x|^4

    def add(self, rows: Tensor) -> None:
        """Add rows, (..., n)."""
        x = rows.detach().reshape(-1, rows.shape[-1]).to("cpu", torch.float64)
        if x.shape[1] != len(self._sum):
            raise SubspaceError(f"the rows have {x.shape[1]} columns, the layer has {len(self._sum)} inputs")
        self._sum += x.T @ x
        self._fourth += float(x.square().sum(1).square().sum())
        self.rows += len(x)

    def mean(self) -> Tensor:
        """Return X.T @ X divided by the number of rows, n x n."""
        if not self.rows:
            raise SubspaceError("there is no covariance yet: add rows first")
        return self._sum / self.rows

    @property
    def shrinkage(self) -> float:
        """The weight of the identity in ``shrunk``, in [0, 1]."""
        second, n = self.mean(), len(self._sum)
        level = float(second.trace()) / n
        spread = float((second - level * torch.eye(n, dtype=second.dtype)).square().sum())
        noise = (self._fourth / self.rows - float(second.square().sum())) / self.rows
        return min(1.0, max(0.0, noise / spread)) if spread > 0 else 1.0

    def shrunk(self) -> Tensor:
        """Return the mean mixed with a multiple of the identity, n x n, positive definite if any row is not zero."""
        second, n, weight = self.mean(), len(self._sum), self.shrinkage
        return (1 - weight) * second + weight * float(second.trace()) / n * torch.eye(n, dtype=second.dtype)
