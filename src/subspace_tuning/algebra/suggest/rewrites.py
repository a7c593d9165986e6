"""What to write instead of a formula that can be read and does not fit together, or is not W at its start.

Each rule takes the whole tree and yields other trees, the nearest first. None of them is sure to work: they are tried.
Two letters stand in the comments for any part: F of the formula, X and Y of an operation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from .. import names
from ..nodes import NONLINEARITIES
from . import trees

Rule = Callable[[ast.expr], Iterator[ast.expr]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Register a rule on whole formulas. The rules are tried in the order of this file."""
    RULES.append(function)
    return function


def part(function: Rule) -> Rule:
    """Register a rule on parts: it yields what to write in the place of one operand or operation."""

    def everywhere(tree: ast.expr) -> Iterator[ast.expr]:
        for node in trees.expressions(tree):
            for new in function(node):
                yield trees.replaced(tree, node, new)

    RULES.append(everywhere)
    return function


# Names of another kind


@rule
def frozen_start(tree: ast.expr) -> Iterator[ast.expr]:
    """A0 without A -> A."""
    found = set(trees.used(tree))
    for one in found:
        stem = names.started(one)
        if stem is not None and stem not in found:
            yield trees.renamed(tree, one, trees.name(stem))


@rule
def spectral_name(tree: ast.expr) -> Iterator[ast.expr]:
    """U_q -> U_r; Sigma between U and V -> diag(sigma)."""
    known = names.SPECTRAL_SHAPES | names.CHOSEN_SHAPES
    for one in dict.fromkeys(trees.used(tree)):
        if one[:2] in ("U_", "S_", "V_") and one not in known:
            yield trees.renamed(tree, one, trees.name(f"{one[0]}_r"))
        if one in ("Sigma", "Lam", "Lambda"):
            yield trees.renamed(tree, one, trees.call("diag", trees.name("sigma")))


@part
def number_in_front(node: ast.expr) -> Iterator[ast.expr]:
    """s @ X -> s * X."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) and len(_matrices(node)) == 1:
        yield trees.binary(node.left, ast.Mult(), node.right)


@rule
def capitals(tree: ast.expr) -> Iterator[ast.expr]:
    """a @ b -> A @ B, for whatever stands beside @ or in front of .T."""
    beside: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            beside += [_last(node.left), _first(node.right)]
        if isinstance(node, ast.Attribute):
            beside.append(node.value)
    for one in dict.fromkeys(node.id for node in beside if isinstance(node, ast.Name) and not trees.is_matrix(node)):
        if one != names.SCALE:
            tree = trees.renamed(tree, one, trees.name(trees.fresh(tree, one.capitalize())))
    yield tree


@part
def vector_name(node: ast.expr) -> Iterator[ast.expr]:
    """diag(A) and diag(s) -> diag(d); affine(X, s) -> affine(X, d)."""
    if isinstance(node, ast.Call) and _is_call(node, "diag", "affine") and node.args:
        vector = node.args[-1]
        if isinstance(vector, ast.Name) and (trees.is_matrix(vector) or vector.id == names.SCALE):
            name = {"Sigma": "sigma", "S": "sigma"}.get(vector.id, trees.fresh(node, "d"))
            yield ast.Call(node.func, [*node.args[:-1], trees.name(name)], [])


@part
def own_bias(node: ast.expr) -> Iterator[ast.expr]:
    """affine(C, b) without W in it -> affine(C, c): b is the layer's own."""
    if isinstance(node, ast.Call) and _is_call(node, "affine") and node.args and "W" not in trees.used(node):
        yield ast.Call(node.func, [node.args[0], trees.name(trees.fresh(node, "c"))], [])


@rule
def mask_in_front(tree: ast.expr) -> Iterator[ast.expr]:
    """M * X -> G * X, a dense factor."""
    for one in dict.fromkeys(trees.used(tree)):
        if names.is_mask(one):
            for node in trees.expressions(tree):
                first = trees.chain(node)[0]
                if len(trees.chain(node)) > 1 and isinstance(first, ast.BinOp) and one in trees.used(first.left):
                    entries = trees.joined([first.right, *trees.chain(node)[1:]], ast.MatMult())
                    grouped = trees.binary(trees.name(trees.fresh(tree, "G")), ast.Mult(), entries)
                    yield trees.replaced(tree, node, grouped)
            if "W" in trees.used(tree) and set(trees.used(tree)) <= {"W", one}:
                entries = trees.binary(trees.name("G"), ast.Mult(), trees.name("W"))
                yield trees.binary(trees.name("W"), ast.Add(), entries)
            yield trees.renamed(tree, one, trees.name(trees.fresh(tree, "G")))


@rule
def second_name(tree: ast.expr) -> Iterator[ast.expr]:
    """D1 @ W @ D1 -> D1 @ W @ D2: a name has one shape."""
    for one in trees.trained(tree):
        places = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == one]
        if len(places) > 1:
            last = max(places, key=lambda node: node.col_offset)
            yield trees.replaced(tree, last, trees.name(trees.fresh(tree, f"{one.rstrip('0123456789')}2")))


