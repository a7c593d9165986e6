"""Decompositions of matrices, and their cache. Torch only."""

from .cache import cache_folder, cache_limit
from .decomposition import in_float64, svd
from .krylov import Part, Spectrum

__all__ = ["Part", "Spectrum", "cache_folder", "cache_limit", "in_float64", "svd"]
