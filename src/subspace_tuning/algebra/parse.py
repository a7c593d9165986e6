"""Reading a formula: text -> expression and shapes.

Python's own grammar does the syntax (``ast``); a whitelist of node kinds does the rest, and nothing is evaluated.
Every intermediate result carries its shape, so a wrong formula is told where it goes wrong and with which shapes.
"""

from __future__ import annotations

import ast
import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ..errors import SubspaceError
from . import names
from .formula import Formula, Shape
from .gate import gate
from .nodes import (
    NONLINEARITIES,
    Activation,
    Diagonal,
    Elementwise,
    Expression,
    Identity,
    Kron,
    Matrix,
    Normalisation,
    Number,
    Scalar,
    Sparse,
    affine,
    diag,
    product,
    symbol,
    times,
)
from .unit import unit

_FUNCTIONS = ("diag", "unit", "affine", "gate", "kron", *NONLINEARITIES)
_AXES = 3  # of a convolution's window
_LONGEST = 1000  # characters of a formula as it is printed, so that whatever is read can be printed and read again
_DEEPEST = 120  # operations within operations; keeps the recursion below Python's limit


class FormulaError(SubspaceError):
    """A formula that cannot be read; the message marks the place and says the shapes."""


class _Dimension:
    """A dimension: known by name, or to be found out from the neighbours (union-find)."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.parent: _Dimension | None = None

    def root(self) -> _Dimension:
        dimension = self
        while dimension.parent is not None:
            dimension = dimension.parent
        return dimension

    def unify(self, other: _Dimension) -> bool:
        """Make both the same dimension; return False if they are known to differ."""
        a, b = self.root(), other.root()
        if a is b:
            return True
        if a.name and b.name:
            return a.name == b.name
        if a.name:
            a, b = b, a
        a.parent = b
        return True

    def __str__(self) -> str:
        return self.root().name or "?"


@dataclass(frozen=True)
class _Typed:
    """An expression with its shape: () a scalar, (length,) a vector, (rows, columns) a matrix."""

    node: Expression
    shape: tuple[_Dimension, ...]

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape)) if self.shape else "a number"


def parse(text: str) -> Formula:
    """Read a formula in the language of docs/formula-language.md.

    >>> formula = parse("D1 @ W @ D2 + s * A @ B")
    >>> str(formula), formula.shapes["A"]
    ('D1 @ W @ D2 + s * A @ B', ('n', 'r'))

    Blanks and line ends between the names make no difference.

    Raises:
        FormulaError: a name, operation or shape that does not fit, with the place marked as ``>>>here<<<``.
    """
    if not isinstance(text, str):
        raise FormulaError(f"a formula is a string such as 'W + s * A @ B', not {type(text).__name__}")
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self.shapes: dict[str, tuple[_Dimension, ...]] = {}
        axes = [f"{letter}{axis + 1}" for letter in "wv" for axis in range(_AXES)]
        self.dimensions = {name: _Dimension(name) for name in [*"nmkrqcg", *axes]}
        self.found: list[_Typed] = []

    def read(self) -> Formula:
        tree = self.syntax()
        result = self.visit(tree.body)
        if len(result.shape) != 2:
            raise self.error(tree.body, f"phi(W) is a matrix, this is {_kind(result)}")
        wanted = ("m", "m") if "N" in result.node.names else ("n", "m")
        self.unify(tree.body, result.shape, self.known(*wanted), "phi(W) is {1} like W, this is {0}")
        if not {"W", "U", "U_r", "N"} & set(result.node.names):
            raise self.error(tree.body, "phi(W) does not use W")
        shapes = {name: tuple(d.root().name or "r" for d in self.shapes[name]) for name in result.node.names}
        sparse = {name for node in result.node.walk() if isinstance(node, Sparse) for name in node.own_names}
        formula = Formula(
            result.node,
            {name: ("p",) if name in sparse else _compact(name, shape) for name, shape in shapes.items()},
        )
        self.check(tree.body, formula)
        return formula

    def syntax(self) -> ast.Expression:
        """Return the formula's syntax tree, of a size that can be walked."""
        written = len(self.text.replace(" ", ""))
        if written > _LONGEST:
            raise FormulaError(f"a formula of {written} characters; the longest that is read has {_LONGEST}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python's, of syntax that is refused below
                tree = ast.parse(self.text, mode="eval")
        except (SyntaxError, ValueError) as error:
            column = getattr(error, "offset", None) or 1
            place = self.text[: column - 1] + ">>>" + self.text[column - 1 : column] + "<<<" + self.text[column:]
            reason = _printable(str(getattr(error, "msg", error)))
            raise FormulaError(f"formula '{_printable(place)}': not a formula ({reason})") from None
        except (RecursionError, MemoryError):
            raise FormulaError(f"a formula in which more than {_DEEPEST} operations stand within each other") from None
        level: list[ast.AST] = [tree.body]
        for _ in range(_DEEPEST):
            level = [child for node in level for child in ast.iter_child_nodes(node)]
        if level:
            raise FormulaError(f"a formula in which more than {_DEEPEST} operations stand within each other")
        return tree

    def check(self, place: ast.expr, formula: Formula) -> None:
        """Refuse what only the whole formula shows."""
        for name in formula.shapes:
            stem = names.started(name)
            if stem is not None and stem not in formula.trainable:
                raise self.error(place, f"{name} is the frozen start of {stem}, which the formula does not train")
        for node in formula.expression.walk():
            if isinstance(node, Scalar) and formula.shapes[node.name]:
                raise self.error(place, f"{node.name} is a vector in one place and a number in another")
        printed = len(str(formula))
        if printed > _LONGEST:
            raise FormulaError(f"a formula of {printed} characters; the longest that is read has {_LONGEST}")

    # Dimensions

    def known(self, *dimensions: str) -> tuple[_Dimension, ...]:
        return tuple(self.dimensions[dimension] for dimension in dimensions)

    def unify(self, place: ast.expr, left: tuple[_Dimension, ...], right: tuple[_Dimension, ...], message: str) -> None:
        told = [" x ".join(map(str, side)) for side in (left, right)]
        if len(left) != len(right) or not all(a.unify(b) for a, b in zip(left, right, strict=True)):
            raise self.error(place, message.format(*told))

    def error(self, place: ast.expr, message: str) -> FormulaError:
        start, end = place.col_offset, place.end_col_offset or len(self.text)
        # ast counts bytes; a formula with other letters is refused anyway, so a cut in the wrong place does no harm.
        marked = f"{self.text[:start]}>>>{self.text[start:end]}<<<{self.text[end:]}"
        return FormulaError(_printable(f"formula '{marked}': {message}"))

    # Syntax

    def visit(self, tree: ast.expr) -> _Typed:
        try:
            return self.visited(tree)
        except FormulaError:
            raise
        except SubspaceError as error:  # a number that is not finite, written or by arithmetic
            raise self.error(tree, str(error)) from None

    def visited(self, tree: ast.expr) -> _Typed:
        if isinstance(tree, ast.Name):
            return self.name(tree)
        if isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
            return _Typed(_number(tree.value), ())  # type: ignore[arg-type]
        if isinstance(tree, ast.Attribute) and tree.attr == "T":
            return self.transpose(tree)
        if isinstance(tree, ast.Call):
            return self.call(tree)
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            inner = self.visit(tree.operand)
            return _Typed(-inner.node, inner.shape)
        if isinstance(tree, ast.BinOp):
            for operator, rule in self.rules.items():
                if isinstance(tree.op, operator):
                    return rule(self, tree, self.visit(tree.left), self.visit(tree.right))
        raise self.error(tree, "only names, numbers, + - * @ .T and the functions " + ", ".join(_FUNCTIONS))

    def name(self, tree: ast.Name) -> _Typed:
        name = tree.id
        if name in ("diag", "unit", "affine", "gate", "kron"):
            raise self.error(tree, f"{name} is a function: write {name}(...)")
        problem = names.problem(name)
        if problem is not None:
            raise self.error(tree, problem)
        node = symbol(name)
        if isinstance(node, (Activation, Identity)):
            size = _Dimension()
            return _Typed(node, (size, size))
        if name not in self.shapes:
            self.shapes[name] = self.new_shape(tree, node)
        return _Typed(node, self.shapes[name])

    def new_shape(self, tree: ast.Name, node: Expression) -> tuple[_Dimension, ...]:
        spectral = names.SPECTRAL_SHAPES | names.CHOSEN_SHAPES
        if tree.id in spectral:
            return self.known(*spectral[tree.id])
        if tree.id[:2] in ("U_", "S_", "V_"):
            known = ", ".join(spectral)
            raise self.error(tree, f"{tree.id} is no part of W's singular value decomposition; there are {known}")
        if tree.id == "W" or names.is_mask(tree.id):
            return self.known("n", "m")
        if isinstance(node, Normalisation):
            return self.known("m", "m")
        if isinstance(node, Scalar):
            return ()
        if isinstance(node, Diagonal):
            size = _Dimension()
            return (size, size)
        return (_Dimension(), _Dimension())

    def transpose(self, tree: ast.Attribute) -> _Typed:
        inner = self.visit(tree.value)
        self.need_matrix(tree.value, inner, ".T")
        return _Typed(inner.node.T, inner.shape[::-1])

    def call(self, tree: ast.Call) -> _Typed:
        function = tree.func.id if isinstance(tree.func, ast.Name) else "that is called"
        if function not in _FUNCTIONS:
            close = difflib.get_close_matches(function, _FUNCTIONS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise self.error(tree.func, f"unknown function {function}; {hint}There are {', '.join(_FUNCTIONS)}")
        if function == "kron":
            return self.kron(tree)
        wanted = 2 if function == "affine" else 1
        if tree.keywords or len(tree.args) != wanted:
            raise self.error(tree, f"{function} takes {wanted} argument{'s' * (wanted > 1)}")
        arguments = [self.visit(argument) for argument in tree.args]
        if function == "diag":
            length = _Dimension()
            return _Typed(diag(self.vector(tree.args[0], arguments[0], length)), (length, length))
        self.need_matrix(tree.args[0], arguments[0], function)
        if function == "affine":
            bias = self.vector(tree.args[1], arguments[1], arguments[0].shape[1])
            return _Typed(affine(arguments[0].node, bias), arguments[0].shape)
        if arguments[0].node.names == () and arguments[0].node.diagonal:
            raise self.error(tree.args[0], f"{function} takes a matrix with a size of its own, and I has none")
        if function in ("unit", "gate"):
            build = unit if function == "unit" else gate
            return _Typed(build(arguments[0].node), arguments[0].shape)
        return _Typed(Elementwise(function, arguments[0].node), arguments[0].shape)

    def kron(self, tree: ast.Call) -> _Typed:
        """Read kron(A, C1, ...): one factor for the channels of a patch, and one for each axis of its window."""
        if tree.keywords or not 2 <= len(tree.args) <= 1 + _AXES:
            raise self.error(tree, f"kron takes a factor for the channels and one for each of 1 to {_AXES} axes")
        arguments = [self.visit(argument) for argument in tree.args]
        shapes = [("c", "r"), *((f"w{axis}", f"v{axis}") for axis in range(1, len(arguments)))]
        for place, argument, shape in zip(tree.args, arguments, shapes, strict=True):
            self.need_matrix(place, argument, "kron")
            self.unify(place, argument.shape, self.known(*shape), "this factor of kron is {1}, not {0}")
        return _Typed(Kron(tuple(argument.node for argument in arguments)), self.known("n", "g"))

    def vector(self, place: ast.expr, argument: _Typed, length: _Dimension) -> Expression:
        """Give every lower-case name of the argument the shape of a vector of this length."""
        for name in argument.node.names:
            if not isinstance(symbol(name), Scalar) or name == names.SCALE:
                raise self.error(place, f"a vector is wanted here, and {name} is none; vectors have lower-case names")
            if name == "b" and not length.unify(self.dimensions["m"]):
                raise self.error(place, f"b is the layer's bias of m numbers, {length} are wanted here")
            if self.shapes[name] and not self.shapes[name][0].unify(length):
                raise self.error(place, f"{name} has {self.shapes[name][0]} numbers, {length} are wanted here")
            self.shapes[name] = (length,)
        return argument.node

    def need_matrix(self, place: ast.expr, operand: _Typed, operation: str) -> None:
        if len(operand.shape) != 2:
            raise self.error(place, f"{operation} takes a matrix, this is {_kind(operand)}")

    def matmul(self, tree: ast.BinOp, left: _Typed, right: _Typed) -> _Typed:
        for place, side in ((tree.left, left), (tree.right, right)):
            # s * A is a matrix already; what is left here are bare scalars and vectors.
            self.need_matrix(place, side, "@")
        message = f"{{0}} columns meet {{1}} rows: the left side is {left}, the right side {right}"
        self.unify(tree, left.shape[1:], right.shape[:1], message)
        return _Typed(product(left.node, right.node), (left.shape[0], right.shape[1]))

    def add(self, tree: ast.BinOp, left: _Typed, right: _Typed) -> _Typed:
        self.unify(tree, left.shape, right.shape, f"the left side is {left}, the right side {right}")
        subtract = isinstance(tree.op, ast.Sub)
        return _Typed(left.node - right.node if subtract else left.node + right.node, left.shape)

    def multiply(self, tree: ast.BinOp, left: _Typed, right: _Typed) -> _Typed:
        if left.shape and right.shape:
            self.unify(
                tree, left.shape, right.shape, f"* is element by element: left {left}, right {right}; @ multiplies"
            )
        node = times(left.node, right.node)
        if any(isinstance(leaf, Matrix) and names.is_mask(leaf.name) for leaf in node.walk()):
            raise self.error(tree, "a mask M stands in front of its entries: M * Delta")
        return _Typed(node, left.shape or right.shape)

    rules: ClassVar[dict[type[ast.operator], Callable[[_Reader, ast.BinOp, _Typed, _Typed], _Typed]]] = {
        ast.MatMult: matmul,
        ast.Add: add,
        ast.Sub: add,
        ast.Mult: multiply,
    }


def _number(value: float) -> Number:
    try:
        return Number(float(value))
    except OverflowError:
        raise SubspaceError("the number is too large") from None


def _printable(text: str) -> str:
    """Return a text in one line, with what does not print as Python writes it in a string."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _kind(typed: _Typed) -> str:
    return "a number" if not typed.shape else f"a vector ({typed})" if len(typed.shape) == 1 else f"a matrix ({typed})"


def _compact(name: str, shape: Shape) -> Shape:
    """Return the shape of the tensor: a diagonal is held as its vector."""
    return shape[:1] if names.is_diagonal(name) else shape
