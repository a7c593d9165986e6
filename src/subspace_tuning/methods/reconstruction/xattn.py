"""Xattn Tuning: train the cross-attention alone (Gheini et al., arXiv 2104.08771)."""

from ..registry import method
from ..roles import CROSS_ATTENTION


@method(
    category="reconstruction",
    mode="complex singular vectors",
    placement=(CROSS_ATTENTION,),
    count="n * m",
    learning_rate=5e-5,
    citation="arXiv:2104.08771",
)
def xattn(W, Delta):
    """Add a dense Delta, which starts at 0, to the matrices of the cross-attention."""
    return W + Delta
