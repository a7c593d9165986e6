"""The kernel's form ``(diag @ W + low @ f @ high) @ diag`` and a bias, as a node of a plan."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import names
from .. import rows as R
from ..narrow_form import ShapeOf, chained, narrow_form, with_bias
from ..nodes import Environment, Expression, InverseNorms, Leaf, Number, Planner, PlanNode, Scalar, Step, W
from ..rows import Rows
from .kernels import Parts, can_fold, composed, product_dtype, scaled_low_rank


@dataclass(frozen=True, eq=False)
class Fused(PlanNode):
    """Plans only: ``(left @ weight + scale * low @ f @ high) @ right + bias`` in one step (see ``kernels``).

    ``node`` is the equal formula. ``weight`` is W, or phi(W) formed as one matrix. The environment holds the bias, if
    any, as b. If ``composed``, torch's own operations evaluate it, for few rows.
    """

    bias: Expression
    weight: Expression = W
    left: Expression | None = None
    right: Expression | None = None
    lows: tuple[Expression, ...] = ()
    highs: tuple[Expression, ...] = ()
    function: str | None = None
    scalars: tuple[Expression, ...] = ()
    right_scales_low_rank: bool = True
    unit: bool = False
    composed: bool = False

    # Read in every call.
    on_weight: bool = field(init=False, repr=False, compare=False)
    _rounds_weight: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "on_weight", self.weight == W)
        object.__setattr__(self, "_rounds_weight", not self.on_weight and "W" in self.weight.names)

    @property
    def keeps_nothing(self) -> bool:
        """Whether there is nothing to compute once for many calls: the parts are tensors, or phi(W) is formed."""
        if not self.on_weight:
            return True
        parts = (self.bias, self.left, self.right, *self.lows, *self.highs)
        return not self.unit and all(part is None or isinstance(part, Leaf) for part in parts)

    def apply(self, x: Rows, env: Environment) -> Tensor:
        rows = x if type(x) is Tensor else R.as_tensor(x)
        return self.evaluate(rows, self.parts(env), product_dtype(rows))

    def parts(self, env: Environment) -> Parts:
        """Return everything that does not depend on the rows."""
        scale = 1.0
        for scalar in self.scalars:
            scale *= _value(scalar, env)
        return Parts(
            env["W"] if self.on_weight else self.weight.compact(env),  # type: ignore[arg-type]
            self.bias.compact(env) if "b" in env else None,
            None if self.left is None else self.left.compact(env),
            None if self.right is None else self.right.compact(env),
            _each(self.lows, env) if self.lows else (),
            _each(self.highs, env) if self.highs else (),
            self.function,
            scale,
            self.right_scales_low_rank,
            self.unit,
        )

    def evaluate(self, x: Tensor, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Apply the form to rows, with products in the given precision."""
        return composed(x, parts, dtype) if self.composed else scaled_low_rank(x, parts)

    def suits(self, weight: Tensor) -> bool:
        """Return whether a frozen weight is exact enough: a low precision would lose small changes added to it."""
        return not self._rounds_weight or can_fold(weight)

    def __str__(self) -> str:
        if not self.on_weight:
            return f"[{self.weight}]"
        return f"composed({self.node})" if self.composed else f"fused({self.node})"

    def step(self, planner: Planner) -> Step:
        raise NotImplementedError("the planner weighs the kernel against whole plans")


def fuse(expression: Expression, shape: ShapeOf) -> Fused | None:
    """Return a formula as the kernel's form, or None if it does not have that form.

    Args:
        expression: the expression to evaluate (``Formula.evaluated``).
        shape: gives rows and columns of a node in numbers.
    """
    matrix, bias = with_bias(expression)
    form = narrow_form(matrix, shape)
    if form is None:
        return None
    functions, scales = {cut.function for cut in form.cuts}, {cut.scalars for cut in form.cuts}
    if len(form.cuts) > 1 and functions != {None}:
        return None
    # The kernel computes the norms of what it forms itself.
    unit = form.right_scales_low_rank and isinstance(form.right[0], InverseNorms)
    # A common scale that is never trained is applied to the narrow side; any other to its own factor.
    common = form.cuts[0].scalars if len(scales) == 1 and all(map(_is_number, form.cuts[0].scalars)) else ()
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
        form.right_scales_low_rank,
        unit,
    )


def _each(nodes: tuple[Expression, ...], env: Environment) -> tuple[Tensor, ...]:
    return tuple([node.compact(env) for node in nodes]) if nodes[1:] else (nodes[0].compact(env),)


def _value(scalar: Expression, env: Environment) -> float:
    value = scalar.value if type(scalar) is Number else env[names.SCALE]
    return float(value)  # type: ignore[arg-type]


def _is_number(scalar: Expression) -> bool:
    return isinstance(scalar, Number) or scalar == Scalar(names.SCALE)
