"""Replacements for a formula whose names and shapes do not fit.

F is the formula, X and Y are any parts of it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from .. import names
from . import trees
from .rules import part, rule

# Names of the wrong kind


@rule
def frozen_start(tree: ast.expr) -> Iterator[ast.expr]:
    """Rewrite A0 without A -> A."""
    found = dict.fromkeys(trees.used(tree))
    for one in found:
        stem = names.started(one)
        if stem is not None and stem not in found:
            yield trees.renamed(tree, one, trees.name(stem))


@rule
def spectral_name(tree: ast.expr) -> Iterator[ast.expr]:
    """Rewrite U_q -> U_r; Sigma between U and V -> diag(sigma)."""
    known = names.SPECTRAL_SHAPES | names.CHOSEN_SHAPES
    for one in dict.fromkeys(trees.used(tree)):
        if one[:2] in ("U_", "S_", "V_") and one not in known:
            yield trees.renamed(tree, one, trees.name(f"{one[0]}_r"))
        if one in ("Sigma", "Lam", "Lambda"):
            yield trees.renamed(tree, one, trees.call("diag", trees.name("sigma")))


@part
def number_in_front(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite s @ X -> s * X."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) and len(trees.matrices(node)) == 1:
        yield trees.binary(node.left, ast.Mult(), node.right)


@rule
def capitals(tree: ast.expr) -> Iterator[ast.expr]:
    """Rewrite a @ b -> A @ B, for every operand of @ or .T."""
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
    """Rewrite diag(A) and diag(s) -> diag(d); affine(X, s) -> affine(X, d)."""
    if isinstance(node, ast.Call) and trees.is_call(node, "diag", "affine") and node.args:
        vector = node.args[-1]
        if isinstance(vector, ast.Name) and (trees.is_matrix(vector) or vector.id == names.SCALE):
            name = {"Sigma": "sigma", "S": "sigma"}.get(vector.id, trees.fresh(node, "d"))
            yield ast.Call(node.func, [*node.args[:-1], trees.name(name)], [])


@part
def own_bias(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite affine(C, b) without W in it -> affine(C, c): b is the layer's own."""
    if isinstance(node, ast.Call) and trees.is_call(node, "affine") and node.args and "W" not in trees.used(node):
        yield ast.Call(node.func, [node.args[0], trees.name(trees.fresh(node, "c"))], [])


@rule
def mask_in_front(tree: ast.expr) -> Iterator[ast.expr]:
    """Rewrite M * X -> G * X, a dense factor."""
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
    """Rewrite D1 @ W @ D1 -> D1 @ W @ D2: a name has one shape."""
    for one in trees.trained(tree):
        places = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == one]
        if len(places) > 1:
            last = max(places, key=lambda node: node.col_offset)
            yield trees.replaced(tree, last, trees.name(trees.fresh(tree, f"{one.rstrip('0123456789')}2")))


# Shapes


@part
def one_and_matrix(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite Y * (1 + X) -> Y + Y * X."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for inner, other in ((node.right, node.left), (node.left, node.right)):
            if isinstance(inner, ast.BinOp) and isinstance(inner.op, (ast.Add, ast.Sub)) and trees.is_one(inner.left):
                yield trees.binary(other, inner.op, trees.binary(other, ast.Mult(), inner.right))
            if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Add) and trees.is_one(inner.right):
                yield trees.binary(other, inner.op, trees.binary(other, ast.Mult(), inner.left))


@part
def identity_for_one(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite 1 + X -> I + X."""
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
    """Rewrite F + b -> F, since the layer adds its bias; F + d -> affine(F, b + d), a trained bias."""
    terms = trees.chain(tree, ast.Add)
    if isinstance(terms[0], ast.Call) and trees.is_call(terms[0], "affine") and len(terms) == len(terms[0].args) == 2:
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
    """Rewrite X * Y -> X @ Y, as for D * W."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and len(trees.matrices(node)) == 2:
        yield trees.binary(node.left, ast.MatMult(), node.right)


@rule
def other_side(tree: ast.expr) -> Iterator[ast.expr]:
    """Rewrite F.T -> F, with the transpose moved to the factors; or only W.T -> W."""
    yield _turned(tree)
    for node in trees.expressions(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "W":
            yield trees.replaced(tree, node, node.value)


@part
def fewer_factors(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite kron(A, B, C) -> kron(A, B), as for a linear layer; unit(X, dim) -> unit(X)."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        most = {"kron": 2, "affine": 2}.get(node.func.id, 1)
        if len(node.args) > most or node.keywords:
            yield ast.Call(node.func, node.args[:most], [])


@part
def weight_once(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite W @ X @ W -> X @ W."""
    factors = trees.chain(node)
    places = [index for index, factor in enumerate(factors) if isinstance(factor, ast.Name) and factor.id == "W"]
    if len(places) > 1:
        yield trees.joined([factor for index, factor in enumerate(factors) if index not in places[:-1]], ast.MatMult())


def _turned(tree: ast.expr) -> ast.expr:
    """Return the transpose of a tree, moved to its names."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.MatMult):
        return trees.binary(_turned(tree.right), tree.op, _turned(tree.left))
    if isinstance(tree, ast.BinOp):
        return trees.binary(_turned(tree.left), tree.op, _turned(tree.right))
    if isinstance(tree, ast.UnaryOp):
        return ast.UnaryOp(tree.op, _turned(tree.operand))
    return trees.transposed(tree) if trees.is_matrix(tree) else tree


def _last(tree: ast.expr) -> ast.expr:
    """Return the last operand of a product."""
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, (ast.MatMult, ast.Mult)):
        tree = tree.right
    return tree


def _first(tree: ast.expr) -> ast.expr:
    """Return the first operand of a product."""
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, (ast.MatMult, ast.Mult)):
        tree = tree.left
    return tree
