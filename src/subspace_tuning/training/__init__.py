"""Runs: a typed config in, a trained adapter and a record of how it came about out."""

from ..extras import needs

needs("training", "train")
