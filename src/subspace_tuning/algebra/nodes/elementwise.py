"""``relu``, ``gelu``, ``silu``, ``tanh``: between factors, and on a matrix's entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import SubspaceError
from .. import rows as R
from ..rows import Rows
from ..shapes import NodeShapes
from .base import Environment, Expression, NotLinearError
from .common import EntrywiseNode
from .language import Call, Typed, function
from .planning import Planner, Step
from .structure import Structure, of_entries

# All of them map 0 to 0, so an element-wise function keeps a diagonal matrix diagonal.
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, eq=False)
class Activation(Expression):
    """An element-wise nonlinearity between two factors; called as a function, it acts on a matrix's entries."""

    function: str

    linear_map = False
    is_shapeless = True
    acts_as_factor = False
    linear_in = ()
    zero_when = ()
    identity_when = ()

    def __call__(self, node: Expression) -> Expression:
        return Elementwise(self.function, node)

    def apply(self, x: Rows, env: Environment) -> Rows:
        return NONLINEARITIES[self.function](R.as_tensor(x))

    def compact(self, env: Environment) -> Tensor:
        raise NotLinearError(f"{self.function} between the factors has no dense form")

    def __str__(self) -> str:
        return self.function

    def latex(self) -> str:
        return rf"\operatorname{{{self.function}}}"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        raise SubspaceError(f"{self.function} takes its width from its neighbours, and has none here")

    def step(self, planner: Planner) -> Step:
        return 0.0, self


@dataclass(frozen=True, eq=False)
class Elementwise(EntrywiseNode):
    """A nonlinearity of a matrix's entries. The map on rows stays linear."""

    function: str
    node: Expression

    linear_in = ()
    zero_when = ((0,),)
    identity_when = (0,)

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return Elementwise(self.function, *children)

    def compact(self, env: Environment) -> Tensor:
        return NONLINEARITIES[self.function](self.node.compact(env))

    def __str__(self) -> str:
        return f"{self.function}({self.node})"

    def latex(self) -> str:
        return rf"\operatorname{{{self.function}}}({self.node.latex()})"

    def _structure(self) -> Structure:
        return of_entries(self.node.structure)


relu, gelu, silu, tanh = (Activation(name) for name in NONLINEARITIES)


def _register(name: str) -> None:
    @function(name)
    def read(call: Call) -> Typed:
        argument = call.sized_matrix(0)
        return Typed(Elementwise(name, argument.node), argument.shape)


for _name in NONLINEARITIES:
    _register(_name)
