"""What a rule is: it makes other formulas of one that can be read and does not work. None of them is sure to work."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from . import trees

Rule = Callable[[ast.expr], Iterator[ast.expr]]
"""Takes the tree of a formula, or of one of its parts, and yields others, the nearest first."""

RULES: list[Rule] = []
"""The rules on whole formulas, in the order in which they are tried."""


def rule(function: Rule) -> Rule:
    """Register a rule on whole formulas. The rules are tried in the order in which they are registered."""
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
