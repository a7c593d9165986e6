"""The formula algebra: expressions over named factors, their shapes, their evaluation and its cost. Torch only."""

from .evaluate import Alternative, Plan, alternatives, plan
from .formula import Formula
from .nodes import (
    Expression,
    Identity,
    NotLinearError,
    affine,
    dense,
    diag,
    gate,
    gelu,
    kron,
    reflect,
    relu,
    silu,
    symbol,
    tanh,
    unit,
)
from .parse import nearest_formula, parse
from .refusal import FormulaError
from .shapes import Sizes

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
    "kron",
    "nearest_formula",
    "parse",
    "plan",
    "reflect",
    "relu",
    "silu",
    "symbol",
    "tanh",
    "unit",
]
