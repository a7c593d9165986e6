"""DoRA: train direction and magnitude separately (Liu et al., arXiv 2402.09353)."""

from ...algebra import unit
from ..registry import method


@method(category="combination", count="r * (n + m) + m", derives_rate=True, citation="arXiv:2402.09353")
def dora(W, A, B, D, s):
    """Rotate W's columns by a low-rank term and scale them by D, which starts at their norms."""
    return unit(W + s * A @ B) @ D
