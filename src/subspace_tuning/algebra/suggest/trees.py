"""Helpers for syntax trees of formulas."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

from .. import names


def name(text: str) -> ast.expr:
    """Return the tree of a name."""
    return ast.Name(text, ast.Load())


def call(function: str, *arguments: ast.expr) -> ast.expr:
    """Return the tree of a call."""
    return ast.Call(name(function), list(arguments), [])


def binary(left: ast.expr, operator: ast.operator, right: ast.expr) -> ast.expr:
    """Return the tree of ``left operator right``."""
    return ast.BinOp(left, operator, right)


def joined(parts: list[ast.expr], operator: ast.operator) -> ast.expr:
    """Return one or more parts joined from left to right."""
    whole = parts[0]
    for part in parts[1:]:
        whole = binary(whole, operator, part)
    return whole


def transposed(tree: ast.expr) -> ast.expr:
    """Return the tree of ``tree.T``, or of X if the tree is ``X.T``."""
    if isinstance(tree, ast.Attribute) and tree.attr == "T":
        return tree.value
    return ast.Attribute(tree, "T", ast.Load())


def chain(tree: ast.expr, operator: type[ast.operator] = ast.MatMult) -> list[ast.expr]:
    """Return the operands of a chain of one operator; the tree by itself if it is not one."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, operator):
        return [*chain(tree.left, operator), *chain(tree.right, operator)]
    return [tree]


def used(tree: ast.AST) -> list[str]:
    """Return the names in a tree except those of functions, in reading order, with repetitions."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called]
    return [node.id for node in sorted(found, key=lambda node: getattr(node, "col_offset", 0))]


def trained(tree: ast.AST) -> list[str]:
    """Return the names of the trainable factors in a tree, without repetitions."""
    return [one for one in dict.fromkeys(used(tree)) if not names.is_frozen(one) and one != "I"]


def is_matrix(tree: ast.AST) -> bool:
    """Return whether a tree is a matrix, as far as its names show."""
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
        return True
    if isinstance(tree, ast.Name):
        return tree.id[0].isupper() or tree.id == "rest"
    return any(is_matrix(child) for child in ast.iter_child_nodes(tree) if isinstance(child, ast.expr))


def is_number(tree: ast.AST) -> bool:
    """Return whether a tree is a literal number."""
    return isinstance(tree, ast.Constant) and type(tree.value) in (int, float)


def is_one(tree: ast.AST) -> bool:
    """Return whether a tree is the number 1."""
    return isinstance(tree, ast.Constant) and type(tree.value) in (int, float) and tree.value == 1


def fresh(tree: ast.AST, wanted: str) -> str:
    """Return a name that the tree does not use: the wanted one, or it with a digit."""
    taken = set(used(tree))
    taken |= {stem for one in taken if (stem := names.started(one)) is not None}
    digits = (f"{wanted.rstrip('0123456789')}{digit}" for digit in range(1, 100))
    return next(one for one in (wanted, *digits) if one not in taken)


def replaced(tree: ast.expr, old: ast.AST, new: ast.expr) -> ast.expr:
    """Return a copy of a tree with one node, found by identity, replaced by another."""
    if tree is old:
        return new
    made = copy.copy(tree)
    for field, value in ast.iter_fields(tree):
        if isinstance(value, list):
            setattr(made, field, [replaced(item, old, new) if isinstance(item, ast.expr) else item for item in value])
        elif isinstance(value, ast.expr):
            setattr(made, field, replaced(value, old, new))
    return made


def renamed(tree: ast.expr, old: str, new: ast.expr) -> ast.expr:
    """Return a copy of a tree with every occurrence of a name replaced by another tree."""
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.Name) and node.id == old:
            tree = replaced(tree, node, new)
    return tree


def expressions(tree: ast.expr) -> Iterator[ast.expr]:
    """Yield the operands and operations of a tree from the outside in, without names of functions."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and id(node) not in called:
            yield node


def matrices(node: ast.BinOp) -> list[ast.expr]:
    """Return the sides of an operation that are matrices."""
    return [side for side in (node.left, node.right) if is_matrix(side)]


def is_call(tree: ast.expr, *functions: str) -> bool:
    """Return whether the tree is a call of one of the functions."""
    return isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in functions
