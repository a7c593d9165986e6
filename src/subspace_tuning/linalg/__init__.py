"""Decompositions of matrices, and their cache."""

from .cache import cache_folder, cache_limit
from .decomposition import in_float64, svd
from .exact import exact_svd
from .krylov import Part, Spectrum

__all__ = ["Part", "Spectrum", "cache_folder", "cache_limit", "exact_svd", "in_float64", "svd"]
