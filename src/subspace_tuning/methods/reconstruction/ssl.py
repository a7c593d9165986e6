"""SSL: scale the inputs of W. From the paper (arXiv 2407.05417), its new method of reconstruction mode 2."""

from ..registry import method
from ..roles import SCALED


@method(
    category="reconstruction",
    mode="simple singular vectors",
    placement=SCALED,
    count="n",
    learning_rate=5e-3,
    citation="arXiv:2407.05417",
)
def ssl(W, D1):
    """Scale the rows of W, its input subspace, by a diagonal D1 that starts at 1."""
    return D1 @ W
