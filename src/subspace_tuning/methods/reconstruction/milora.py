"""MiLoRA: train the smallest singular triples of W (Wang et al., arXiv 2406.09044)."""

from ..registry import method


@method(
    category="reconstruction",
    mode="complex singular vectors",
    count="r * (n + m)",
    starts={"A": "minor_left", "B": "minor_right"},
    derives_rate=True,
    citation="arXiv:2406.09044",
)
def milora(W, A, B, A0, B0, s):
    """Train the part of W given by its r smallest singular triples, as PiSSA does with the largest."""
    return W + s * (A @ B - A0 @ B0)
