"""AdaLoRA: a budget of triplets, allocated by importance (Zhang et al., arXiv 2303.10512)."""

from ..registry import method


@method(
    category="extension",
    mode="low rank",
    count="r * (n + m) + r",
    starts={"A": "normal(0.02)", "B": "normal(0.02)", "D": "zeros"},
    includes={"lora": {"D": "I"}},
    schedule="adalora",
    pattern=("orthogonal",),
    pattern_weight=0.1,
    citation="arXiv:2303.10512",
)
def adalora(W, A, D, B, s):
    """Add A @ D @ B with A and B kept near orthogonal; the schedule zeroes the least important entries of D."""
    return W + s * A @ D @ B
