"""What formulas determine before anything is trained: best approximation, conversion, diagnosis, budget."""

from .approximate import Approximation, approximate
from .budget import energy_rank, read_budget, spread_ranks, uniform_rank
from .change import Change, change_of
from .convert import Conversion, convert
from .covariance import Covariance
from .diagnose import Angles, Diagnosis, angles, cosine, skewness

__all__ = [
    "Angles",
    "Approximation",
    "Change",
    "Conversion",
    "Covariance",
    "Diagnosis",
    "angles",
    "approximate",
    "change_of",
    "convert",
    "cosine",
    "energy_rank",
    "read_budget",
    "skewness",
    "spread_ranks",
    "uniform_rank",
]