# Shapes


@part
def one_and_matrix(node: ast.expr) -> Iterator[ast.expr]:
    """Y * (1 + X) -> Y + Y * X."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for inner, other in ((node.right, node.left), (node.left, node.right)):
            if isinstance(inner, ast.BinOp) and isinstance(inner.op, (ast.Add, ast.Sub)) and trees.is_one(inner.left):
                yield trees.binary(other, inner.op, trees.binary(other, ast.Mult(), inner.right))
            if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Add) and trees.is_one(inner.right):
                yield trees.binary(other, inner.op, trees.binary(other, ast.Mult(), inner.left))


@part
def identity_for_one(node: ast.expr) -> Iterator[ast.expr]:
    """1 + X -> I + X."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
        if trees.is_number(node.left) and trees.is_matrix(node.right):
            one = trees.name("I") if trees.is_one(node.left) else trees.binary(node.left, ast.Mult(), trees.name("I"))
            yield trees.binary(one, node.op, node.right)
        if trees.is_number(node.right) and trees.is_matrix(node.left):
            one = trees.name("I") if trees.is_one(node.right) else trees.binary(node.right, ast.Mult(), trees.name("I"))
            yield trees.binary(node.left, node.op, one)
            yield node.left
        if trees.is_number(node.left):
            yield node.right


@rule
def bias_beside(tree: ast.expr) -> Iterator[ast.expr]:
    """F + b -> F, to which the layer adds its bias; F + d -> affine(F, b + d), a trained bias."""
    terms = trees.chain(tree, ast.Add)
    if isinstance(terms[0], ast.Call) and _is_call(terms[0], "affine") and len(terms) == len(terms[0].args) == 2:
        yield trees.call("affine", terms[0].args[0], trees.binary(terms[0].args[1], ast.Add(), terms[1]))
    vectors = [term for term in terms if not trees.is_matrix(term) and not trees.is_number(term)]
    matrices = [term for term in terms if trees.is_matrix(term)]
    if vectors and matrices:
        whole = trees.joined(matrices, ast.Add())
        own = [term for term in vectors if not (isinstance(term, ast.Name) and term.id in ("b", names.SCALE))]
        if own:
            yield trees.call("affine", whole, trees.joined([trees.name("b"), *own], ast.Add()))
        elif trees.trained(whole):
            yield whole
        else:
            yield trees.call("affine", whole, trees.binary(trees.name("b"), ast.Add(), trees.name("delta")))


@part
def product_for_entries(node: ast.expr) -> Iterator[ast.expr]:
    """X * Y -> X @ Y, as for D * W."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and len(_matrices(node)) == 2:
        yield trees.binary(node.left, ast.MatMult(), node.right)


@rule
def other_side(tree: ast.expr) -> Iterator[ast.expr]:
    """F.T -> F, with the transpose carried to the factors; or W.T -> W alone."""
    yield _turned(tree)
    for node in trees.expressions(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "W":
            yield trees.replaced(tree, node, node.value)


@part
def fewer_factors(node: ast.expr) -> Iterator[ast.expr]:
    """kron(A, B, C) -> kron(A, B), as for a linear layer; unit(X, dim) -> unit(X)."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        most = {"kron": 2, "affine": 2}.get(node.func.id, 1)
        if len(node.args) > most or node.keywords:
            yield ast.Call(node.func, node.args[:most], [])


@part
def weight_once(node: ast.expr) -> Iterator[ast.expr]:
    """W @ X @ W -> X @ W."""
    factors = trees.chain(node)
    places = [index for index, factor in enumerate(factors) if isinstance(factor, ast.Name) and factor.id == "W"]
    if len(places) > 1:
        yield trees.joined([factor for index, factor in enumerate(factors) if index not in places[:-1]], ast.MatMult())


# Starts


@part
def without_number(node: ast.expr) -> Iterator[ast.expr]:
    """2 * X -> X, and -X -> X."""
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
        if trees.is_number(node.left):
            yield node.right
        if trees.is_number(node.right):
            yield node.left


@rule
def gates(tree: ast.expr) -> Iterator[ast.expr]:
    """gate(X) * W -> W + gate(L) * Delta: gates are open in part at the start, entries behind them zero."""
    if any(isinstance(node, ast.Name) and node.id == "gate" for node in ast.walk(tree)):
        gated = trees.call("gate", trees.name("L"))
        yield trees.binary(trees.name("W"), ast.Add(), trees.binary(gated, ast.Mult(), trees.name("Delta")))


@part
def flowing(node: ast.expr) -> Iterator[ast.expr]:
    """X @ relu(Y) -> X @ relu @ Y, and relu(X) -> X."""
    factors = trees.chain(node)
    for index, bent in enumerate(factors[1:], start=1):
        if isinstance(bent, ast.Call) and _is_call(bent, *NONLINEARITIES):
            yield trees.joined([*factors[:index], bent.func, *bent.args, *factors[index + 1 :]], ast.MatMult())
    if isinstance(node, ast.Call) and _is_call(node, *NONLINEARITIES) and node.args:
        yield node.args[0]


