"""What a kind of module is to its layer: where W is in it, and how rows go through it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..algebra.nodes import Environment, Expression
from ..algebra.operators import Operator
from ..algebra.rows import Rows, as_tensor
from ..errors import SubspaceError


class Kind(ABC):
    """What the tuner asks of a kind of module."""

    one_hot = False  # the input is an index into the rows of W
    only_bias = False  # there is no matrix: the module offers its bias alone
    wrappable = False  # its output is rows along the last dimension, so a formula can go around it
    fusible = False  # the rows are a tensor, so the kernel can take them
    opaque = False  # W is an operator, and no tensor
    module_types: tuple[type[nn.Module], ...] = ()

    def hosts(self, module: nn.Module) -> bool:
        """Return whether a module is of this kind."""
        return isinstance(module, self.module_types)

    def held(self, module: nn.Module) -> Tensor | Operator:
        """Return W, n x m, as the module holds it."""
        return self.matrix(module.weight)  # type: ignore[arg-type]

    def numbers(self, module: nn.Module) -> Tensor:
        """Return the module's weight as numbers."""
        return module.weight  # type: ignore[return-value]

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """Return W, n x m, as a view of a module's weight."""

    @abstractmethod
    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Return an n x m matrix as a module's weight of this shape."""

    def rows(self, module: nn.Module, x: Tensor) -> Rows:
        """Return the input as rows of width n."""
        return x

    def finish(self, module: nn.Module, y: Tensor) -> Tensor:
        """Return rows of width m as the module's output."""
        return y

    def window(self, module: nn.Module) -> tuple[int, ...]:
        """Return the window of a convolution, () for everything else."""
        return ()

    def count_rows(self, module: nn.Module, x: Tensor) -> int:
        """Return how many rows the input has."""
        return x.numel() // x.shape[-1]

    def knows(self, module: nn.Module) -> bool:
        """Return whether the forward of the module's class does what its weight and bias say, and nothing else.

        A parametrised module has a class of its own that inherits the forward.
        """
        cls = type(module)
        return cls.__call__ is nn.Module.__call__ and any(cls.forward is known.forward for known in self.module_types)

    def run(
        self, module: nn.Module, expression: Expression, x: Tensor, env: Environment, bias: Tensor | None
    ) -> Tensor:
        """Return the module's output for an expression in place of its weight, plus a bias."""
        y = as_tensor(expression.apply(self.rows(module, x), env))
        return self.finish(module, y if bias is None else y + bias.to(y.dtype))

    def forms_weight(self, module: nn.Module) -> bool:
        """Return whether a call with phi(W) in place of the weight is cheaper than row by row, however many rows there are."""
        return False

    def keeps_rows(self, module: nn.Module) -> bool:
        """Return whether some row of W is never changed."""
        return False

    def keep_rows(self, module: nn.Module, phi: Tensor, W: Tensor) -> Tensor:
        """Return phi(W) with those rows of W that no adapter changes."""
        return phi

    def keep_outputs(self, module: nn.Module, x: Tensor, y: Tensor, frozen: Tensor) -> Tensor:
        """Return y with the frozen output where the input selects a row that no adapter changes."""
        return y

    def check(self, module: nn.Module, name: str) -> None:
        """Raise SubspaceError if this module cannot be adapted."""
        weight = self.numbers(module)
        if not weight.is_meta and not torch.isfinite(weight).all():
            raise SubspaceError(f"{name}: the weight has entries that are not finite; is the checkpoint damaged?")
