"""BitFit: train the biases (Ben Zaken et al., arXiv 2106.10199)."""

from ...algebra import affine
from ..registry import method
from ..roles import EVERY_BIAS


@method(
    category="reconstruction",
    mode="complex singular vectors",
    placement=EVERY_BIAS,
    count="m",
    learning_rate=2e-3,
    citation="arXiv:2106.10199",
)
def bitfit(W, b, delta):
    """Add delta, which starts at 0, to the bias, the last row of the augmented matrix [W; b], wherever there is one."""
    return affine(W, b + delta)
