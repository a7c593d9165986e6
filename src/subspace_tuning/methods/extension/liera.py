"""LieRA: a multiplicative change of low rank, the first order of the exponential map (Si et al., arXiv 2504.00851)."""

from ..registry import method


@method(category="extension", mode="low rank", count="r * (n + m)", citation="arXiv:2504.00851")
def liera(W, A, B, s):
    """Add W times A @ B entry by entry; A starts kaiming-uniform and B at 0."""
    return W + s * (W * (A @ B))
