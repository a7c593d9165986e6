"""Parts of a module's tensors, each seen as a module with a weight of its own. A part holds nothing: it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


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
