"""MiLoRA: train the smallest singular triples of W (Wang et al., arXiv 2406.09044)."""

from ..registry import method


@method(
    category="reconstruction",
    mode="complex singular vectors",
    count="r * (n + m)",
    starts={"A": "minor_left", "B": "minor_right"},
    citation="arXiv:2406.09044",
)
def milora(W, A, B, A0, B0, s):
    """As PiSSA with the r smallest singular triples, so that the leading ones are kept."""
    return W + s * (A @ B - A0 @ B0)
