"""Spectral Adapter: tune the leading singular vectors additively (Zhang and Pilanci, arXiv 2405.13952)."""

from ..registry import method


@method(category="combination", count="r * (n + m)", derives_rate=True, citation="arXiv:2405.13952")
def spectral(U_r, A, S_r, V_r, B, rest):
    """Add A and B, which start at 0, to the leading r left and right singular vectors of W."""
    return (U_r + A) @ S_r @ (V_r + B).T + rest
