"""Parallel adapter: a bottleneck beside the matrix (He et al., arXiv 2110.04366)."""

from ...algebra import relu
from ..registry import method


@method(category="extension", mode="adapter", count="r * (n + m)", citation="arXiv:2110.04366")
def parallel_adapter(W, A, B):
    """Add relu(x @ A) @ B; A starts Kaiming-uniform and B at 0. It has no dense form, so it cannot be merged."""
    return W + A @ relu @ B
