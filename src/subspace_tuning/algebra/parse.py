"""Reading a formula: text -> expression and shapes.

Python's own grammar (``ast``) handles the syntax and a whitelist of node types the rest; nothing is evaluated.
Every intermediate result carries its shape, so that an error names the place in the formula and the shapes.
"""

from __future__ import annotations

import ast
import itertools
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from ..errors import SubspaceError
from . import names, suggest
from .formula import Formula
from .nodes import (
    FUNCTIONS,
    NONLINEARITIES,
    Activation,
    Diagonal,
    Expression,
    Identity,
    Matrix,
    Normalisation,
    Number,
    Scalar,
    Typed,
    add,
    product,
    symbol,
    times,
)
from .refusal import FormulaError
from .shapes import Dimension

# Whatever is parsed can be printed and parsed again: the printed form has no more operations than the given one, and no
# deeper nesting.
_MOST = 1000  # operations: with the names between them, they bound all work on a formula
_DEEPEST = 100  # levels of nesting, below Python's recursion limit
_LONGEST = 100_000  # characters, more than that many operations need


_OPERATIONS = (ast.BinOp, ast.UnaryOp, ast.Attribute, ast.Call)
_TOO_MANY = f"a formula has at most {_MOST} operations"


def parse(text: str, usable: Callable[[Formula], bool] | None = None) -> Formula:
    """Parse a formula in the language of docs/formula-language.md.

    Examples:
        >>> formula = parse("D1 @ W @ D2 + s * A @ B")
        >>> str(formula), formula.shapes["A"]
        ('D1 @ W @ D2 + s * A @ B', ('n', 'r'))

    White space between the names makes no difference.

    Args:
        text: the formula.
        usable: an additional condition on formulas that an error may suggest.

    Raises:
        FormulaError: a name, operation or shape that does not fit. The message marks the place as ``>>>here<<<`` and
            ends with the nearest formula that works, if one is found.
    """
    if not isinstance(text, str):
        raise FormulaError(f"a formula is a string such as 'W + s * A @ B', not {type(text).__name__}")
    try:
        return _Reader(text).read()
    except FormulaError as error:
        found = nearest_formula(error.formula, usable)
        suggestion = None if found is None else str(found)
        raise FormulaError(error.reason, error.formula, error.span, suggestion) from None


def nearest_formula(text: str, usable: Callable[[Formula], bool] | None = None) -> Formula | None:
    """Return the nearest working formula for a refused one, or None if none is found.

    Args:
        text: the refused formula.
        usable: a condition on the other, besides being readable and having trainable factors.
    """
    read: list[Formula] = []

    def works(other: str) -> bool:
        try:
            read.append(_Reader(str(_Reader(other).read())).read())  # as it will be printed
        except FormulaError:
            return False
        formula = read[-1]
        return bool(formula.trainable) and str(formula) != text and (usable is None or usable(formula))

    return read[-1] if suggest.nearest(text, FUNCTIONS, works) is not None else None


