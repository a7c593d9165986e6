"""What a person chooses of a benchmark by name. Light, so that the command line can tell it without loading torch."""

from __future__ import annotations

from enum import Enum


class BenchPrecision(str, Enum):
    """The number format of a step; factors and the optimiser's state are float32 in each."""

    float32 = "float32"
    autocast = "autocast"  # float32 weights, products in bfloat16
    bfloat16 = "bfloat16"  # frozen weights in bfloat16


class Curve(str, Enum):
    """What grows."""

    rows = "rows"
    width = "width"
    rank = "rank"
    adapters = "adapters"
