"""Rewriting a formula for a plan: without W, with dropout, and with the formed matrices marked."""

from __future__ import annotations

from dataclasses import dataclass

from .. import names
from .. import rows as R
from ..nodes import Environment, Expression, Identity, Leaf, Planner, PlanNode, Step, Sum, W, dense
from ..rows import Rows


@dataclass(frozen=True, eq=False)
class Formed(PlanNode):
    """Plans only: the matrix is formed first, then the rows are multiplied by it."""

    forms_itself = True

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.matmul(x, dense(self.node, env))

    def __str__(self) -> str:
        return f"[{self.node}]"

    def step(self, planner: Planner) -> Step:
        return planner.by_matrix(self)[0], self

    def form_step(self, planner: Planner) -> Step:
        cost, inner = planner.form(self.node)
        return cost, Formed(inner)


@dataclass(frozen=True, eq=False)
class Dropped(PlanNode):
    """Plans only: dropout on the rows that enter an added term."""

    probability: float

    linear_map = False

    def apply(self, x: Rows, env: Environment) -> Rows:
        return self.node.apply(R.dropout(x, self.probability), env)

    # ``compact`` is the node's own, its mean under dropout. Column norms use it.

    def __str__(self) -> str:
        return f"dropout({self.node})"

    def step(self, planner: Planner) -> Step:
        cost, inner = planner.apply(self.node)
        return cost + planner.elements(planner.rows * planner.shape(self)[0]), Dropped(inner, self.probability)


def without_weight(expression: Expression) -> Expression | None:
    """Return the expression minus W if W is a term of its own and occurs once; otherwise None."""
    if not isinstance(expression, Sum) or expression.terms.count(W) != 1:
        return None
    terms = [term for term in expression.terms if term != W]
    return terms[0] if len(terms) == 1 else Sum(tuple(terms))


def with_dropout(node: Expression, probability: float, alone: bool = False) -> Expression:
    """Put dropout before every added term: one beside W itself (``alone``), or beside a term that contains W."""
    if alone or isinstance(node, Sum):
        terms = node.terms if isinstance(node, Sum) else (node,)
        # Beside W itself, a term with singular vectors of W is an added term, too.
        spectral = frozenset() if alone else frozenset(names.SPECTRAL_SHAPES)
        return Sum(
            tuple(
                with_dropout(term, probability) if _carries_weight(term, spectral) else Dropped(term, probability)
                for term in terms
            )
        )
    if node.rows_enter is None:
        return node
    children = list(node.children)
    children[node.rows_enter] = with_dropout(children[node.rows_enter], probability)
    return node.rebuilt(tuple(children))


def _carries_weight(term: Expression, spectral: frozenset[str]) -> bool:
    """Return whether the term is W reconstructed (a product with W or its subspaces) and not an addition to it."""
    if isinstance(term, Identity):  # I + A @ B before or after W
        return True
    if isinstance(term, Leaf):
        return term.name in ("W", "N") or term.name in spectral
    return term.holds_weight and any(_carries_weight(child, spectral) for child in term.children)