@part
def norms(node: ast.expr) -> Iterator[ast.expr]:
    """d * unit(X), D @ unit(X) and unit(X) -> unit(X) @ D."""
    factors = trees.chain(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and _is_call(node.right, "unit"):
        yield trees.binary(node.right, ast.MatMult(), trees.name(trees.fresh(node, "D")))
    for index, factor in enumerate(factors):
        if _is_call(factor, "unit"):
            diagonal = trees.name(trees.fresh(node, "D"))
            yield trees.joined([factor, *factors[:index], *factors[index + 1 :]], ast.MatMult())
            yield trees.joined([*factors[: index + 1], diagonal, *factors[index + 1 :]], ast.MatMult())


@part
def near_identity(node: ast.expr) -> Iterator[ast.expr]:
    """X @ W -> (I + X) @ W; with factors of one stem, B1 @ B2 @ W -> (I + B1) @ (I + B2) @ W."""
    factors = trees.chain(node)
    place = next((index for index, one in enumerate(factors) if "W" in trees.used(one)), None)
    if len(factors) < 2 or place is None:
        return
    for single in (True, False):
        sides = [_near(side, single) for side in (factors[:place], factors[place + 1 :])]
        yield trees.joined([*sides[0], factors[place], *sides[1]], ast.MatMult())


@part
def near_values(node: ast.expr) -> Iterator[ast.expr]:
    """U @ S @ V.T -> U @ diag(sigma) @ V.T, and U @ X @ V.T -> U @ (S + X) @ V.T."""
    factors = trees.chain(node)
    if ast.unparse(node) == "U @ S @ V.T":
        yield trees.renamed(node, "S", trees.call("diag", trees.name("sigma")))
    if len(factors) == 3 and [*trees.used(factors[0]), *trees.used(factors[2])] in (["U", "V"], ["U_r", "V_r"]):
        values = trees.name("S" if "U" in trees.used(factors[0]) else "S_r")
        yield trees.joined([factors[0], trees.binary(values, ast.Add(), factors[1]), factors[2]], ast.MatMult())


@rule
def beside_weight(tree: ast.expr) -> Iterator[ast.expr]:
    """F -> W + F, and F @ W."""
    yield trees.binary(trees.name("W"), ast.Add(), tree)
    if "W" not in trees.used(tree):
        yield trees.binary(tree, ast.MatMult(), trees.name("W"))


@rule
def something_trained(tree: ast.expr) -> Iterator[ast.expr]:
    """W -> D1 @ W, and F -> W + D1 @ F."""
    if not trees.trained(tree):
        if trees.used(tree) == ["W"] and not any(isinstance(node, ast.Call) for node in ast.walk(tree)):
            yield trees.binary(trees.name("D1"), ast.MatMult(), trees.name("W"))
        scaled = trees.binary(trees.name("D1"), ast.MatMult(), tree)
        yield scaled
        yield trees.binary(trees.name("W"), ast.Add(), scaled)


def _matrices(node: ast.BinOp) -> list[ast.expr]:
    """Return those sides of an operation that stand for matrices."""
    return [side for side in (node.left, node.right) if trees.is_matrix(side)]


def _is_call(tree: ast.expr, *functions: str) -> bool:
    """Whether the tree is a call of one of the functions."""
    return isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in functions


def _near(factors: list[ast.expr], single: bool) -> list[ast.expr]:
    """Return I + the product of factors in a list; I + each of them if they are single and share their name's stem."""
    stems = {re.sub(r"\d+", "", one.id) if isinstance(one, ast.Name) else "" for one in factors}
    apart = single and len(factors) > 1 and len(stems) == 1 and "" not in stems
    parts = factors if apart else [trees.joined(factors, ast.MatMult())] if factors else []
    return [trees.binary(trees.name("I"), ast.Add(), one) for one in parts]


def _turned(tree: ast.expr) -> ast.expr:
    """Return the transpose of a tree, carried to its names."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.MatMult):
        return trees.binary(_turned(tree.right), tree.op, _turned(tree.left))
    if isinstance(tree, ast.BinOp):
        return trees.binary(_turned(tree.left), tree.op, _turned(tree.right))
    if isinstance(tree, ast.UnaryOp):
        return ast.UnaryOp(tree.op, _turned(tree.operand))
    return trees.transposed(tree) if trees.is_matrix(tree) else tree


def _last(tree: ast.expr) -> ast.expr:
    """Return the operand that stands last in a product."""
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, (ast.MatMult, ast.Mult)):
        tree = tree.right
    return tree


def _first(tree: ast.expr) -> ast.expr:
    """Return the operand that stands first in a product."""
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, (ast.MatMult, ast.Mult)):
        tree = tree.left
    return tree
