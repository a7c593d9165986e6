"""FLoRA: LoRA with a full core, the matrix case of a Tucker decomposition (Si et al., arXiv 2405.14739)."""

from ..registry import method


@method(
    category="extension",
    mode="low rank",
    count="r * (n + m) + r * r",
    starts={"A": "normal(0.02)", "B": "normal(0.02)", "G": "zeros"},
    includes={"lora": {"G": "I"}, "trilora": {"G": "D"}},
    convolution="W + s * kron(A, C) @ G @ B",
    derives_rate=True,
    citation="arXiv:2405.14739",
)
def flora(W, A, G, B, s):
    """Add A @ G @ B with an r x r core G, which starts at 0 between small random A and B.

    In a convolution the core has an axis for the inputs, the outputs and each axis of the window (Tucker).
    """
    return W + s * A @ G @ B
