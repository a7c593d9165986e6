"""The kernel's pattern ``(diag @ W + low @ f @ high) @ diag`` and a bias, as a node of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import names
from .. import rows as R
from ..nodes import Environment, Expression, InverseNorms, Number, Planner, PlanNode, Scalar, Step, W, dense
from ..normal_form import Shape, chained, narrow_form, with_bias
from ..rows import Rows
from .kernels import Parts, can_fold, scaled_low_rank


@dataclass(frozen=True)
class Fused(PlanNode):
    """Plan only: ``(left @ weight + scale * low @ f @ high) @ right + bias`` in one step (see ``kernels``).

    ``node`` is the formula that it is equal to. ``weight`` is W, or all of phi(W) formed as one matrix. The environment
    holds the bias as b, if there is one.
    """

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

    def suits(self, weight: Tensor) -> bool:
        """Whether a frozen weight is exact enough: added to one of a low precision, small changes would be lost."""
        return self.weight == W or W not in self.weight.walk() or can_fold(weight)

    def __str__(self) -> str:
        return f"fused({self.node})" if self.weight == W else f"[{self.weight}]"

    def step(self, planner: Planner) -> Step:
        raise NotImplementedError("the planner weighs the kernel against whole plans")


def fuse(expression: Expression, shape: Shape) -> Fused | None:
    """Return a formula as the kernel's pattern, None if it is not of that form.

    Args:
        expression: what is evaluated (``Formula.evaluated``).
        shape: gives rows and columns of a node in numbers.
    """
    matrix, bias = with_bias(expression)
    form = narrow_form(matrix, shape)
    if form is None:
        return None
    functions, scales = {cut.function for cut in form.cuts}, {cut.scalars for cut in form.cuts}
    if len(form.cuts) > 1 and functions != {None}:
        return None
    # The kernel takes the norms of all that it forms itself.
    unit = form.around and isinstance(form.right[0], InverseNorms)
    # One scale of all that is never trained goes to what is as narrow as the rank; every other to its own factor.
    common = next(iter(scales)) if len(scales) == 1 and all(map(_is_number, next(iter(scales)))) else ()
    return Fused(
        expression,
        bias,
        W,
        chained(form.left),
        chained(form.right[1:] if unit else form.right),
        tuple(cut.low for cut in form.cuts),
        tuple(cut.high if common else chained([*cut.scalars, cut.high]) or cut.high for cut in form.cuts),
        functions.pop() if functions else None,
        common,
        form.around,
        unit,
    )


def _value(scalar: Expression, env: Environment) -> float:
    value = scalar.value if isinstance(scalar, Number) else env[names.SCALE]
    return float(value)  # type: ignore[arg-type]


def _is_number(scalar: Expression) -> bool:
    return isinstance(scalar, Number) or scalar == Scalar(names.SCALE)
