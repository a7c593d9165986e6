"""The operations of the language: products, sums, numbers in front, transposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from .. import rows as R
from ..operators import TENSORS, Operator
from ..rows import Rows
from ..shapes import NodeShapes
from . import structure as S
from .base import PRODUCT, SUM, UNARY, Environment, Expression
from .common import FactorsNode, MatrixNode, MultilinearNode, UnaryNode
from .compact import added, multiplied
from .leaves import Leaf, Matrix, Number, Scalar
from .planning import Planner, Step


@dataclass(frozen=True, eq=False)
class Product(FactorsNode):
    """Factors in the order in which the data flows."""

    factors: tuple[Expression, ...]

    precedence = PRODUCT
    linear_map = True
    rows_enter = 0

    @property
    def factored(self) -> tuple[Expression, ...]:
        return self.factors

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return build.product(*children)

    def over(self, children: tuple[Expression, ...]) -> Expression:
        return Product(children)

    def apply(self, x: Rows, env: Environment) -> Rows:
        for factor in self.factors:
            x = factor.apply(x, env)
        return x

    def compact(self, env: Environment) -> Tensor:
        return multiplied_out(self.factors, env)

    def __str__(self) -> str:
        return " @ ".join(factor.inside(PRODUCT) for factor in self.factors)

    def latex(self) -> str:
        joined = self.factors[0].inside_latex()
        for before, factor in zip(self.factors, self.factors[1:], strict=False):
            # A nonlinearity acts on everything to its left, so it is not a factor.
            sign = " " if before.acts_as_factor and factor.acts_as_factor else r" \circ "
            joined += sign + factor.inside_latex()
        return joined

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        shaped = [shapes(factor) for factor in self.factors if not factor.is_shapeless]
        return shaped[0][0], shaped[-1][1]

    def step(self, planner: Planner) -> Step:
        return planner.chain(self.factors)

    def form_step(self, planner: Planner) -> Step:
        return planner.formed_chain(self.factors)

    def _structure(self) -> S.Structure:
        return S.of_product([factor.structure for factor in self.factors])

    @property
    def linear_in(self) -> tuple[int, ...]:
        """The factors after the last nonlinearity."""
        bends = [index for index, factor in enumerate(self.factors) if not factor.has_matrix]
        return tuple(range(bends[-1] + 1 if bends else 0, len(self.factors)))


def multiplied_out(factors: Sequence[Expression], env: Environment) -> Tensor:
    """Return the product of factors in compact form."""
    transposed = R.lies_transposed(env["W"]) if "W" in env else False
    result = factors[0].compact(env)
    for factor in factors[1:]:
        result = multiplied(result, factor.compact(env), transposed)
    return result


@dataclass(frozen=True, eq=False)
class Sum(Expression):
    """Terms of one shape: matrices, or vectors."""

    terms: tuple[Expression, ...]

    precedence = SUM
    linear_map = True
    latex_in_brackets = True
    identity_when = ()  # some term is, but the form does not show which one

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.terms

    @property
    def is_number(self) -> bool:
        return all(term.is_number for term in self.terms)

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return build.add(*children)

    def over(self, children: tuple[Expression, ...]) -> Expression:
        return Sum(children)

    def apply(self, x: Rows, env: Environment) -> Rows:
        result = R.as_tensor(self.terms[0].apply(x, env))
        for term in self.terms[1:]:
            result = result + R.as_tensor(term.apply(x, env))
        return result

    def compact(self, env: Environment) -> Tensor:
        result = self.terms[0].compact(env)
        for term in self.terms[1:]:
            result = added(result, term.compact(env))
        return result

    def __str__(self) -> str:
        text = str(self.terms[0])
        for term in self.terms[1:]:
            text += f" - {(-term).inside(SUM)}" if _is_negative(term) else f" + {term.inside(SUM)}"
        return text

    def latex(self) -> str:
        text = self.terms[0].latex()
        for term in self.terms[1:]:
            text += f" - {(-term).latex()}" if _is_negative(term) else f" + {term.latex()}"
        return text

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes(next(term for term in self.terms if not term.is_shapeless))

    def step(self, planner: Planner) -> Step:
        parts = [planner.apply(term) for term in self.terms]
        adding = planner.elements(planner.rows * planner.shape(self)[1] * (len(parts) - 1))
        return sum(part[0] for part in parts) + adding, Sum(tuple(part[1] for part in parts))

    @property
    def _passes(self) -> int:
        return max(1, len(self.terms) - 1)

    def _structure(self) -> S.Structure:
        return S.of_sum([term.structure for term in self.terms])

    @property
    def linear_in(self) -> tuple[int, ...]:
        return tuple(range(len(self.terms)))

    @property
    def zero_when(self) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(len(self.terms))),)


def _is_negative(term: Expression) -> bool:
    number = term.scalars[0] if isinstance(term, Scale) else term
    return isinstance(number, Number) and number.value < 0


@dataclass(frozen=True, eq=False)
class Scale(MultilinearNode):
    """Numbers times a node: ``s * A``, ``2 * t * A``, ``(1 - t) * A``."""

    scalars: tuple[Expression, ...]
    node: Expression

    precedence = PRODUCT
    linear_map = True

    @property
    def children(self) -> tuple[Expression, ...]:
        return (*self.scalars, self.node)

    @property
    def is_number(self) -> bool:
        return self.node.is_number

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return build.times(*children)

    def over(self, children: tuple[Expression, ...]) -> Expression:
        return Scale(children[:-1], children[-1])

    def apply(self, x: Rows, env: Environment) -> Rows:
        y = R.as_tensor(self.node.apply(x, env))
        value = self.value(env)
        return y * (value.to(y.dtype) if isinstance(value, Tensor) else value)

    def compact(self, env: Environment) -> Tensor:
        return self.node.compact(env) * self.value(env)

    def value(self, env: Environment) -> Tensor | float:
        """Return the product of the scalars."""
        product: Any = None
        scalar: Any
        for scalar in self.scalars:
            kind = type(scalar)  # quicker than isinstance, which asks an abstract class
            value = scalar.value if kind is Number else env[scalar.name] if kind is Scalar else scalar.compact(env)
            product = value if product is None else product * value
        return product  # type: ignore[no-any-return]

    def __str__(self) -> str:
        signed = self.scalars[0] == Number(-1.0)
        shown = [scalar.inside(PRODUCT) for scalar in self.scalars[signed:]]
        # A product needs no parentheses: the parser moves the scalars in front of it again.
        shown.append(str(self.node) if isinstance(self.node, Product) else self.node.inside(PRODUCT))
        return "-" * signed + " * ".join(shown)

    def latex(self) -> str:
        signed = self.scalars[0] == Number(-1.0)
        return "-" * signed + " ".join(child.inside_latex() for child in self.children[signed:])

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes(self.node)

    def step(self, planner: Planner) -> Step:
        """Scale where the rows are narrowest, but never before a nonlinearity."""
        scalars, core = self.scalars, self.node
        if isinstance(core, Sum) and planner.choose:
            return planner.apply(Sum(tuple(Scale(scalars, term) for term in core.terms)))
        if isinstance(core, Product) and planner.choose:
            factors = core.factors
            first = max((i + 1 for i, factor in enumerate(factors) if not factor.has_matrix), default=0)
            places = [i for i in range(first, len(factors)) if isinstance(factors[i], (Leaf, Sum))]
            if places:
                place = min(places, key=lambda i: planner.shape(factors[i])[1])
                return planner.chain((*factors[:place], Scale(scalars, factors[place]), *factors[place + 1 :]))
        if core.scaled_child is not None and planner.choose:
            children = list(core.children)
            children[core.scaled_child] = Scale(scalars, children[core.scaled_child])
            return planner.apply(core.over(tuple(children)))
        cost, inner = planner.apply(core)
        passes = planner.elements(planner.rows * planner.shape(self)[1], len(scalars))
        return cost + passes, Scale(scalars, inner)

    def _structure(self) -> S.Structure:
        return S.of_multiple(self.node.structure)


@dataclass(frozen=True, eq=False)
class Transpose(UnaryNode, MatrixNode):
    """A transposed matrix."""

    node: Expression

    linear_in = (0,)
    zero_when = ((0,),)
    identity_when = (0,)
    _passes = 0

    def apply(self, x: Rows, env: Environment) -> Rows:
        if self.diagonal:
            return self.node.apply(x, env)
        if not self.needs_entries:
            value = env["W"]
            if type(value) not in TENSORS and isinstance(value, Operator):
                return value.multiply_transposed(R.as_tensor(x))
        return R.matmul(x, self.compact(env))

    @cached_property
    def needs_entries(self) -> bool:  # cached, since every call uses it
        return not (type(self.node) is Matrix and self.node.name == "W")

    def compact(self, env: Environment) -> Tensor:
        matrix = self.node.compact(env)
        return matrix if self.diagonal else matrix.T

    def __str__(self) -> str:
        return f"{self.node.inside(UNARY)}.T"

    def latex(self) -> str:
        return f"{self.node.inside_latex()}^\\top"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        rows, columns = shapes(self.node)
        return columns, rows

    def _structure(self) -> S.Structure:
        return S.of_transpose(self.node.structure)


from . import build  # noqa: E402 (normal form is built from the classes above)
