"""The interface between a node's cost rules and the planner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from .base import Expression

Step: TypeAlias = "tuple[float, Expression]"
"""The cost of a way to evaluate, and the expression that does it."""


class Planner(Protocol):
    """The planner as seen by a node's cost rules. It works for one layer and one number of rows.

    Costs are in floating-point operations, including the gradient when training.
    """

    @property
    def rows(self) -> int: ...
    @property
    def choose(self) -> bool: ...  # False: cost the expression as written

    def shape(self, node: Expression) -> tuple[int, int]: ...
    def trains(self, node: Expression) -> bool: ...
    def apply(self, node: Expression) -> Step: ...  # the cheapest way to multiply the rows by a node
    def form(self, node: Expression) -> Step: ...  # the cheapest way to form its matrix
    def by_matrix(self, node: Expression) -> Step: ...  # form its matrix, then multiply the rows by it
    def chain(self, factors: tuple[Expression, ...]) -> Step: ...
    def formed_chain(self, factors: tuple[Expression, ...]) -> Step: ...
    def product(self, rows: int, middle: int, columns: int, left: bool, right: bool) -> float: ...
    def elements(self, count: int, gradients: int = 1) -> float: ...
