"""A layer's forward pass: the base layer's output with phi(W) for the active adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SubspaceError
from ..methods import environment
from .calling import (
    BASE,
    Args,
    Kwargs,
    by_adapter,
    chosen_rows,
    forward_slot,
    has_hooks,
    own_forward_problem,
    replaced,
    tensors_replaced,
    the_input,
)
from .evaluation import Evaluation, at_strength
from .lanes import Mixture, mixed
from .switching import SwitchingLayer
from .weights import bring_back, is_offloaded, whole


class RunningLayer(SwitchingLayer):
    """The part of a ``SubspaceLayer`` that runs its forward pass."""

    base_layer: nn.Module
    reached: bool  # called, or read in place of a call
    _evaluation: Evaluation | None  # of the state at the last call
    _mixtures: dict[tuple[str, ...], Mixture]  # of the last batches with ``adapter_names``, by these
    _knows_forward: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the base layer's output with phi(W) for the active adapters, or row by row for ``adapter_names``.

        A base layer with hooks or a custom forward is called itself: hooks run around the adapted forward, and a custom
        forward finds phi(W) in place of its weight.
        """
        compiling, found = torch.compiler.is_compiling(), self._evaluation
        if found is not None and len(args) == 1 and not kwargs and not compiling and found.holds(self):
            return found(args[0])
        self.reached = True
        if self._offloaded():
            bring_back(self, self.base_layer)
            with whole(self.base_layer):
                return self._forward(*args, **kwargs)
        if not compiling:
            self._evaluation = Evaluation.bound(self)
        return self._forward(*args, **kwargs)

    def _offloaded(self) -> bool:
        """Return whether accelerate has offloaded the base layer or an active adapter."""
        every = (self.subspace_params, self.subspace_constants)
        active = (tensors[name] for tensors in every for name in self.active_adapters if name in tensors)
        return is_offloaded(self.get_base_layer()) or any(map(is_offloaded, active))

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is not None:
            return self._mixed_batch(adapter_names, args, kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = self.applied
        if not names:
            return self.base_layer(*args, **kwargs)
        return self._called(
            lambda x: self._outputs(x, names), lambda *args, **kwargs: self._through(names, args, kwargs), args, kwargs
        )

    def _called(
        self, compute: Callable[[Tensor], Tensor], through: Callable[..., Any], args: Args, kwargs: Kwargs
    ) -> Any:
        """Compute the output, inside the base layer's hooks if it has any, or through its custom forward."""
        base = self.get_base_layer()
        slot = forward_slot(base) if self._knows_forward else None
        if slot is None:
            return through(*args, **kwargs)
        if slot == "forward" and not has_hooks(base):
            return compute(the_input(args, kwargs))
        with replaced(base, **{slot: lambda *args, **kwargs: compute(the_input(args, kwargs))}):
            return self.base_layer(*args, **kwargs)

    def _plain(self, x: Tensor) -> Tensor:
        """Return the frozen output, without hooks."""
        base = self.get_base_layer()
        if self.base_layer is not base:
            return self.base_layer(x)  # type: ignore[no-any-return]
        if self.kind.opaque:
            return self.frozen_matrix.run(x)  # type: ignore[no-any-return, union-attr]
        return type(base).forward(base, x)  # type: ignore[no-any-return]

    def _outputs(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Return the output with some adapters: the frozen output plus their changes at the frozen weight."""
        base = self.get_base_layer()
        if names and self.kind.forms_weight(base) and all(map(self._is_plain_weight, names)):
            with tensors_replaced(base, self._effective(names)):
                return self._plain(x)
        if len(names) == 1:
            return self._at_strength(x, names[0])
        frozen = self._plain(x)
        return frozen if not names else frozen + sum(self._at_strength(x, name) - frozen for name in names)

    def _effective(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the weight and bias that a call applies with these adapters."""
        for name in names:
            self._check_filled(name)
        bias = self.frozen_bias
        tensors = {"weight": self.frozen_weight} | ({} if bias is None else {"bias": bias})
        return self._changed(tensors, names, self.training)

    def _through(self, names: Sequence[str], args: Args, kwargs: Kwargs) -> Any:
        """Call the base layer's custom forward with phi(W) in place of W.

        If it only replaces the known forward of this one module, adapters without a dense form are added to its output.
        """
        base = self.get_base_layer()
        for name in names:
            state = self.adapters[name]
            problem = own_forward_problem(base, self.kind, state.method, self.training * state.dropout)
            if problem is not None:
                raise SubspaceError(problem)
        dense_names = [name for name in names if self.adapters[name].method.formula.is_linear]
        added = [name for name in names if name not in dense_names]
        tensors = self._effective(dense_names) if dense_names else {}
        if not added:
            with tensors_replaced(base, tensors):
                return self.base_layer(*args, **kwargs)
        patched = base.__dict__["forward"]

        def with_changes(*args: Any, **kwargs: Any) -> Any:
            with tensors_replaced(base, tensors):
                y = patched(*args, **kwargs)
            x = the_input(args, kwargs)
            frozen = self._plain(x)
            return y + sum(self._at_strength(x, name) - frozen for name in added)

        with replaced(base, forward=with_changes):
            return self.base_layer(*args, **kwargs)

    def _is_plain_weight(self, name: str) -> bool:
        """Return whether this call applies an adapter as phi(W), without dropout on the input."""
        state = self.adapters[name]
        return state.method.formula.is_linear and not (self.training and state.dropout)

    def _at_strength(self, x: Tensor, name: str) -> Tensor:
        """Return the output with one adapter, whose change of the frozen output is multiplied by its strength."""
        y, strength = self._adapted(x, name), self.adapters[name].strength
        if strength == 1.0:
            return y
        return at_strength(y, self._plain(x), strength)

    def _adapted(self, x: Tensor, name: str) -> Tensor:
        """Return the output with one adapter."""
        self._check_filled(name)
        return Evaluation(self, name)(x)

    def _mixed_batch(self, adapter_names: Sequence[str], args: Args, kwargs: Kwargs) -> Any:
        """Apply to every row of the batch its own adapter."""
        if self.merged:
            raise SubspaceError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        wanted = [name if name in self.subspace_params else BASE for name in adapter_names]

        def compute(x: Tensor) -> Tensor:
            if len(x) != len(wanted):
                raise SubspaceError(
                    "Length of `adapter_names` should be the same as the number of inputs, but got "
                    f"{len(wanted)} and {len(x)} respectively."
                )
            return mixed(self, wanted, x)

        return self._called(compute, lambda *args, **kwargs: self._mixed_through(wanted, args, kwargs), args, kwargs)

    def _mixed_through(self, wanted: Sequence[str], args: Args, kwargs: Kwargs) -> Tensor:
        """Call the base layer's custom forward on all rows, once for each adapter."""

        def part(names: list[str], rows: list[int]) -> Tensor:
            y = self._through(names, args, kwargs)
            if not isinstance(y, Tensor) or len(y) != len(wanted):
                raise SubspaceError(
                    f"adapter_names cannot be used here: the output of a {type(self.get_base_layer()).__name__} is not "
                    "one row for each row of the batch"
                )
            return chosen_rows(y, rows)

        return by_adapter(wanted, part)

    def _check_filled(self, name: str) -> None:
        if self.adapters[name].awaits_mask:
            raise SubspaceError(
                f"the mask of adapter {name!r} is chosen from data and not loaded: load the adapter, or call calibrate"
            )

    def _environment(self, name: str, weight: Tensor | None = None, bias: Tensor | None = None) -> dict[str, Any]:
        """Return the formula's environment, at the frozen weight and bias or at others."""
        state = self.adapters[name]
        if state.computed:
            self.follow_moves(name)
        bias = self.frozen_bias if weight is None else bias
        env: dict[str, Any] = environment(
            state.method,
            self.frozen_matrix if weight is None else self.kind.matrix(weight),
            self.subspace_params[name],  # type: ignore[arg-type]
            self.subspace_constants[name]._buffers,  # type: ignore[arg-type]
            state.scale,
            bias,
            self.kind.one_hot,
            self._plain if state.method.formula.wraps_norm else None,
        )
        return env
