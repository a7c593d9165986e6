"""FlexLoRA: ranks that move both ways, by the entropy of the squared diagonal."""

from ..registry import method


@method(
    category="extension",
    count="r * (n + m) + r",
    starts={"A": "normal(0.02)", "B": "normal(0.02)", "D": "zeros"},
    includes={"lora": {"D": "I"}},
    schedule="flexlora",
    citation="arXiv:2407.05417",
)
def flexlora(W, A, D, B, s):
    """Add A @ D @ B; the schedule takes rank from matrices that use few directions and gives it to those that use all."""
    return W + s * A @ D @ B
