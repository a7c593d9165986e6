"""Diff pruning: a sparse difference, learnt with gates (Guo et al., arXiv 2012.07463)."""

from ...algebra import gate
from ..registry import method


@method(
    category="reconstruction",
    mode="complex singular vectors",
    count="2 * n * m",
    learning_rate=1e-4,
    citation="arXiv:2012.07463",
)
def diff_pruning(W, L, Delta):
    """Add Delta through gates with logits L; the expected number of open gates, times ``gate_weight``, is a penalty."""
    return W + gate(L) * Delta
