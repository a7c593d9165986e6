"""HRA: rotate W by Householder reflections (Yuan et al., arXiv 2405.17484)."""

from ...algebra import reflect
from ..registry import method


@method(category="reconstruction", mode="complex singular vectors", count="r * n", citation="arXiv:2405.17484")
def hra(W, A):
    """Reflect the inputs of W in each column of A; columns start in equal pairs, so the rank should be even."""
    return reflect(A) @ W
