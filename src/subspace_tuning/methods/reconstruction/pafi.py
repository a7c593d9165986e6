"""PaFi: train the smallest entries, without data (Liao et al., arXiv 2305.16742)."""

from ..registry import method


@method(
    category="reconstruction",
    mode="complex singular vectors",
    count="p",
    selection="magnitude",
    budget=0.005,
    learning_rate=2e-4,
    citation="arXiv:2305.16742",
)
def pafi(W, M, Delta):
    """Add Delta on the entries of each W that are smallest in absolute value."""
    return W + M * Delta
