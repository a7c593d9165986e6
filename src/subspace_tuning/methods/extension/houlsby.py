"""Houlsby's adapter: a bottleneck after two matrices of each block (Houlsby et al., arXiv 1902.00751)."""

from ...algebra import affine, gelu
from ..registry import method
from ..roles import ATTENTION_OUTPUT, FFN_OUT


@method(
    category="extension",
    mode="adapter",
    placement=(ATTENTION_OUTPUT, FFN_OUT),
    count="2 * m * r + r + m",
    starts={"A": "normal(0.02)", "B": "zeros", "a": "zeros", "c": "zeros"},
    citation="arXiv:1902.00751",
)
def houlsby(W, b, I, A, a, B, c):
    """Pass the output of W through a bottleneck with biases before the residual is added; B starts at 0."""
    return affine(W, b) @ (I + affine(A, a) @ gelu @ affine(B, c))
