"""Kinds of modules: where W is stored in one, and how rows pass through it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..algebra.nodes import Environment, Expression
from ..algebra.operators import Operator
from ..algebra.rows import Rows, as_tensor
from ..errors import SubspaceError


class Kind(ABC):
    """What the tuner needs to know about a kind of module."""

    one_hot = False  # the input indexes the rows of W
    only_bias = False  # there is no matrix: only the bias can be adapted
    wrappable = False  # its output is rows along the last dimension, so a formula can wrap it
    fusible = False  # the rows are a tensor, so the kernel can be used
    opaque = False  # W is an operator, not a tensor
    module_types: tuple[type[nn.Module], ...] = ()

    def hosts(self, module: nn.Module) -> bool:
        """Return whether a module is of this kind."""
        return isinstance(module, self.module_types)

    def held(self, module: nn.Module) -> Tensor | Operator:
        """Return W, n x m, as stored in the module."""
        return self.matrix(module.weight)  # type: ignore[arg-type]

    def numbers(self, module: nn.Module) -> Tensor:
        """Return the module's weight as a tensor of numbers."""
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
        """Return the window of a convolution, or () for anything else."""
        return ()

    def count_rows(self, module: nn.Module, x: Tensor) -> int:
        """Return the number of rows of the input."""
        return x.numel() // x.shape[-1]

    def knows(self, module: nn.Module) -> bool:
        """Return whether the forward of the module's class only applies its weight and bias.

        A parametrised module has its own class, which inherits the forward.
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
        """Return whether calling the module with phi(W) as its weight is always cheaper than working on rows."""
        return False

    def keeps_rows(self, module: nn.Module) -> bool:
        """Return whether a row of W is never adapted."""
        return False

    def keep_rows(self, module: nn.Module, phi: Tensor, W: Tensor) -> Tensor:
        """Return phi(W) with the rows of W that no adapter changes restored."""
        return phi

    def keep_outputs(self, module: nn.Module, x: Tensor, y: Tensor, frozen: Tensor) -> Tensor:
        """Return y with the frozen output where the input selects a row that is never adapted."""
        return y

    def check(self, module: nn.Module, name: str) -> None:
        """Raise SubspaceError if this module cannot be adapted."""
        weight = self.numbers(module)
        if not weight.is_meta and not torch.isfinite(weight).all():
            raise SubspaceError(f"{name}: the weight has entries that are not finite; is the checkpoint damaged?")
