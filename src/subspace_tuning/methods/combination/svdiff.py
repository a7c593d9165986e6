"""SVDiff: shift the singular values (Han et al., arXiv 2303.11305)."""

from ...algebra import relu
from ..registry import method


@method(category="combination", count="k", learning_rate=5e-3, citation="arXiv:2303.11305")
def svdiff(U, S, D, V):
    """Shift W's singular values by D, which starts at 0, and clip them at 0."""
    return U @ relu(S + D) @ V.T
