"""Rules that turn a readable formula that does not work into others, which may or may not work."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from . import trees

Rule = Callable[[ast.expr], Iterator[ast.expr]]
"""Takes the tree of a formula or of a part, and yields others, the nearest first."""

RULES: list[Rule] = []
"""The rules on whole formulas, in the order in which they are tried."""


def rule(function: Rule) -> Rule:
    """Register a rule on whole formulas. The rules are tried in the order in which they are registered."""
    RULES.append(function)
    return function


def part(function: Rule) -> Rule:
    """Register a rule on parts: it yields replacements for one operand or operation."""

    def everywhere(tree: ast.expr) -> Iterator[ast.expr]:
        for node in trees.expressions(tree):
            for new in function(node):
                yield trees.replaced(tree, node, new)

    RULES.append(everywhere)
    return function
