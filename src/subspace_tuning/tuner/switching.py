"""Activating and freezing the adapters of a layer."""

from __future__ import annotations

from collections.abc import Iterable

from .compat import set_layer_requires_grad
from .merging import MergingLayer


class SwitchingLayer(MergingLayer):
    """The part of a ``SubspaceLayer`` that switches adapters, touching only those that change."""

    @property
    def applied(self) -> list[str]:
        """The adapters that a call applies: the active ones, or none while they are disabled or merged."""
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if name in self.subspace_params]

    @property
    def unfrozen(self) -> set[str]:
        """The adapters with at least one trainable factor.

        Read from the factors themselves, since anyone may freeze and unfreeze them.
        """
        return {
            name
            for name, factors in self.subspace_params._modules.items()
            for factor in factors._parameters.values()
            if factor.requires_grad  # type: ignore[union-attr]
        }

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze adapters."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name in self.subspace_params:
                set_layer_requires_grad(self.subspace_params[name], requires_grad)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate these adapters, which train unless ``inference_mode``; all others are frozen."""
        self.follow()
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.set_requires_grad(self.unfrozen.difference(names), False)
        self.set_requires_grad(names, not inference_mode)
        self._active_adapter = names

    def enable_adapters(self, enabled: bool) -> None:
        """Enable the active adapters, or disable and freeze all."""
        if enabled:
            super().enable_adapters(True)
        else:
            self.set_requires_grad(self.unfrozen, False)
            self._disable_adapters = True

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self.subspace_params)
