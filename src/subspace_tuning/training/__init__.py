"""Runs: from a typed config to a trained adapter and a record of the run."""

from ..extras import needs

needs("training", "train")
