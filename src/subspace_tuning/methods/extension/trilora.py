"""TriLoRA: LoRA with a diagonal in the middle, the form of a singular value decomposition (arXiv 2405.11236)."""

from ..registry import method


@method(
    category="extension",
    mode="low rank",
    count="r * (n + m) + r",
    starts={"A": "kaiming_uniform", "B": "kaiming_uniform", "D": "zeros"},
    includes={"lora": {"D": "I"}},
    derives_rate=True,
    citation="arXiv:2405.11236",
)
def trilora(W, A, D, B, s):
    """Add A @ D @ B with a diagonal D, which starts at 0 between random A and B."""
    return W + s * A @ D @ B
