"""Comparisons: a grid of runs with tuned learning rates, whose results are kept in one file and survive anything."""

from ..extras import needs

needs("comparing", "compare")
