"""The hand-written gradient of the pattern that most methods come to."""

from .autograd import scaled_low_rank
from .pattern import Parts, can_fold

__all__ = ["Parts", "can_fold", "scaled_low_rank"]
