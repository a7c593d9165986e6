"""Explanations of formulas from their form: factors, count, relatives, cost, and redundant factors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..algebra import Formula, Sizes, alternatives, names
from ..algebra.evaluate import cost, multiply_adds
from ..algebra.latex import latex
from ..algebra.nodes import Activation, W
from ..algebra.reduce import Reduction, reductions
from ..errors import SubspaceError
from .checks import start_problem
from .inclusions import Inclusion, contained_in, containing, same_form
from .method import Method
from .registry import from_formula, get
from .schedules import SCHEDULES

SHAPE, ROWS, RANK = (768, 768), 512, 8
"""The default sizes: one matrix of a base-sized encoder, and the tokens of a batch."""
_WINDOW = 3
_LARGEST = 2**31

_FROZEN = {
    "W": "the frozen weight",
    "b": "the layer's bias",
    "N": "the layer's normalisation",
    "s": "the scale alpha / r",
}


@dataclass(frozen=True)
class Part:
    """A tensor of a formula, with its shape in symbols and in numbers.

    For a trained factor, ``start`` is its start ("" if unknown), and ``offset`` says whether its stored parameter is
    the offset from there. For a frozen tensor, ``meaning`` describes it.
    """

    name: str
    shape: tuple[str, ...]
    size: tuple[int, ...]
    trained: bool
    start: str = ""
    offset: bool = False
    meaning: str = ""


@dataclass(frozen=True)
class Cost:
    """The planned evaluation of one training step on a number of rows.

    ``way`` and ``evaluation`` are those of :class:`subspace_tuning.algebra.Alternative`. Costs are the planner's
    estimates, relative to the frozen layer's own step and to LoRA's at the same rank. ``multiply_adds`` counts those
    per row beyond the frozen layer's own, including the backward pass; it is negative if phi(W) takes fewer.
    """

    rows: int
    way: str
    evaluation: str
    beside_frozen: float
    beside_lora: float
    multiply_adds: float
    lora_multiply_adds: float
    trained_beside_lora: float


@dataclass(frozen=True)
class Advice:
    """Redundant factors, whose values another factor can absorb without restricting phi(W).

    The formula ``before``, with ``kept`` at ``value``, is ``after``. ``serves`` says what needs the factors anyway, or
    is "".
    """

    before: str
    gone: tuple[str, ...]
    kept: str
    value: str
    after: str
    trained_before: int
    trained_after: int
    serves: str


@dataclass(frozen=True)
class InModel:
    """What a method trains in a model: ``shapes`` holds n, m and the number of matrices of each size."""

    matrices: int
    trainable: int
    total: int
    per_mille: float
    shapes: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Explanation:
    """An explanation of a formula. ``str`` renders it in 80 columns.

    ``problem`` is the problem with its start, or "". ``count`` is the number of trained parameters per matrix as a
    polynomial, ``trained`` its value at ``n``, ``m`` and ``rank``. ``merges`` begins with yes or no.
    """

    name: str
    problem: str
    formula: str
    latex: str
    category: str
    merges: str
    convolution: str
    n: int
    m: int
    rank: int
    parts: tuple[Part, ...]
    count: str
    trained: int
    same: tuple[str, ...]
    contains: tuple[Inclusion, ...]
    contained: tuple[Inclusion, ...]
    cost: Cost | None
    advice: tuple[Advice, ...]
    model: InModel | None = None

    def __str__(self) -> str:
        from .rendering import rendered

        return rendered(self)


def explain(
    what: str | Method, shape: tuple[int, int] | None = None, rank: int = RANK, rows: int = ROWS
) -> Explanation:
    """Explain a method by name, a formula as a string, or a :class:`Method`.

    Examples:
        >>> explain("W + s * A @ G @ B", shape=(768, 768)).advice[0].after
        'W + s * A @ B'

    Args:
        what: the name of a registered method, a formula, or an object made by ``@method``.
        shape: n and m of the matrix for which numbers are computed; 768 x 768 by default.
        rank: r.
        rows: the number of rows at once, batch x tokens, for the plan.

    Raises:
        SubspaceError: there is no such method, the formula cannot be read, or a number is out of range.
    """
    method = method_of(what)
    for name, number in {"n": (shape or SHAPE)[0], "m": (shape or SHAPE)[1], "rank": rank, "rows": rows}.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= _LARGEST:
            raise SubspaceError(f"{name} = {number!r} is not a whole number from 1 to {_LARGEST:,}")
    return explained(method, _sizes(method, shape, rank), rows)


def method_of(what: str | Method) -> Method:
    """Return the method for a name, a formula or a method. Raises SubspaceError if there is none."""
    if isinstance(what, Method):
        return what
    if not isinstance(what, str):
        raise SubspaceError(f"expected a method's name, a formula or a Method, not {type(what).__name__}")
    # A single name is never a formula with trainable factors.
    return get(what) if what.isidentifier() and what != "W" else from_formula(what)


def explained(method: Method, sizes: Sizes, rows: int) -> Explanation:
    """Explain a method on matrices of these sizes (see :func:`explain`)."""
    formula = method.formula
    return Explanation(
        name=method.name,
        problem=start_problem(method, sizes.r if formula.has_rank else 3) or "",
        formula=str(formula),
        latex=latex(formula.expression),
        category=method.category,
        merges=merging(formula),
        convolution="" if method.convolution is None else str(method.on_axes(2).formula),
        n=sizes.n,
        m=sizes.m,
        rank=sizes.r,
        parts=tuple(_part(method, name, sizes) for name in formula.shapes),
        count=formula.counted,
        trained=formula.count(sizes),
        same=same_form(method),
        contains=contained_in(method),
        contained=containing(method),
        cost=_cost(formula, sizes, rows),
        advice=tuple(_advice(method, sizes)),
    )


def merging(formula: Formula) -> str:
    """Return on which layers phi(W) can be written into the weight, or why it cannot."""
    if formula.wraps_norm:
        return "no: it wraps a normalisation and has no matrix"
    if not formula.is_linear:
        bends = {node.function: None for node in formula.expression.walk() if isinstance(node, Activation)}
        between = " and ".join(bends)
        return f"no: {between} acts between the factors" if bends else "no: there is a bias inside the formula"
    if formula.axes:
        return f"yes: on convolutions with {formula.axes} axes"
    if formula.matrix == W:
        return "yes: into the bias of linear layers, convolutions and normalisations that have one"
    if formula.names_bias:
        return "yes: into the weight and the bias of linear layers and convolutions that have one"
    return "yes: on linear layers, embeddings and convolutions"


def _sizes(method: Method, shape: tuple[int, int] | None, rank: int) -> Sizes:
    window = (_WINDOW,) * method.formula.axes
    n, m = shape or (SHAPE[0] * math.prod(window), SHAPE[1])
    if n % math.prod(window):
        raise SubspaceError(
            f"the formula needs a convolution's window, here {' x '.join(map(str, window))}: "
            f"n = {n} is not a multiple of {math.prod(window)}"
        )
    entries = max(1, round((method.budget or 0.0) * n * m)) if method.formula.masked else 0
    options = SCHEDULES["lora_dash"].options_class() if method.formula.chooses_directions else None
    return Sizes(n, m, method.rank_in(n, m, rank), entries, getattr(options, "directions", 0), window)


def _part(method: Method, name: str, sizes: Sizes) -> Part:
    shape = method.formula.shapes[name]
    size = sizes.of(shape)
    if name in method.formula.trainable:
        start, offset = method.starts_for().get(name, ""), method.anchors().get(name, False)
        return Part(name, shape, size, trained=True, start=start, offset=offset)
    return Part(name, shape, size, trained=False, meaning=_meaning(method, name))


def _meaning(method: Method, name: str) -> str:
    if name in names.SPECTRAL_SHAPES:
        return "of W's singular value decomposition"
    if name in names.CHOSEN_SHAPES:
        return "singular directions of W chosen by the schedule"
    if names.is_mask(name):
        return "positions in W" + (f", chosen by {method.selection}" if method.selection else "")
    return _FROZEN.get(name) or f"the start of {names.started(name)}"


def _cost(formula: Formula, sizes: Sizes, rows: int) -> Cost | None:
    if formula.wraps_norm:  # the frozen module multiplies by no matrix
        return None
    lora = get("lora").formula
    best, other = (alternatives(one, sizes, rows)[0] for one in (formula, lora))
    frozen = multiply_adds(W, formula, sizes, rows)
    added = [
        (multiply_adds(way.expression, one, sizes, rows) - frozen) / rows
        for way, one in ((best, formula), (other, lora))
    ]
    return Cost(
        rows=rows,
        way=best.name,
        evaluation=str(best.expression),
        beside_frozen=best.cost / cost(W, formula, sizes, rows),
        beside_lora=best.cost / other.cost,
        multiply_adds=added[0],
        lora_multiply_adds=added[1],
        trained_beside_lora=formula.count(sizes) / lora.count(sizes),
    )


def _advice(method: Method, sizes: Sizes) -> list[Advice]:
    found, before = [], method.formula
    for step in reductions(method.formula, sizes):
        found.append(_told(step, before, sizes, _serves(method)))
        before = step.formula
    return found


def _told(step: Reduction, before: Formula, sizes: Sizes, serves: str) -> Advice:
    return Advice(
        before=str(before),
        gone=step.gone,
        kept=str(step.kept),
        value=str(step.value),
        after=str(step.formula),
        trained_before=before.count(sizes),
        trained_after=step.formula.count(sizes),
        serves=serves,
    )


def _serves(method: Method) -> str:
    """Return what acts on a method's single factors, so that they matter beyond the matrix they form."""
    acting = [f"the schedule {method.schedule}"] if method.schedule else []
    acting += [f"the pattern {'+'.join(method.pattern)}"] if method.pattern else []
    return " and ".join(acting)
