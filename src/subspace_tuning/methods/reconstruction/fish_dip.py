"""FISH-DIP: a Fisher mask that is renewed during training (Das et al., arXiv 2311.06071)."""

from ..registry import method


@method(
    category="reconstruction",
    mode="complex singular vectors",
    count="p",
    selection="fisher",
    budget=0.005,
    schedule="dynamic_mask",
    learning_rate=2e-4,
    citation="arXiv:2311.06071",
)
def fish_dip(W, M, Delta):
    """Add Delta on a mask that is renewed from the examples with the largest loss; entries outside it return to W."""
    return W + M * Delta
