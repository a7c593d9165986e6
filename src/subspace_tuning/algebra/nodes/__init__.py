"""The nodes of formulas, each with its rules (see :mod:`.base`)."""

from .affine import Affine, Carried, affine
from .base import Environment, Expression, NotLinearError, dense
from .build import add, product, substitute, symbol, times
from .common import MatrixNode, PlanNode
from .composite import Product, Scale, Sum, Transpose
from .diag import Diag, diag
from .elementwise import NONLINEARITIES, Activation, Elementwise, gelu, relu, silu, tanh
from .gate import Gate, expected_open, gate
from .hadamard import Hadamard
from .kron import Kron, kron
from .language import FUNCTIONS, Call, Typed, function
from .leaves import Diagonal, Identity, Leaf, Matrix, Normalisation, Number, Scalar, Vector
from .planning import Planner, Step
from .reflect import Reflect, reflect
from .sparse import Sparse
from .structure import Structure
from .unit import InverseNorms, Unit, one_for_zero, unit

W = Matrix("W")
"""The frozen weight."""

__all__ = [
    "FUNCTIONS",
    "NONLINEARITIES",
    "Activation",
    "Affine",
    "Call",
    "Carried",
    "Diag",
    "Diagonal",
    "Elementwise",
    "Environment",
    "Expression",
    "Gate",
    "Hadamard",
    "Identity",
    "InverseNorms",
    "Kron",
    "Leaf",
    "Matrix",
    "MatrixNode",
    "Normalisation",
    "NotLinearError",
    "Number",
    "PlanNode",
    "Planner",
    "Product",
    "Reflect",
    "Scalar",
    "Scale",
    "Sparse",
    "Step",
    "Structure",
    "Sum",
    "Transpose",
    "Typed",
    "Unit",
    "Vector",
    "W",
    "add",
    "affine",
    "dense",
    "diag",
    "expected_open",
    "function",
    "gate",
    "gelu",
    "kron",
    "one_for_zero",
    "product",
    "reflect",
    "relu",
    "silu",
    "substitute",
    "symbol",
    "tanh",
    "times",
    "unit",
]
