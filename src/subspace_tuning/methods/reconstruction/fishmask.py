"""FISH Mask: train the entries with the largest Fisher information (Sung et al., arXiv 2111.09839)."""

from ..registry import method


@method(
    category="reconstruction",
    mode="complex singular vectors",
    count="p",
    selection="fisher",
    budget=0.005,
    learning_rate=2e-4,
    citation="arXiv:2111.09839",
)
def fishmask(W, M, Delta):
    """Add Delta on the mask M, chosen once by the squared gradients of single examples from a few batches."""
    return W + M * Delta
