"""Pfeiffer's adapter: one bottleneck around the feed-forward block's normalisation (arXiv 2005.00247)."""

from ...algebra import affine, relu
from ..registry import method
from ..roles import FFN_NORM


@method(
    category="extension",
    mode="adapter",
    placement=(FFN_NORM,),
    count="2 * m * r + r + m",
    starts={"A": "normal(0.02)", "B": "zeros", "a": "zeros", "c": "zeros"},
    citation="arXiv:2005.00247",
)
def pfeiffer(N, I, A, a, B, c):
    """Normalise, adapt, add the unnormalised input, and normalise again with the same frozen N; B starts at 0.

    For block input x and output z, the normalisation of z + x becomes N(adapter(N(z + x)) + z + x).
    """
    return (I + N @ affine(A, a) @ relu @ affine(B, c)) @ N
