"""LoRA: add a low-rank product (Hu et al., arXiv 2106.09685)."""

from ..registry import method


@method(category="extension", mode="low rank", count="r * (n + m)", derives_rate=True, citation="arXiv:2106.09685")
def lora(W, A, B, s):
    """Add A @ B of rank r, scaled by alpha / r; A starts Kaiming-uniform and B at 0."""
    return W + s * A @ B
