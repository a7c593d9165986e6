"""MoSLoRA: LoRA with a mixer between its subspaces (Wu et al., arXiv 2406.11909)."""

from ..registry import method


@method(
    category="extension",
    mode="low rank",
    count="r * (n + m) + r * r",
    starts={"A": "kaiming_uniform", "G": "orthogonal", "B": "zeros"},
    includes={"lora": {"G": "I"}, "trilora": {"G": "D"}},
    derives_rate=True,
    citation="arXiv:2406.11909",
)
def moslora(W, A, G, B, s):
    """Add A @ G @ B with an r x r mixer G that starts orthogonal; B starts at 0."""
    return W + s * A @ G @ B
