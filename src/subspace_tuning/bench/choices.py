"""The named choices of a benchmark."""

from __future__ import annotations

from enum import Enum


class BenchPrecision(str, Enum):
    """The number format of a step; factors and the optimiser's state are float32 in each."""

    float32 = "float32"
    autocast = "autocast"  # float32 weights, products in bfloat16
    bfloat16 = "bfloat16"  # frozen weights in bfloat16


class Curve(str, Enum):
    """The quantity that grows."""

    rows = "rows"
    width = "width"
    rank = "rank"
    adapters = "adapters"
