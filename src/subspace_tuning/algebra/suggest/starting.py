"""Replacements for a formula that is not W at its start, or cannot leave it.

F is the formula, X is any part of it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from ..nodes import NONLINEARITIES
from . import trees
from .rules import part, rule


@part
def without_number(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite 2 * X -> X, and -X -> X."""
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
        if trees.is_number(node.left):
            yield node.right
        if trees.is_number(node.right):
            yield node.left


@rule
def gates(tree: ast.expr) -> Iterator[ast.expr]:
    """Rewrite gate(X) * W -> W + gate(L) * Delta: at the start the gates are partly open and their entries zero."""
    if any(isinstance(node, ast.Name) and node.id == "gate" for node in ast.walk(tree)):
        gated = trees.call("gate", trees.name("L"))
        yield trees.binary(trees.name("W"), ast.Add(), trees.binary(gated, ast.Mult(), trees.name("Delta")))


@part
def flowing(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite X @ relu(Y) -> X @ relu @ Y, and relu(X) -> X."""
    factors = trees.chain(node)
    for index, bent in enumerate(factors[1:], start=1):
        if isinstance(bent, ast.Call) and trees.is_call(bent, *NONLINEARITIES):
            yield trees.joined([*factors[:index], bent.func, *bent.args, *factors[index + 1 :]], ast.MatMult())
    if isinstance(node, ast.Call) and trees.is_call(node, *NONLINEARITIES) and node.args:
        yield node.args[0]


@part
def norms(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite d * unit(X), D @ unit(X) and unit(X) -> unit(X) @ D."""
    factors = trees.chain(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and trees.is_call(node.right, "unit"):
        yield trees.binary(node.right, ast.MatMult(), trees.name(trees.fresh(node, "D")))
    for index, factor in enumerate(factors):
        if trees.is_call(factor, "unit"):
            diagonal = trees.name(trees.fresh(node, "D"))
            yield trees.joined([factor, *factors[:index], *factors[index + 1 :]], ast.MatMult())
            yield trees.joined([*factors[: index + 1], diagonal, *factors[index + 1 :]], ast.MatMult())


@part
def near_identity(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite X @ W -> (I + X) @ W; with factors of one stem, B1 @ B2 @ W -> (I + B1) @ (I + B2) @ W."""
    factors = trees.chain(node)
    place = next((index for index, one in enumerate(factors) if "W" in trees.used(one)), None)
    if len(factors) < 2 or place is None:
        return
    for single in (True, False):
        sides = [_near(side, single) for side in (factors[:place], factors[place + 1 :])]
        yield trees.joined([*sides[0], factors[place], *sides[1]], ast.MatMult())


@part
def near_values(node: ast.expr) -> Iterator[ast.expr]:
    """Rewrite U @ S @ V.T -> U @ diag(sigma) @ V.T, and U @ X @ V.T -> U @ (S + X) @ V.T."""
    factors = trees.chain(node)
    if ast.unparse(node) == "U @ S @ V.T":
        yield trees.renamed(node, "S", trees.call("diag", trees.name("sigma")))
    if len(factors) == 3 and [*trees.used(factors[0]), *trees.used(factors[2])] in (["U", "V"], ["U_r", "V_r"]):
        values = trees.name("S" if "U" in trees.used(factors[0]) else "S_r")
        yield trees.joined([factors[0], trees.binary(values, ast.Add(), factors[1]), factors[2]], ast.MatMult())


@rule
def beside_weight(tree: ast.expr) -> Iterator[ast.expr]:
    """Rewrite F -> W + F, and F @ W."""
    yield trees.binary(trees.name("W"), ast.Add(), tree)
    if "W" not in trees.used(tree):
        yield trees.binary(tree, ast.MatMult(), trees.name("W"))


@rule
def something_trained(tree: ast.expr) -> Iterator[ast.expr]:
    """Rewrite W -> D1 @ W, and F -> W + D1 @ F."""
    if not trees.trained(tree):
        if trees.used(tree) == ["W"] and not any(isinstance(node, ast.Call) for node in ast.walk(tree)):
            yield trees.binary(trees.name("D1"), ast.MatMult(), trees.name("W"))
        scaled = trees.binary(trees.name("D1"), ast.MatMult(), tree)
        yield scaled
        yield trees.binary(trees.name("W"), ast.Add(), scaled)


def _near(factors: list[ast.expr], single: bool) -> list[ast.expr]:
    """Return I + the product of factors in a list; I + each if they are single names with one stem."""
    stems = {re.sub(r"\d+", "", one.id) if isinstance(one, ast.Name) else "" for one in factors}
    apart = single and len(factors) > 1 and len(stems) == 1 and "" not in stems
    parts = factors if apart else [trees.joined(factors, ast.MatMult())] if factors else []
    return [trees.binary(trees.name("I"), ast.Add(), one) for one in parts]
