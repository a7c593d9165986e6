"""Python constructs that are not in the language: why they are refused, and their nearest replacement."""

from __future__ import annotations

import ast
import difflib
import keyword
import re
from collections.abc import Collection

from .. import names
from ..nodes import NONLINEARITIES
from . import trees

OPERATIONS = "+ - * @ .T and / by a number"
_LIBRARIES = frozenset({"F", "functional", "jax", "jnp", "linalg", "math", "nn", "np", "numpy", "tf", "torch"})
_TRANSPOSES = frozenset({"H", "T", "adjoint", "mH", "mT", "permute", "swapaxes", "t", "transpose"})
_PRODUCTS = frozenset({"bmm", "chain_matmul", "dot", "einsum", "linear", "matmul", "mm", "multi_dot", "outer"})
_ELEMENTWISE = frozenset({"hadamard", "mul", "multiply", "odot"})
_SUMS = frozenset({"add", "plus", "sum"})
_NORMALISERS = frozenset({"col_norm", "column_norm", "normalise", "normalize", "unit_norm", "weight_norm"})
_DIAGONALS = frozenset({"Diag", "diag_embed", "diagflat", "diagonal"})
_NONLINEAR = frozenset(
    "abs arctan atan celu clamp cos elu erf exp hardtanh layernorm leaky_relu log log_softmax mish selu sigmoid sign "
    "sin softmax softplus softsign sqrt square swish".split()
)
_ROTATIONS = frozenset({"cayley", "expm", "matrix_exp", "orth", "orthogonal", "rotation"})
_INVERSES = frozenset({"inv", "inverse", "pinv"})
_SIGNS = {
    ast.Mod: "%",
    ast.Pow: "**",
    ast.FloorDiv: "//",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
}
_REASONS: dict[type[ast.expr], str] = {
    ast.Subscript: "a factor is used whole, without entries or slices",
    ast.Tuple: "a formula has no commas outside function calls",
    ast.List: "a formula has no lists",
    ast.Compare: "a formula has no comparisons: it is the expression for phi(W) alone",
    ast.BoolOp: "a formula has no and, or and not",
    ast.IfExp: "a formula has no conditions",
    ast.Lambda: "a formula is the expression alone, without lambda",
    ast.JoinedStr: "a formula is written without quotes",
    ast.NamedExpr: "a formula has no assignments",
}


def reason(tree: ast.expr) -> str:
    """Return why an operation or a constant is refused."""
    if isinstance(tree, ast.BinOp) and type(tree.op) in _SIGNS:
        way = "; .T transposes" if isinstance(tree.op, ast.BitXor) else "; X * X squares the entries"
        way = way if isinstance(tree.op, (ast.BitXor, ast.Pow)) else ""
        return f"{_SIGNS[type(tree.op)]} is not an operation of the language, which has {OPERATIONS}{way}"
    if isinstance(tree, ast.Attribute):
        return f"a matrix has .T, but no .{tree.attr}"
    if isinstance(tree, ast.Constant):
        if isinstance(tree.value, (str, bytes)):
            return _REASONS[ast.JoinedStr]
        return f"{ast.unparse(tree)} is not a number in a formula"
    if isinstance(tree, ast.UnaryOp):
        return "a formula has no not and no ~"
    return _REASONS.get(type(tree), f"a formula has names, numbers, functions, and {OPERATIONS}")


def beside(written: Collection[str]) -> str:
    """Return a hint about lower-case names used as matrices, to follow the reason; empty without names."""
    if "x" in written:
        return "; the layer multiplies its input x by phi(W), so leave x out"
    if set(written) & _NONLINEAR:
        return f"; the nonlinearities are {', '.join(sorted(NONLINEARITIES))}"
    return "; matrices have capital names" if written else "; * multiplies by a number"


