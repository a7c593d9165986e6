"""(IA)^3: scale the outputs of W (Liu et al., arXiv 2205.05638)."""

from ..registry import method
from ..roles import SCALED


@method(
    category="reconstruction",
    mode="simple singular vectors",
    placement=SCALED,
    count="m",
    learning_rate=5e-3,
    derives_rate=True,
    citation="arXiv:2205.05638",
)
def ia3(W, D2):
    """Scale the columns of W, its output subspace, by a diagonal D2 that starts at 1; the bias is unchanged."""
    return W @ D2
