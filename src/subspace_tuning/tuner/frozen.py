"""The frozen weight and bias of a layer, wherever they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..algebra.operators import Operator
    from .kind import Kind


class FrozenLayer(nn.Module, BaseTunerLayer):
    """The part of a ``SubspaceLayer`` that knows W and b: the base layer's own, or those set aside while merged."""

    kind: Kind
    _frozen: dict[str, nn.Parameter]  # weight and bias before merging, empty if nothing is merged
    _replaced: list[
        nn.Module
    ]  # while merged, the base layer that a copy has replaced; in a list, so that it is not a child

    @property
    def frozen_weight(self) -> Tensor:
        """The frozen weight in the base layer's layout; for a quantised layer, dequantised at every access."""
        return self._frozen["weight"] if self._frozen else self.kind.numbers(self._frozen_layer)

    @property
    def frozen_matrix(self) -> Tensor | Operator:
        """The frozen W, n x m; for a quantised layer, an operator."""
        return self.kind.matrix(self._frozen["weight"]) if self._frozen else self.kind.held(self._frozen_layer)

    @property
    def _frozen_layer(self) -> nn.Module:
        """The base layer; while merged into a quantised one, the original that a copy has replaced."""
        return self._replaced[0] if self._replaced else self.get_base_layer()

    @property
    def frozen_bias(self) -> Tensor | None:
        """The frozen bias, None if the base layer has none (an embedding has not even the attribute)."""
        return self._frozen.get("bias") if self._frozen else getattr(self._frozen_layer, "bias", None)

    def frozen_tensors(self) -> dict[str, nn.Parameter]:
        """Return the frozen weight and the bias, if there is one."""
        named = {"weight": self.frozen_weight, "bias": self.frozen_bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}  # type: ignore[misc]
