"""Which adapters of a layer are active, which of them train, and what walks over a model meet of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from .compat import set_layer_requires_grad
from .merging import MergingLayer

_shown: ContextVar[frozenset[str] | None] = ContextVar("_shown", default=None)


@contextmanager
def showing(adapters: Iterable[str] = ()) -> Iterator[None]:
    """Inside, walks over the modules of a model meet these adapters and pass by the others.

    peft walks over the whole model several times whenever it adds, switches or deletes an adapter. With hundreds of
    them nearly all that it meets would be adapters that it leaves as they are.
    """
    if torch.compiler.is_compiling():  # it walks once, while tracing, and knows no context variables
        yield
        return
    token = _shown.set(frozenset(adapters))
    try:
        yield
    finally:
        _shown.reset(token)


class SwitchingLayer(MergingLayer):
    """The part of a ``SubspaceLayer`` that switches adapters.

    What peft does with each of hundreds of adapters is done with the few that it changes.
    """

    _unfrozen: set[str] | None  # None: to be looked up

    @property
    def applied(self) -> list[str]:
        """The adapters that a call applies: the active ones, none while they are disabled or merged."""
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if name in self.subspace_params]

    @property
    def unfrozen(self) -> set[str]:
        """The adapters that train: all others are frozen already. Looked up after others could reach the factors."""
        if self._unfrozen is None:
            self.look_up_unfrozen(self.subspace_params)
        assert self._unfrozen is not None
        return self._unfrozen

    def look_up_unfrozen(self, among: Iterable[str]) -> None:
        """Note which of these adapters train; no other does."""
        self._unfrozen = {
            name
            for name in among
            if name in self.subspace_params
            and any(parameter.requires_grad for parameter in self.subspace_params[name]._parameters.values())  # type: ignore[union-attr]
        }

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Walk over the modules as torch does, or inside ``showing`` over those of the adapters shown."""
        if torch.compiler.is_compiling():
            yield from super().named_modules(memo, prefix, remove_duplicate)
            return
        shown = _shown.get()
        if shown is None:
            self._unfrozen = None  # who walks over the factors may freeze and unfreeze them
            yield from super().named_modules(memo, prefix, remove_duplicate)
            return
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            path = f"{prefix}.{name}" if prefix else name
            if module is self.subspace_params or module is self.subspace_constants:
                yield path, module
                for adapter in shown:
                    if adapter in module:
                        yield from module[adapter].named_modules(memo, f"{path}.{adapter}", remove_duplicate)
            elif module is not None:
                yield from module.named_modules(memo, path, remove_duplicate)

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze adapters."""
        names = {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)
        for name in names:
            if name in self.subspace_params:
                set_layer_requires_grad(self.subspace_params[name], requires_grad)
        if requires_grad:
            self.unfrozen.update(names)
        else:
            self.unfrozen.difference_update(names)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters the active ones, which train unless ``inference_mode``; all others are frozen."""
        self.follow()
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.set_requires_grad(self.unfrozen.difference(names), False)
        self.set_requires_grad(names, not inference_mode)
        self._active_adapter = names

    def enable_adapters(self, enabled: bool) -> None:
        """Use the active adapters, or freeze all and use none."""
        if enabled:
            super().enable_adapters(True)
        else:
            self.set_requires_grad(self.unfrozen, False)
            self._disable_adapters = True

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self.subspace_params)
