"""S-BitFit: train only the biases that matter (Lawton et al., arXiv 2305.16597)."""

from ...algebra import affine
from ..registry import method
from ..roles import EVERY_BIAS


@method(
    category="reconstruction",
    mode="complex singular vectors",
    placement=EVERY_BIAS,
    count="m",
    selection="importance",
    budget=0.5,
    learning_rate=2e-3,
    citation="arXiv:2305.16597",
)
def s_bitfit(W, b, delta):
    """Train, within a budget, the biases that lower the loss most on a few batches."""
    return affine(W, b + delta)
