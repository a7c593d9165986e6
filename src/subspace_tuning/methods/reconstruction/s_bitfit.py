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
    """As BitFit on those biases that a few batches show to lower the loss most, within a budget."""
    return affine(W, b + delta)
