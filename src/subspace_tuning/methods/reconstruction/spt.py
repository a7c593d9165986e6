"""SPT: sensitivity chooses between sparse entries and a low-rank term for each matrix (He et al., arXiv 2303.08566)."""

from ..registry import method


@method(
    category="reconstruction",
    mode="complex singular vectors",
    count="p + r * (n + m)",
    selection="sensitivity",
    budget=0.005,
    learning_rate=5e-4,
    citation="arXiv:2303.08566",
)
def spt(W, M, Delta, A, B, s):
    """Train the most sensitive entries, or a low-rank term in a matrix with more of them than the term has numbers."""
    return W + M * Delta + s * A @ B
