"""SSB: scale the inputs and the outputs of W. From the paper (arXiv 2407.05417)."""

from ..registry import method
from ..roles import SCALED


@method(
    category="reconstruction",
    mode="simple singular vectors",
    placement=SCALED,
    count="n + m",
    includes={"ssl": {"D2": "I"}, "ia3": {"D1": "I"}},
    learning_rate=5e-3,
    derives_rate=True,
    citation="arXiv:2407.05417",
)
def ssb(W, D1, D2):
    """Scale the rows and the columns of W by diagonals D1 and D2 that start at 1."""
    return D1 @ W @ D2