def unknown(tree: ast.Call, known: Collection[str]) -> str:
    """Return why a called object is not a function of the language."""
    if isinstance(tree.func, ast.Attribute):
        if tree.func.attr in _TRANSPOSES and not _of_library(tree.func):
            return f"the transpose is written .T, not .{tree.func.attr}(...)"
        name, shown = tree.func.attr, ast.unparse(tree.func)
        if name in known:
            return f"{shown} is written {name}(X)"
        return f"unknown function {shown}; the functions are {', '.join(sorted(known))}"
    if not isinstance(tree.func, ast.Name):
        return "only functions can be called; @ multiplies matrices"
    name = tree.func.id
    if name[0].isupper() and name not in _DIAGONALS:
        return f"{name} is a matrix, not a function; @ multiplies matrices"
    if name in _PRODUCTS:
        return f"unknown function {name}; the product of matrices is written @"
    if name in _INVERSES | _ROTATIONS:
        return f"unknown function {name}; for an orthogonal matrix use reflect(A)"
    if "norm" in name:
        return f"unknown function {name}; unit(X) scales the columns of X to norm 1"
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? The" if close else "the"
    return f"unknown function {name}; {hint} functions are {', '.join(sorted(known))}"


def translated(tree: ast.expr, known: Collection[str]) -> ast.expr:
    """Return the tree with every construct outside the language replaced by the nearest one in it."""
    found: ast.expr = _Translator(known).visit(tree)
    return found


def _of_library(tree: ast.Attribute) -> bool:
    """Return whether the dotted name begins with a module's."""
    root: ast.expr = tree
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(root, ast.Name) and root.id in _LIBRARIES


class _Translator(ast.NodeTransformer):
    def __init__(self, known: Collection[str]) -> None:
        self.known = frozenset(known)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        normalised = _normalised(node)
        if normalised is not None:
            found: ast.expr = self.visit(normalised)
            return found
        self.generic_visit(node)
        left, right = node.left, node.right
        if isinstance(node.op, ast.Pow):
            squares = isinstance(right, ast.Constant) and right.value == 2
            return trees.binary(left, ast.Mult(), left) if squares else left
        if isinstance(node.op, (ast.Div, ast.FloorDiv)):
            return self.quotient(left, right)
        if type(node.op) in _SIGNS:
            return trees.binary(left, ast.MatMult(), right)
        if isinstance(left, ast.Name) and left.id in self.known - NONLINEARITIES.keys():
            return trees.call(left.id, right)  # unit @ W
        if isinstance(left, ast.Name) and left.id == "x" and isinstance(node.op, ast.MatMult):
            return right  # y = x @ phi(W)
        if isinstance(right, ast.Name) and right.id == "x" and isinstance(node.op, ast.MatMult):
            return left  # h = phi(W) x, for columns
        return node

    def quotient(self, left: ast.expr, right: ast.expr) -> ast.expr:
        if trees.is_number(right):
            return trees.binary(left, ast.Div(), right)
        if isinstance(right, ast.Name) and right.id in ("r", "rank"):
            if isinstance(left, ast.Name) and left.id in ("s", "alpha"):
                return trees.name(names.SCALE)
            if names.SCALE not in trees.used(left):
                return trees.binary(trees.name(names.SCALE), ast.Mult(), left)
        return left

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        return node if isinstance(node.op, (ast.USub, ast.UAdd)) else node.operand

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if node.attr in _TRANSPOSES:
            return ast.Attribute(node.value, "T", ast.Load())
        return node.value

    def visit_Call(self, node: ast.Call) -> ast.expr:
        function = node.func
        if isinstance(function, ast.Attribute):
            own = [] if _of_library(function) else [self.visit(function.value)]
            name = function.attr
        elif isinstance(function, ast.Name):
            own, name = [], function.id
        else:
            own, name = [self.visit(function)], "matmul"
        given = [part for argument in node.args for part in _parts(argument) if not isinstance(part, ast.Starred)]
        arguments = own + [self.visit(argument) for argument in given]
        if name in _TRANSPOSES:
            return ast.Attribute(arguments[0], "T", ast.Load()) if arguments else trees.name("I")
        if name not in self.known and name[:1].isupper() and name not in _DIAGONALS:
            arguments, name = [trees.name(name), *arguments], "matmul"
        return self.function(name, arguments)

    def function(self, name: str, arguments: list[ast.expr]) -> ast.expr:
        close = difflib.get_close_matches(name, self.known, n=1)
        if name in self.known:
            return trees.call(name, *arguments)
        if not arguments or name in ("eye", "identity"):
            return trees.name("I")
        if name in _ELEMENTWISE:
            return trees.joined(arguments, ast.Mult())
        if name in _SUMS:
            return trees.joined(arguments, ast.Add())
        if name in _NORMALISERS:
            return trees.call("unit", arguments[0])
        if name in _DIAGONALS:
            return trees.call("diag", arguments[0])
        if name in _NONLINEAR:
            return trees.call("tanh", arguments[0])
        if name in _ROTATIONS:
            return trees.binary(trees.name("I"), ast.Add(), arguments[0])
        if name in _INVERSES:
            return _inverse(arguments[0])
        if close and name not in _PRODUCTS:
            return trees.call(close[0], *arguments)
        return trees.joined(arguments, ast.MatMult())

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(1) if node.id in ("nan", "inf") else trees.name(_nearest_name(node.id))

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):
            try:
                inner: ast.expr = self.visit(ast.parse(node.value.strip(), mode="eval").body)
            except (SyntaxError, ValueError):
                return node
            return inner
        return node if trees.is_number(node) else ast.Constant(1)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        found: ast.expr = self.visit(node.value)
        return found

    def visit_Tuple(self, node: ast.Tuple) -> ast.expr:
        return trees.joined([self.visit(part) for part in node.elts] or [trees.name("I")], ast.MatMult())

    def visit_List(self, node: ast.List) -> ast.expr:
        return trees.joined([self.visit(part) for part in node.elts] or [trees.name("I")], ast.MatMult())

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        sides = [node.left, *node.comparators]
        found: ast.expr = self.visit(max(sides, key=lambda side: len(ast.unparse(side))))
        return found

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        return trees.joined([self.visit(value) for value in node.values], ast.Add())

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        found: ast.expr = self.visit(node.body)
        return found

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        found: ast.expr = self.visit(node.body)
        return found

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.expr:
        found: ast.expr = self.visit(node.value)
        return found


