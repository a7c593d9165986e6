"""Constants computed from W follow W: they are recomputed when the base model gets another weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..methods import computed_constants
from .parametrised import compute
from .stacks import constants_of_each
from .state import StatedLayer
from .watch import readable

if TYPE_CHECKING:
    from ..algebra import Sizes
    from ..methods import Method
    from .compat import BufferDict
    from .watch import Watch


class FollowingLayer(StatedLayer):
    """The part of a ``SubspaceLayer`` that keeps singular vectors, column norms and other anchors up to date with W.

    A weight changes when a state dict is loaded, in place, by another library's merge, or when a new tensor replaces
    it. Every forward pass makes the free comparisons (see ``Watch``); merging, saving and loading compare the content.
    """

    subspace_constants: nn.ModuleDict
    _watch: Watch
    _given: set[str]  # adapters whose constants were loaded together with the weight

    @property
    def follows(self) -> bool:
        """Whether some adapter has constants that follow from W."""
        return any(state.computed for state in self.adapters.values())

    def names_computed(self, method: Method, sizes: Sizes, scale: float) -> tuple[str, ...]:
        """Return the names of a method's constants that follow from W."""
        meta = torch.empty(self.frozen_matrix.shape, device="meta")
        return tuple(self._computed(method, sizes, scale, meta))

    def follow_moves(self, name: str) -> None:
        """Follow the weight if it may have changed as far as a forward pass can tell."""
        if torch.compiler.is_compiling() or self.kind.opaque or not self.adapters[name].computed:
            return  # comparing a quantised weight in every pass would be too expensive
        if self._watch.moved(self.frozen_weight):
            self.follow(thoroughly=True)

    @torch.no_grad()
    def follow(self, thoroughly: bool = False) -> None:
        """Recompute what was computed from W if W has changed.

        Args:
            thoroughly: compare the whole content instead of a sample.
        """
        if torch.compiler.is_compiling() or not self.follows:
            return
        weight = self.frozen_weight
        if not readable(weight) or not (thoroughly or self._watch.moved(weight, sample=True)):
            return
        if self._watch.changed(weight):
            for name, state in self.adapters.items():
                if state.computed and name not in self._given:
                    self._compute_anew(name, weight)
        self._given = set()

    def _compute_anew(self, name: str, weight: Tensor) -> None:
        constants: BufferDict = self.subspace_constants[name]  # type: ignore[assignment]
        state = self.adapters[name]
        for key, tensor in self._computed(state.method, state.sizes, state.scale, self.kind.matrix(weight)).items():
            constants[key] = tensor.to(constants[key].dtype)  # which casting the model may have narrowed

    def _computed(self, method: Method, sizes: Sizes, scale: float, matrix: Tensor) -> dict[str, Tensor]:
        return constants_of_each(
            lambda W: computed_constants(
                method, W, sizes.r, one_hot=self.kind.one_hot, scale=scale, window=sizes.window
            ),
            matrix,
        )

    def expect(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Prepare for a state dict: a new weight needs an unmerged layer, and may come with its constants."""
        if any(key.startswith(f"{prefix}base_layer.") for key in state_dict) and self.merged:
            warnings.warn(f"{prefix.rstrip('.')}: a base weight is loaded; the layer is unmerged first", stacklevel=2)
            self.unmerge()
        given = {
            name
            for name, state in self.adapters.items()
            if state.computed
            and all(f"{prefix}subspace_constants.{name}.{key}" in state_dict for key in state.computed)
        }
        self._given |= given
        self._watch.look_again()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        saved = {name for name in self.adapters if self._saves_computed(name)}
        self.follow(thoroughly=bool(saved))
        super()._save_to_state_dict(*args, **kwargs)

    def _saves_computed(self, name: str) -> bool:
        volatile = self.subspace_constants[name]._non_persistent_buffers_set
        return any(key not in volatile for key in self.adapters[name].computed)

    def train(self, mode: bool = True) -> FollowingLayer:
        """Set the mode, and follow the weight if the mode changes."""
        if mode != self.training:
            self.follow()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FollowingLayer:
        """Move or cast the layer. A cast weight is the same up to rounding, so nothing is recomputed."""
        before = None if self.kind.opaque else self.frozen_weight.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for parameter in self._frozen.values():
            parameter.data = fn(parameter.data)
        for module in self._replaced:
            module._apply(fn)
        if before is None:
            return self
        after = self.frozen_weight.data
        cast = after.dtype != before.dtype and readable(before) and readable(after)
        if cast and self.follows and self._watch.knows(before) and torch.equal(before.to(after), after):
            self._watch.remember(self.frozen_weight)
        return self


def follow_loaded(module: nn.Module, incompatible: Any) -> None:
    """Follow the weight after a state dict was loaded (a torch hook that runs after the base layer's own)."""
    assert isinstance(module, FollowingLayer)
    compute(module.get_base_layer())
    module.follow(thoroughly=True)
