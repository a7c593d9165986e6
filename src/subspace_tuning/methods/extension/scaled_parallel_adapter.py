"""Scaled parallel adapter: a parallel adapter with a learnt scale (He et al., arXiv 2110.04366)."""

from ...algebra import relu
from ..registry import method


@method(category="extension", mode="adapter", count="r * (n + m) + 1", citation="arXiv:2110.04366")
def scaled_parallel_adapter(W, t, A, B):
    """Add t * relu(x @ A) @ B with a trained t that starts at 1; for a fixed scale: lora with pattern nonlinear."""
    return W + t * A @ relu @ B
