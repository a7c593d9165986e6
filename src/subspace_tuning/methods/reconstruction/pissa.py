"""PiSSA: train the leading singular triples of W (Meng et al., arXiv 2404.02948)."""

from ..registry import method


@method(
    category="reconstruction",
    mode="complex singular vectors",
    count="r * (n + m)",
    starts={"A": "principal_left", "B": "principal_right"},
    derives_rate=True,
    citation="arXiv:2404.02948",
)
def pissa(W, A, B, A0, B0, s):
    """Train the part of W given by its r largest singular triples; A0 and B0 hold that part, so W stays frozen."""
    return W + s * (A @ B - A0 @ B0)