def _normalised(tree: ast.BinOp) -> ast.expr | None:
    """Return d * unit(X) for d * X / norm(X), or None for another quotient."""
    if not (isinstance(tree.op, ast.Div) and isinstance(tree.right, ast.Call) and tree.right.args):
        return None
    if "norm" not in ast.unparse(tree.right.func):
        return None
    inner = ast.dump(tree.right.args[0])
    part = next((node for node in trees.expressions(tree.left) if ast.dump(node) == inner), tree.left)
    return trees.replaced(tree.left, part, trees.call("unit", part))


def _parts(tree: ast.expr) -> list[ast.expr]:
    """Return the members of a list or tuple, or any other tree by itself."""
    return list(tree.elts) if isinstance(tree, (ast.List, ast.Tuple)) else [tree]


def _inverse(tree: ast.expr) -> ast.expr:
    """Return the inverse to first order: I - X of I + X."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.left, ast.Name) and tree.left.id == "I":
        flipped = ast.Sub() if isinstance(tree.op, ast.Add) else ast.Add()
        return trees.binary(tree.left, flipped, tree.right)
    return tree


_WEIGHT = re.compile(r"W_?(0|o|orig|old|base|pre|pretrained|frozen)|Theta_?0?|weight|w")


def _nearest_name(written: str) -> str:
    """Return this language's name for a name used elsewhere."""
    if _WEIGHT.fullmatch(written):
        return "W"
    if re.fullmatch(r"(?i:delta|d)_?(W|w|weight|Theta)", written):
        return "Delta"
    if written == "bias":
        return "b"
    if written in _NONLINEAR:
        return "tanh"
    plain = re.sub(r"^[\d_]+|_+$", "", written) or "A"
    if keyword.iskeyword(plain):
        return "lam" if plain == "lambda" else f"{plain}1"
    if names.problem(plain) is None:
        return plain
    return plain.removesuffix(names.OFFSET) if plain.endswith(names.OFFSET) else f"{plain}1"
