"""Parts of a module's tensors, each seen as a module with a weight of its own. A part holds nothing: it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Part(nn.Module):
    """What is adapted of a module, its owner, where that is not the whole of its weight."""

    def __init__(self, owner: nn.Module) -> None:
        nn.Module.__init__(self)
        self._owner = [owner]  # in a list: it is no child

    @property
    def owner(self) -> nn.Module:
        """The module whose tensors these are."""
        return self._owner[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Part:
        """Move or cast what is read, so that whoever looks before and after sees it move."""
        self.owner._apply(fn)
        return self


class ParameterPart(Part):
    """A parameter that its owner reads in a forward of its own: one matrix, or one of each expert.

    Args:
        owner: the module.
        name: the parameter's name in it.
        transposed: whether its last two dimensions are in x out, and not out x in as in torch's linear layers.
    """

    def __init__(self, owner: nn.Module, name: str, transposed: bool) -> None:
        super().__init__(owner)
        self.name, self.transposed = name, transposed

    @property
    def weight(self) -> Tensor:
        """The parameter."""
        return getattr(self.owner, self.name)  # type: ignore[no-any-return]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            setattr(self.owner, self.name, value)
        else:
            super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """Return the parameter's name and shape."""
        return f"{self.name}, shape={tuple(self.weight.shape)}, transposed={self.transposed}"


class Columns(Part):
    """Some columns of W, n x m, of a linear layer: the outputs that are the query's, for instance.

    The part is a linear layer itself, so whoever knows linear layers knows it.

    Args:
        owner: the linear layer.
        columns: the indices of the part's outputs.
    """

    columns: Tensor
    outputs: ClassVar[int]  # which dimension of the weight they are

    def __init__(self, owner: nn.Module, columns: Tensor) -> None:
        super().__init__(owner)
        self.register_buffer("columns", columns.to(owner.weight.device), persistent=False)  # type: ignore[arg-type]
        self.nf = self.out_features = len(columns)  # as Conv1D and as Linear call it
        self.nx = self.in_features = self.weight.shape[1 - self.outputs]

    @property
    def weight(self) -> Tensor:
        """The part's own weight, in the layout of the layer."""
        weight: Tensor = self.owner.weight  # type: ignore[assignment]
        return weight.index_select(self.outputs, self.columns)

    @property
    def bias(self) -> Tensor | None:
        """The part's own bias, None if the layer has none."""
        bias: Tensor | None = self.owner.bias  # type: ignore[assignment]
        return None if bias is None else bias.index_select(0, self.columns)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            held: Tensor = getattr(self.owner, name)
            whole = self.put(held.detach(), value.detach(), self.outputs if name == "weight" else 0)
            setattr(self.owner, name, nn.Parameter(whole, held.requires_grad))
        else:
            super().__setattr__(name, value)

    def put(self, whole: Tensor, own: Tensor, dim: int = -1) -> Tensor:
        """Return a tensor of all outputs with the part's own in it."""
        return whole.index_copy(dim, self.columns, own.to(whole.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Part:
        super()._apply(fn, recurse)
        self.columns = fn(self.columns)
        return self


class LinearColumns(Columns, nn.Linear):  # type: ignore[misc, override]
    """Outputs of a Linear, whose weight is m x n."""

    outputs = 0


class Conv1DColumns(Columns, Conv1D):  # type: ignore[misc]
    """Outputs of transformers' Conv1D, whose weight is n x m."""

    outputs = 1