Rule: TypeAlias = "Callable[[_Reader, Sequence[Any], Typed], Typed]"


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self.shapes: dict[str, tuple[Dimension, ...]] = {}
        self.dimensions: dict[str, Dimension] = {}
        self.level = 0  # nesting level of the current operation

    def read(self) -> Formula:
        tree = self.syntax()
        result = self.visit(tree.body)
        if len(result.shape) != 2:
            raise self.error(tree.body, f"phi(W) must be a matrix, but is {_kind(result)}")
        wanted = ("m", "m") if "N" in result.node.names else ("n", "m")
        self.unify(tree.body, result.shape, self.known(*wanted), "phi(W) must be {1} like W, but is {0}")
        if not {"W", "U", "U_r", "N"} & set(result.node.names):
            raise self.error(tree.body, "phi(W) does not use W")
        shapes = {name: tuple(d.root().name or "r" for d in self.shapes[name]) for name in result.node.names}
        held = {name: node.held_shape(name, shapes[name]) for node in result.node.walk() for name in node.own_names}
        formula = Formula(result.node, held)
        self.check(tree.body, formula)
        return formula

    def syntax(self) -> ast.Expression:
        """Return the formula's syntax tree, if it is small enough to be walked."""
        if len(self.text) > _LONGEST:
            raise FormulaError(f"a formula of {len(self.text)} characters; the limit is {_LONGEST}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python's, of syntax that is refused below
                tree = ast.parse(self.text, mode="eval")
        except (SyntaxError, ValueError) as error:
            column = getattr(error, "offset", None) or 1
            found = (column - 1, column), f"not a formula ({getattr(error, 'msg', error)})"
            span, reason = suggest.fault(self.text) or found
            raise FormulaError(reason, self.text, span) from None
        except (RecursionError, MemoryError):  # Python's own, of a formula far beyond the limits
            raise FormulaError(_TOO_MANY) from None
        if sum(isinstance(node, _OPERATIONS) for node in ast.walk(tree)) > _MOST:
            raise FormulaError(_TOO_MANY)
        return tree

    def check(self, place: ast.expr, formula: Formula) -> None:
        """Refuse what can only be seen in the whole formula."""
        for name in formula.shapes:
            stem = names.started(name)
            if stem is not None and stem not in formula.trainable:
                found = f"{name} is the frozen start of {stem}, which the formula does not train"
                raise self.error(place, f"{found}; the language has no frozen random factors")
        for node in formula.expression.walk():
            if isinstance(node, Scalar) and formula.shapes[node.name]:
                raise self.error(place, f"{node.name} is a vector in one place and a number in another")
            if isinstance(node, Matrix) and names.is_mask(node.name):
                raise self.error(place, f"a mask {node.name} comes before its entries: {node.name} * Delta")

    # Dimensions

    def known(self, *dimensions: str) -> tuple[Dimension, ...]:
        return tuple(self.dimensions.setdefault(name, Dimension(name)) for name in dimensions)

    def unify(self, place: ast.expr, left: tuple[Dimension, ...], right: tuple[Dimension, ...], message: str) -> None:
        shown = [" x ".join(map(str, side)) for side in (left, right)]
        if len(left) != len(right) or not all(a.unify(b) for a, b in zip(left, right, strict=True)):
            raise self.error(place, message.format(*shown))

    def error(self, place: ast.expr, message: str) -> FormulaError:
        written = self.text.encode()  # ast counts bytes
        start, end = (len(written[:at].decode()) for at in (place.col_offset, place.end_col_offset))
        return FormulaError(message, self.text, (start, end))

    # Syntax

    def visit(self, tree: ast.expr) -> Typed:
        """Read a tree. Recursion is only for parentheses and tighter operations: a chain is read in a loop."""
        chain: list[tuple[Rule, ast.expr]] = []
        place = tree
        while (found := self.operation(place)) is not None:
            rule, first = found
            chain.append((rule, place))
            place = first
        nests = bool(chain) or isinstance(place, ast.Call)
        self.level += nests
        try:
            self.need_shallow(place, self.level)
            result = self.operand(place)
            for rule, run in itertools.groupby(reversed(chain), key=operator.itemgetter(0)):
                trees = [tree for _, tree in run]
                place = trees[-1]
                result = rule(self, trees, result)
                self.need_shallow(place, result.node.depth)
        except FormulaError:
            raise
        except OverflowError:
            raise self.error(place, "the number is too large") from None
        except SubspaceError as error:  # a number that is not finite, written or by arithmetic
            raise self.error(place, str(error)) from None
        self.level -= nests
        return result

    def need_shallow(self, place: ast.expr, depth: int) -> None:
        if depth > _DEEPEST:
            raise self.error(place, f"more than {_DEEPEST} operations are nested here")

    def operand(self, tree: ast.expr) -> Typed:
        if isinstance(tree, ast.Name):
            return self.name(tree)
        if isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
            return Typed(Number(float(tree.value)), ())  # type: ignore[arg-type]
        if isinstance(tree, ast.Call):
            return self.call(tree)
        raise self.error(tree, suggest.reason(tree))

    def name(self, tree: ast.Name) -> Typed:
        name = tree.id
        if name in FUNCTIONS and name not in NONLINEARITIES:
            raise self.error(tree, f"{name} is a function: write {name}(...)")
        problem = names.problem(name)
        if problem is not None:
            raise self.error(tree, problem)
        node = symbol(name)
        if isinstance(node, (Activation, Identity)):
            size = Dimension()
            return Typed(node, (size, size))
        if name not in self.shapes:
            self.shapes[name] = self.new_shape(tree, node)
        return Typed(node, self.shapes[name])

    def new_shape(self, tree: ast.Name, node: Expression) -> tuple[Dimension, ...]:
        spectral = names.SPECTRAL_SHAPES | names.CHOSEN_SHAPES
        if tree.id in spectral:
            return self.known(*spectral[tree.id])
        if tree.id[:2] in ("U_", "S_", "V_"):
            known = ", ".join(spectral)
            raise self.error(tree, f"{tree.id} is not a part of W's singular value decomposition, which has {known}")
        if tree.id == "W" or names.is_mask(tree.id):
            return self.known("n", "m")
        if isinstance(node, Normalisation):
            return self.known("m", "m")
        if isinstance(node, Scalar):
            return ()
        if isinstance(node, Diagonal):
            size = Dimension()
            return (size, size)
        return (Dimension(), Dimension())

    # Operations: runs of one kind, from the innermost outwards

    def operation(self, tree: ast.expr) -> tuple[Rule, ast.expr] | None:
        """Return the reader of an operation and its first operand; None for anything else."""
        if isinstance(tree, ast.BinOp) and type(tree.op) in self.binary:
            return self.binary[type(tree.op)], tree.left
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, (ast.USub, ast.UAdd)):
            return _Reader.sign, tree.operand
        if isinstance(tree, ast.Attribute) and tree.attr == "T":
            return _Reader.transpose, tree.value
        return None

    def sign(self, run: Sequence[ast.UnaryOp], inner: Typed) -> Typed:
        minuses = sum(isinstance(tree.op, ast.USub) for tree in run)
        return Typed(-inner.node if minuses % 2 else inner.node, inner.shape)

    def transpose(self, run: Sequence[ast.Attribute], inner: Typed) -> Typed:
        self.need_matrix(run[0].value, inner, ".T")
        return Typed(inner.node.T, inner.shape[::-1]) if len(run) % 2 else inner

    def call(self, tree: ast.Call) -> Typed:
        name = tree.func.id if isinstance(tree.func, ast.Name) else ""
        if name not in FUNCTIONS:
            raise self.error(tree.func, suggest.unknown(tree, FUNCTIONS))
        function = FUNCTIONS[name]
        if tree.keywords or not function.least <= len(tree.args) <= function.most:
            raise self.error(tree, f"{name} takes {function.arguments}")
        return function.read(_Call(self, name, tree.args, [self.visit(argument) for argument in tree.args]))

    def vector(self, place: ast.expr, argument: Typed, length: Dimension) -> Expression:
        """Give every lower-case name of the argument the shape of a vector of this length."""
        for name in argument.node.names:
            if not isinstance(symbol(name), Scalar) or name == names.SCALE:
                raise self.error(
                    place, f"a vector is expected here, and {name} is not one; vectors have lower-case names"
                )
            if name == "b" and not length.unify(*self.known("m")):
                raise self.error(place, f"b is the layer's bias of m numbers, {length} are expected here")
            if self.shapes[name] and not self.shapes[name][0].unify(length):
                raise self.error(place, f"{name} has {self.shapes[name][0]} numbers, {length} are expected here")
            self.shapes[name] = (length,)
        if len(argument.shape) == 2:
            raise self.error(place, f"a vector is expected here, this is {_kind(argument)}")
        return argument.node

    def need_matrix(self, place: ast.expr, operand: Typed, operation: str) -> None:
        if len(operand.shape) != 2:
            way = suggest.beside(operand.node.names)
            raise self.error(place, f"{operation} takes a matrix, and this is {_kind(operand)}{way}")

    def matmul(self, run: Sequence[ast.BinOp], first: Typed) -> Typed:
        nodes, left = [first.node], first
        for tree in run:
            right = self.visit(tree.right)
            for place, side in ((tree.left, left), (tree.right, right)):
                # s * A is already a matrix; only bare scalars and vectors remain here.
                self.need_matrix(place, side, "@")
            message = f"{{0}} columns meet {{1}} rows: the left side is {left}, the right side {right}"
            self.unify(tree, left.shape[1:], right.shape[:1], message)
            nodes.append(right.node)
            left = Typed(right.node, (left.shape[0], right.shape[1]))
        return Typed(product(*nodes), left.shape)

    def add(self, run: Sequence[ast.BinOp], first: Typed) -> Typed:
        nodes = [first.node]
        for tree in run:
            right = self.visit(tree.right)
            if len(first.shape) + len(right.shape) == 1:  # a known vector, and an operand that becomes one
                length = (first.shape or right.shape)[0]
                first, right = (
                    Typed(self.vector(place, side, length), (length,))
                    for place, side in ((tree.left, first), (tree.right, right))
                )
            message = f"the left side is {first}, the right side {right}, and only equal shapes can be added"
            self.unify(tree, first.shape, right.shape, message)
            nodes.append(-right.node if isinstance(tree.op, ast.Sub) else right.node)
        return Typed(add(*nodes), first.shape)

    def multiply(self, run: Sequence[ast.BinOp], first: Typed) -> Typed:
        nodes, left = [first.node], first
        for tree in run:
            right = self.visit(tree.right)
            if left.shape and right.shape:
                message = f"* is element-wise: left {left}, right {right}; @ multiplies"
                self.unify(tree, left.shape, right.shape, message)
            nodes.append(right.node)
            left = left if left.shape else right
        return Typed(times(*nodes), left.shape)

    def divide(self, run: Sequence[ast.BinOp], first: Typed) -> Typed:
        node = first.node
        for tree in run:
            right = self.visit(tree.right)
            if not isinstance(right.node, Number):
                raise self.error(tree.right, "/ divides by a literal number; s is already alpha / r")
            node = node / right.node.value
        return Typed(node, first.shape)

    binary: ClassVar[dict[type[ast.operator], Rule]] = {
        ast.MatMult: matmul,
        ast.Add: add,
        ast.Sub: add,
        ast.Mult: multiply,
        ast.Div: divide,
    }


@dataclass(frozen=True)
class _Call:
    """A call as its function's reader sees it."""

    reader: _Reader
    name: str
    places: Sequence[ast.expr]
    arguments: list[Typed]

    def matrix(self, index: int) -> Typed:
        self.reader.need_matrix(self.places[index], self.arguments[index], self.name)
        return self.arguments[index]

    def sized_matrix(self, index: int) -> Typed:
        typed = self.matrix(index)
        if typed.node.is_shapeless:
            message = f"{self.name} takes a matrix with its own size, and {typed.node} has none"
            raise self.reader.error(self.places[index], message)
        return typed

    def vector(self, index: int, length: Dimension) -> Expression:
        return self.reader.vector(self.places[index], self.arguments[index], length)

    def unify(self, index: int, shape: tuple[Dimension, ...]) -> None:
        message = f"this factor of {self.name} is {{1}}, not {{0}}"
        self.reader.unify(self.places[index], self.arguments[index].shape, shape, message)

    def known(self, *dimensions: str) -> tuple[Dimension, ...]:
        return self.reader.known(*dimensions)


def _kind(typed: Typed) -> str:
    return "a number" if not typed.shape else f"a vector ({typed})" if len(typed.shape) == 1 else f"a matrix ({typed})"
