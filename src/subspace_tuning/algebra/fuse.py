"""Finding in a formula the pattern that the kernel evaluates: ``(diag @ W + low @ f @ high) @ diag``, and a bias.

The search is by algebra alone. Sums and column normalisations around W are written out, unit(X) being X times the
inverse of its norms; then one term must be W between diagonals, and the others chains with a narrow place, at which
they are cut in two. ``unit(W + s * A @ B) @ D`` is (W + A @ (s * B)) @ d, with d = D over the norms of what stands
before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from . import names
from . import rows as R
from .kernels import Parts, can_fold, scaled_low_rank
from .nodes import (
    Activation,
    Affine,
    Environment,
    Expression,
    Identity,
    Matrix,
    Number,
    Product,
    Scalar,
    Scale,
    Sum,
    Vector,
    dense,
    times,
)
from .rows import Rows
from .unit import InverseNorms, Unit

W = Matrix("W")
Shape = Callable[[Expression], tuple[int, int]]


@dataclass(frozen=True)
class Fused(Expression):
    """Plan only: ``(left @ weight + scale * low @ f @ high) @ right + bias`` in one step (see ``kernels``).

    ``node`` is the formula that it is equal to. ``weight`` is W, or all of phi(W) formed as one matrix. The environment
    holds the bias as b, if there is one.
    """

    node: Expression
    bias: Expression
    weight: Expression = W
    left: Expression | None = None
    right: Expression | None = None
    lows: tuple[Expression, ...] = ()
    highs: tuple[Expression, ...] = ()
    function: str | None = None
    scalars: tuple[Expression, ...] = ()
    around: bool = True
    unit: bool = False

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.node,)

    def apply(self, x: Rows, env: Environment) -> Rows:
        scale = 1.0
        for scalar in self.scalars:
            scale *= _value(scalar, env)
        parts = Parts(
            weight=dense(self.weight, env),
            bias=self.bias.compact(env) if "b" in env else None,
            left=None if self.left is None else self.left.compact(env),
            right=None if self.right is None else self.right.compact(env),
            lows=tuple(low.compact(env) for low in self.lows),
            highs=tuple(high.compact(env) for high in self.highs),
            function=self.function,
            scale=scale,
            around=self.around,
            unit=self.unit,
        )
        return scaled_low_rank(R.as_tensor(x), parts)

    def compact(self, env: Environment) -> Tensor:
        return self.node.compact(env)

    def suits(self, weight: Tensor) -> bool:
        """Whether a frozen weight is exact enough: added to one of a low precision, small changes would be lost."""
        return self.weight == W or W not in self.weight.walk() or can_fold(weight)

    def __str__(self) -> str:
        return f"fused({self.node})" if self.weight == W else f"[{self.weight}]"


def fuse(expression: Expression, shape: Shape) -> Fused | None:
    """Return a formula as the kernel's pattern, None if it is not of that form.

    Args:
        expression: what is evaluated (``Formula.evaluated``).
        shape: gives rows and columns of a node in numbers.
    """
    matrix, bias = with_bias(expression)
    terms = _terms(matrix)
    frozen = [term for term in terms if W in term]
    added = [term for term in terms if W not in term]
    if len(frozen) != 1 or frozen[0].count(W) != 1:
        return None
    place = frozen[0].index(W)
    left, right = frozen[0][:place], frozen[0][place + 1 :]
    if not all(factor.diagonal for factor in (*left, *right)):
        return None
    around = bool(right) and all(term[-len(right) :] == right for term in added)
    # The kernel takes the norms of all that it forms itself.
    unit = around and isinstance(right[0], InverseNorms)
    cuts = [_cut(term[: -len(right)] if around else term, shape) for term in added]
    found = [cut for cut in cuts if cut is not None]
    functions, scales = {cut.function for cut in found}, {cut.scalars for cut in found}
    if len(found) < len(cuts) or (len(found) > 1 and functions != {None}):
        return None
    # One scale of all that is never trained goes to what is as narrow as the rank; every other to its own factor.
    common = next(iter(scales)) if len(scales) == 1 and all(map(_is_number, next(iter(scales)))) else ()
    return Fused(
        expression,
        bias,
        W,
        _chain(left),
        _chain(right[1:] if unit else right),
        tuple(cut.low for cut in found),
        tuple(cut.high if common else _chain([*cut.scalars, cut.high]) or cut.high for cut in found),
        functions.pop() if functions else None,
        common,
        around,
        unit,
    )


def with_bias(expression: Expression) -> tuple[Expression, Expression]:
    """Return the matrix of a formula and the bias that is added: the one in the formula, or the layer's own."""
    if isinstance(expression, Affine):
        return expression.matrix, expression.bias
    return expression, Vector("b")


