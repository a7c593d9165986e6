"""Merging: writes phi(W) into the base layer, and restores the frozen weight bit for bit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from ..algebra.nodes import Affine, Matrix
from ..algebra.rows import wide
from ..errors import SubspaceError
from .following import FollowingLayer
from .parametrised import is_computed, plain_copy
from .quantised import Door, Settings
from .requantised import Requantised
from .stacks import dense_each
from .weights import check_writable

_W = Matrix("W")


class MergingLayer(FollowingLayer):
    """The part of a ``SubspaceLayer`` that merges its adapters.

    While merged, the base layer holds new parameters, and the frozen ones are set aside. They are never written to, so
    another module that shares them keeps the frozen weight, as before merging. If the weight is computed, or another
    part of the model calls the same module, a plain copy replaces the base layer; if it is quantised, a copy with a
    requantised weight.
    """

    subspace_params: nn.ModuleDict
    merged_adapters: list[str]
    called_elsewhere: bool  # the base layer also occurs elsewhere in the model
    stacked: bool  # W is a stack of matrices, and so are all tensors of its adapters
    quantisation: Settings  # how the model was quantised
    requantised: Requantised | None  # while merged into a quantised weight

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write phi(W) into the base layer. The frozen parameters are set aside, so unmerging is exact.

        Raises SubspaceError if the formula has no dense form, or, with ``safe_merge``, if the result is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.subspace_params]
        if not names:
            return
        merged = self.merged_with(names, safe_merge)
        if isinstance(self.frozen_matrix, Door):
            self._requantise(self.frozen_matrix, merged)
            self.merged_adapters.extend(names)
            return
        if not self._frozen:
            self._set_aside()
        base = self.get_base_layer()
        for key, tensor in merged.items():
            setattr(base, key, nn.Parameter(tensor, requires_grad=self._frozen[key].requires_grad))
        self.merged_adapters.extend(names)

    def _requantise(self, door: Door, merged: dict[str, Tensor]) -> None:
        """Replace a quantised base layer by a copy that holds the merged weight and bias."""
        before, frozen = door.module, door.dequantise().T
        same = torch.equal(merged["weight"], frozen)  # only the bias changes
        self.base_layer = door.copied() if same else door.requantised(merged["weight"], self.quantisation)
        if not same:
            stored = self.kind.numbers(self.base_layer)
            self.requantised = Requantised.measured(stored, merged["weight"], frozen)
        if "bias" in merged:
            self.base_layer.bias = nn.Parameter(merged["bias"], requires_grad=False)
        self._replaced = [before]

    def _set_aside(self) -> None:
        base = self.get_base_layer()
        self._frozen = self.frozen_tensors()
        if is_computed(base) or self.called_elsewhere:
            frozen = {key: tensor.detach().clone() for key, tensor in self._frozen.items()}
            self._frozen = {key: nn.Parameter(tensor, requires_grad=False) for key, tensor in frozen.items()}
            self._replaced = [base]
            self.base_layer = plain_copy(base)

    def merged_with(self, names: Sequence[str], safe_merge: bool = False) -> dict[str, Tensor]:
        """Return the weight and bias after merging these adapters. Raises SubspaceError as ``merge`` does."""
        for name in names:
            self.check_merge(name)
        merged = self._merged([*self.merged_adapters, *names])
        for key, tensor in merged.items() if safe_merge else ():
            if not torch.isfinite(tensor).all():
                what = "weights" if key == "weight" else key
                raise SubspaceError(
                    f"NaNs detected in the merged {what}. The adapter {', '.join(names)} seems to be broken: they are "
                    "not all finite"
                )
        return merged

    def unmerge(self) -> None:
        """Restore the frozen parameters."""
        if self._replaced:
            self.base_layer = self._replaced.pop().train(self.training)
            self._frozen = {}
        base = self.get_base_layer()
        for key, parameter in self._frozen.items():
            parameter.data = parameter.data.to(getattr(base, key).data)  # the model may have been moved or cast
            setattr(base, key, parameter)
        self._frozen, self.requantised = {}, None
        self.merged_adapters.clear()

    def has_dense_form(self, name: str) -> bool:
        """Return whether the layer's weight and bias can express an adapter: it is linear, and its bias has a place."""
        formula = self.adapters[name].method.formula
        return formula.is_linear and not (formula.names_bias and self.frozen_bias is None)

    def check_merge(self, name: str) -> None:
        """Raise SubspaceError if an adapter cannot be merged into this layer."""
        self._check_dense(name)
        if isinstance(self.frozen_matrix, Door) and self.adapters[name].method.formula.matrix != _W:
            self.frozen_matrix.check_requantising(self.quantisation)

    def _check_dense(self, name: str) -> None:
        """Raise SubspaceError if phi(W) of an adapter cannot be formed here."""
        check_writable(self.get_base_layer())
        method = self.adapters[name].method
        if not method.formula.is_linear:
            raise SubspaceError(
                f"method {method.name!r} cannot be merged: {method.formula} has a nonlinearity, "
                "so phi(W) is not a matrix"
            )
        if method.formula.names_bias and self.frozen_bias is None:
            raise SubspaceError(f"method {method.name!r} cannot be merged into a layer without a bias")

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return phi(W) - W in the base layer's layout. Raises SubspaceError if there is no dense form."""
        self._check_dense(adapter_name)
        return self._merged([adapter_name])["weight"] - self.frozen_weight.data

    @torch.no_grad()
    def _merged(self, names: Sequence[str]) -> dict[str, Tensor]:
        self.follow(thoroughly=True)
        return self._changed({key: parameter.data for key, parameter in self.frozen_tensors().items()}, names)

    def _changed(self, frozen: dict[str, Tensor], names: Sequence[str], training: bool = False) -> dict[str, Tensor]:
        """Return weight and bias with the changes of these adapters at the frozen ones, summed in float32 or wider.

        There is a bias if the layer has one or a formula adds one. The result is differentiable. Gates are sampled if
        ``training``.
        """
        widened = {key: tensor.to(wide(tensor.dtype)) for key, tensor in frozen.items()}
        matrix = W = self.kind.matrix(widened["weight"])
        changed = dict(widened)
        for name in names:
            state, env = self.adapters[name], self._environment(name, widened["weight"], widened.get("bias"))
            strength, expression = state.strength, state.method.formula.evaluated
            expression = expression.drawn() if training else expression
            if isinstance(expression, Affine):
                delta = strength * self._bias_delta(name, env)
                changed["bias"] = changed["bias"] + delta if "bias" in changed else delta
                expression = expression.matrix
            if expression != _W:
                phi = self.kind.keep_rows(self.get_base_layer(), dense_each(expression, env, self.stacked), W)
                matrix = phi if matrix is W and strength == 1.0 else matrix + strength * (phi - W)
        changed["weight"] = self.kind.weight(matrix, frozen["weight"].shape)
        dtypes = {key: frozen.get(key, frozen["weight"]).dtype for key in changed}
        return {key: tensor.to(dtypes[key]).contiguous() for key, tensor in changed.items()}

    def _bias_delta(self, name: str, env: dict[str, Any]) -> Tensor:
        expression = self.adapters[name].method.formula.evaluated
        assert isinstance(expression, Affine)
        delta: Tensor = expression.bias.compact(env) - env["b"]
        return delta

    @abstractmethod
    def _environment(self, name: str, weight: Tensor | None = None, bias: Tensor | None = None) -> dict[str, Any]:
        """Return the formula's environment, at the frozen weight and bias or at others."""


def check_merge(
    layers: Iterable[tuple[str, MergingLayer]], adapter_names: Sequence[str] | None, safe_merge: bool
) -> None:
    """Raise SubspaceError if any of the named layers cannot be merged, so that all or none are."""
    for module_name, layer in layers:
        wanted = layer.active_adapters if adapter_names is None else adapter_names
        names = [name for name in wanted if name in layer.subspace_params]
        try:
            for name in names:
                layer.check_merge(name)
            if safe_merge:
                layer.merged_with([name for name in names if name not in layer.merged_adapters], safe_merge)
        except SubspaceError as error:
            raise SubspaceError(f"{error} (in {module_name})") from None
