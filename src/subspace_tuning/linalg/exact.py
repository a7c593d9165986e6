"""LAPACK's singular value decomposition of any matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..extras import needs


def exact_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (n x k), the k = min(n, m) singular values in falling order, and V.T (k x m), without gradients.

    torch calls LAPACK's divide and conquer (gesdd), which fails on some matrices with many equal singular values. For
    those the slower QR iteration (gesvd) is used.
    """
    matrix = matrix.detach()
    try:
        U, S, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        needs("the decomposition of a matrix on which LAPACK's gesdd fails", "theory", "scipy")
        import scipy.linalg

        found = scipy.linalg.svd(matrix.cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
        U, S, right = (torch.from_numpy(part).to(matrix) for part in found)
    return U, S, right
