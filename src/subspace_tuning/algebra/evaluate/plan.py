"""The plan: of the equal ways to evaluate a formula, the cheapest for the sizes and the device at hand.

A plan is itself an expression, equal to the formula, whose products are grouped and in which ``Formed`` marks what is
multiplied out before it is applied to the rows: ``U @ diag(sigma) @ V.T`` is unchanged for few rows and becomes
``[U @ (diag(sigma) @ V.T)]`` for many. So a plan is applied, printed and tested like any other expression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

from ..formula import Formula
from ..narrow_form import opened
from ..nodes import Expression, W
from ..shapes import Sizes
from .cost import MULTIPLY_ADDS, cost_model
from .fuse import Fused, fuse
from .planner import CheapestSteps
from .rewrite import Dropped, with_dropout, without_weight

MOST_DOUBLINGS = 20  # of one row


class Stage(NamedTuple):
    """The evaluation up to a number of rows: ``expression``, or ``fused`` if that is cheaper and can run."""

    rows: int
    expression: Expression
    fused: Fused | None


@dataclass(frozen=True)
class Plan:
    """How one layer evaluates one formula: its stages, by increasing number of rows.

    If ``adds_to_base_output``, a stage's ``expression`` is *added* to the frozen layer's own output, because W is a
    term of its own in the formula. ``fused`` is always the whole formula, with the bias.
    """

    adds_to_base_output: bool
    stages: tuple[Stage, ...]
    keeps_nothing: bool = field(init=False)
    """Whether no stage computes something that does not depend on the rows."""

    def __post_init__(self) -> None:
        nothing = all(stage.fused is not None and stage.fused.keeps_nothing for stage in self.stages)
        object.__setattr__(self, "keeps_nothing", nothing)

    def stage(self, rows: int) -> Stage:
        """Return the expression to apply to a number of rows."""
        return next((stage for stage in self.stages if rows <= stage.rows), self.stages[-1])


@lru_cache(maxsize=1024)
def plan(
    formula: Formula,
    sizes: Sizes,
    training: bool = True,
    dropout: float = 0.0,
    device: str = "cpu",
    opaque: bool = False,
) -> Plan:
    """Return the cheapest evaluation of a formula for every number of rows.

    Args:
        formula: the formula to evaluate.
        sizes: n, m and r of the layer.
        training: count the backward pass, too, and sample what is random (see :meth:`.Expression.drawn`).
        dropout: the probability of dropping entries of the rows that enter the added terms.
        device: the type of the device, such as "cpu" or "cuda" (see :func:`.cost.cost_model`).
        opaque: W is an operator, which can be multiplied by, but not formed.
    """
    model = cost_model(device)
    expression = opened(formula.evaluated.drawn() if training and formula.has_gates else formula.evaluated)
    # Added to the frozen layer's own output, its bias would count twice.
    remainder = None if formula.names_bias else without_weight(expression)
    target = expression if remainder is None else remainder
    fused = () if dropout or opaque else _fused(expression, CheapestSteps(formula, sizes, 1, training))
    if dropout:
        target = with_dropout(target, dropout, alone=remainder is not None)
    any_rows = CheapestSteps(formula, sizes, 1, training, model, opaque=opaque)

    def stage(doublings: int) -> Stage:
        planner = replace(any_rows, rows=2**doublings)
        cost, best = planner.apply(target)
        alone = 0.0 if remainder is None else planner.apply(W)[0] + planner.elements(planner.rows * sizes.m)
        options: list[tuple[float, Fused | None]] = [(planner.fused(node), node) for node in fused]
        options += [] if dropout else planner.whole(expression)
        chosen = min([*options, (cost + alone, None)], key=lambda option: option[0])[1]
        return Stage(planner.rows, best, chosen)

    return Plan(remainder is not None, tuple(_changes(stage, 0, MOST_DOUBLINGS)))


def _changes(stage: Callable[[int], Stage], first: int, last: int) -> list[Stage]:
    """Return the last of every run of equal stages.

    The cost of each alternative is linear in the rows, so one that is cheapest at both ends is cheapest in between.
    """
    stages = {first: stage(first), last: stage(last)}
    ahead = [(first, last)]
    while ahead:
        low, high = ahead.pop()
        if high - low > 1 and stages[low][1:] != stages[high][1:]:
            middle = (low + high) // 2
            stages[middle] = stage(middle)
            ahead += [(low, middle), (middle, high)]
    known = [stages[doublings] for doublings in sorted(stages)]
    return [one for one, later in zip(known, [*known[1:], None], strict=True) if later is None or one[1:] != later[1:]]


def _fused(expression: Expression, planner: CheapestSteps) -> tuple[Fused, ...]:
    """Return the two ways to evaluate the kernel's form, or none if the expression does not have it."""
    found = fuse(expression, planner.shape)
    return () if found is None else (found, replace(found, composed=True))


def drops(formula: Formula) -> bool:
    """Return whether dropout does anything in a formula: it acts on the rows that enter added terms."""
    remainder = without_weight(formula.evaluated)
    target = with_dropout(formula.evaluated if remainder is None else remainder, 0.5, alone=remainder is not None)
    return any(isinstance(node, Dropped) for node in target.walk())


class Alternative(NamedTuple):
    """One way to evaluate a formula, and what it costs in floating point operations."""

    name: str
    expression: Expression
    cost: float


def alternatives(
    formula: Formula, sizes: Sizes, rows: int, training: bool = True, device: str = "cpu"
) -> list[Alternative]:
    """Return the ways to evaluate a formula that the planner compares, the cheapest first.

    The kernel and its form composed of torch's own operations, if the formula has that form; the best order and
    grouping of torch's products; the formula as written; and phi(W) formed as one matrix.
    """
    model = cost_model(device)
    planner = CheapestSteps(formula, sizes, rows, training, model)
    expression = formula.evaluated
    found = [
        Alternative("composed" if node.composed else "fused", node, planner.fused(node))
        for node in _fused(expression, planner)
    ]
    cost, best = planner.apply(expression)
    found.append(Alternative("planned", best, cost))
    cost, written = CheapestSteps(formula, sizes, rows, training, model, choose=False).apply(expression)
    if written != best:
        found.append(Alternative("as written", written, cost))
    found += [Alternative("formed", formed, cost) for cost, formed in planner.whole(expression)]
    return sorted(found, key=lambda one: one.cost)


def cost(
    expression: Expression, formula: Formula, sizes: Sizes, rows: int, training: bool = True, device: str = "cpu"
) -> float:
    """Return the cost of a planned expression for a number of rows, in floating-point operations."""
    return CheapestSteps(formula, sizes, rows, training, cost_model(device), choose=False).apply(expression)[0]


def multiply_adds(node: Expression, formula: Formula, sizes: Sizes, rows: int, training: bool = True) -> float:
    """Return the number of multiply-adds of an alternative for a number of rows (see :class:`Alternative`)."""
    planner = CheapestSteps(formula, sizes, rows, training, MULTIPLY_ADDS, choose=False)
    if not isinstance(node, Fused):
        return planner.apply(node)[0]
    if node.on_weight:
        return planner.fused(node)
    return planner.form(node.weight)[0] + planner.product(rows, *planner.shape(W), True, planner.trains(node.weight))
