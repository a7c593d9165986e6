"""FlexLoRA: ranks that rise and fall with the entropy of the squared diagonal (Liu et al., arXiv 2601.22905)."""

from ..registry import method


@method(
    category="extension",
    mode="low rank",
    count="r * (n + m) + r",
    starts={"A": "normal(0.02)", "B": "normal(0.02)", "D": "zeros"},
    includes={"lora": {"D": "I"}},
    schedule="flexlora",
    citation="arXiv:2601.22905",
)
def flexlora(W, A, D, B, s):
    """Add A @ D @ B; the schedule moves rank from matrices that use few directions to those that use all of theirs."""
    return W + s * A @ D @ B