def _value(scalar: Expression, env: Environment) -> float:
    value = scalar.value if isinstance(scalar, Number) else env[names.SCALE]
    return float(value)  # type: ignore[arg-type]


def _is_number(scalar: Expression) -> bool:
    return isinstance(scalar, Number) or scalar == Scalar(names.SCALE)


def _terms(node: Expression) -> list[tuple[Expression, ...]]:
    """Return the expression as a sum of products, in which W stands under no sum."""
    if isinstance(node, Sum):
        return [term for part in node.terms for term in _terms(part)]
    if isinstance(node, Scale):
        return [(node.scalar, *term) for term in _terms(node.node)]
    if W not in node.walk():
        return [tuple(_factors(node))]
    if isinstance(node, Unit):
        return [(*term, InverseNorms(node.node)) for term in _terms(node.node)]
    if isinstance(node, Product):
        holders = [index for index, factor in enumerate(node.factors) if W in factor.walk()]
        before, after = node.factors[: holders[0]], node.factors[holders[0] + 1 :]
        return [(*before, *term, *after) for term in _terms(node.factors[holders[0]])]
    return [(node,)]


def _factors(node: Expression) -> list[Expression]:
    if isinstance(node, Scale):
        return [node.scalar, *_factors(node.node)]
    return list(node.factors) if isinstance(node, Product) else [node]


def _chain(factors: Sequence[Expression]) -> Expression | None:
    """Return the product of factors, among them scalars; None for none."""
    scalars = [factor for factor in factors if factor.is_number]
    matrices = tuple(factor for factor in factors if not factor.is_number)
    if not matrices:
        return None
    node = matrices[0] if len(matrices) == 1 else Product(matrices)
    for scalar in scalars:
        node = times(scalar, node)
    return node


class _Cut(NamedTuple):
    low: Expression
    function: str | None
    high: Expression
    scalars: tuple[Expression, ...]


def _cut(factors: Sequence[Expression], shape: Shape) -> _Cut | None:
    """Cut a chain at its nonlinearity, or at its narrowest place; None if neither leaves something narrow."""
    chain = [factor for factor in factors if not factor.is_number and not isinstance(factor, Identity)]
    scalars = tuple(factor for factor in factors if factor.is_number)
    bends = [index for index, factor in enumerate(chain) if isinstance(factor, Activation)]
    inner = [part for factor in chain for part in factor.walk() if part is not factor]
    if len(bends) > 1 or any(isinstance(part, (Activation, Affine)) for part in inner):
        return None
    function = None
    if bends:
        bend = chain[bends[0]]
        assert isinstance(bend, Activation)
        before, function, after = chain[: bends[0]], bend.function, chain[bends[0] + 1 :]
    else:
        width = [shape(factor)[1] for factor in chain]
        place = min(range(len(chain)), key=lambda index: width[index]) + 1
        before, after = chain[:place], chain[place:]
    low, high = _chain(before), _chain(after)
    if low is None or high is None:
        return None
    (n, k), m = shape(low), shape(high)[1]
    if low.diagonal or high.diagonal or k >= min(n, m):
        return None
    return _Cut(low, function, high, scalars)
