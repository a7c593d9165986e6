"""The formula algebra: expressions over named factors, their shapes, their evaluation and its cost. Torch only."""

from .formula import Formula, Sizes
from .gate import gate
from .nodes import (
    Expression,
    Identity,
    NotLinearError,
    affine,
    dense,
    diag,
    gelu,
    relu,
    silu,
    symbol,
    tanh,
)
from .parse import FormulaError, parse
from .plan import Alternative, Plan, alternatives, plan
from .unit import unit

__all__ = [
    "Alternative",
    "Expression",
    "Formula",
    "FormulaError",
    "Identity",
    "NotLinearError",
    "Plan",
    "Sizes",
    "affine",
    "alternatives",
    "dense",
    "diag",
    "gate",
    "gelu",
    "parse",
    "plan",
    "relu",
    "silu",
    "symbol",
    "tanh",
    "unit",
]
