"""SAM-PARSER: train the singular values (Peng et al., arXiv 2308.14604)."""

from ...algebra import diag
from ..registry import method


@method(category="reconstruction", mode="singular values", count="k", learning_rate=5e-3, citation="arXiv:2308.14604")
def sam_parser(U, sigma, V):
    """Keep W's singular vectors and train its singular values sigma, which start at S."""
    return U @ diag(sigma) @ V.T
