"""LoKr: add a Kronecker product whose second factor has low rank (Yeh et al., LyCORIS, arXiv 2309.14859)."""

from ...algebra import kron
from ..registry import method


@method(category="extension", mode="low rank", count="n1 * m1 + r * (n2 + m2)", citation="arXiv:2309.14859")
def lokr(W, C, A, B, s):
    """Add the Kronecker product of C (n1 x m1) and A @ B (n2 x m2); C and A start Kaiming-uniform and B at 0."""
    return W + s * kron(C, A @ B)
