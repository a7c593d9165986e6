"""LieRA: a multiplicative low-rank change, the exponential map to first order (Si et al., arXiv 2504.00851)."""

from ..registry import method


@method(category="extension", mode="low rank", count="r * (n + m)", derives_rate=True, citation="arXiv:2504.00851")
def liera(W, A, B, s):
    """Add the element-wise product of W and A @ B; A starts Kaiming-uniform and B at 0."""
    return W + s * (W * (A @ B))
