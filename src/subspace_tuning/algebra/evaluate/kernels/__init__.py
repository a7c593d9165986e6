"""The form to which most methods reduce: with a hand-written gradient, and composed of torch's operations."""

from .autograd import scaled_low_rank
from .composed import composed
from .form import Parts, can_fold, product_dtype

__all__ = ["Parts", "can_fold", "composed", "product_dtype", "scaled_low_rank"]
