"""What a process does is the same in every process: nothing depends on the order of a set."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

import pytest

from .test_rings import FILES

UNORDERED = {"all", "any", "frozenset", "len", "max", "min", "set", "sorted", "sum"}


def test_nothing_depends_on_the_order_of_a_set() -> None:
    """It differs from process to process: so would messages, and the order in which processes call each other."""
    for path in FILES:
        for scope in ast.walk(ast.parse(path.read_text())):
            if isinstance(scope, ast.FunctionDef):
                assert not list(_iterated_sets(scope)), path


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("x = {1} | y\nfor z in x: pass", 1),
        ("x: set[int] = f()\nlist(x)", 1),
        ("[a for a in set(b) - c]", 1),
        ("next(iter({a for a in b}))", 1),
        ("sorted(a for a in {*b})", 0),
        ("any(a for a in {*b})", 0),
        ("{a for a in {*b}}", 0),
        ("for z in sorted({1} | y): pass", 0),
        ("x = {1: 2}\nfor z in x: pass", 0),
    ],
)
def test_an_iterated_set_is_recognised(line: str, count: int) -> None:
    assert len(list(_iterated_sets(ast.parse(line)))) == count


def _iterated_sets(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield loops over what is a set by its expression, or by that of the variable's assignment."""
    nodes = list(ast.walk(scope))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Assign) and _is_set(node.value, names):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, (ast.AnnAssign, ast.arg)) and "set[" in ast.unparse(node.annotation or node):
            names |= {node.arg} if isinstance(node, ast.arg) else {ast.unparse(node.target)}
    free = [arg for node in nodes if _calls(node, UNORDERED) for arg in node.args]  # type: ignore[attr-defined]
    for node in nodes:
        looped = [node.iter] if isinstance(node, ast.For) else []
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.DictComp)) and node not in free:
            looped = [generator.iter for generator in node.generators]
        if _calls(node, {"enumerate", "iter", "list", "next", "tuple", "zip"}):
            looped = node.args  # type: ignore[attr-defined]
        yield from (node for one in looped if _is_set(one, names))


def _is_set(node: ast.AST, names: Collection[str]) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.BitOr, ast.BitXor, ast.Sub)):
        return _is_set(node.left, names) or _is_set(node.right, names)
    if isinstance(node, ast.IfExp):
        return _is_set(node.body, names) or _is_set(node.orelse, names)
    known = isinstance(node, ast.Name) and node.id in names
    return known or isinstance(node, (ast.Set, ast.SetComp)) or _calls(node, {"frozenset", "set"})


def _calls(node: ast.AST, functions: Collection[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions
