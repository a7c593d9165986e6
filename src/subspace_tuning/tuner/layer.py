"""The layer that hosts every method on every kind of module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra import Plan, Sizes, plan
from ..algebra.names import CHOSEN_SHAPES, start_of
from ..algebra.nodes import Affine
from ..errors import SubspaceError
from ..methods import Method, initial_factors
from .calling import CalledOnly
from .compat import BufferDict
from .following import follow_loaded
from .kinds import ConvKind, EmbeddingKind, ParameterKind, kind_of
from .parametrised import compute
from .quantised import Settings
from .running import RunningLayer
from .stacks import factors_of_each
from .state import AdapterState
from .watch import Watch


class SubspaceLayer(RunningLayer):
    """A frozen module with adapters: y = x @ phi(W) + b.

    With several active adapters, y is the frozen output plus the sum of their changes at the frozen weight, so their
    order does not matter.
    """

    adapter_layer_names = ("subspace_params",)
    other_param_names = ("subspace_constants", "adapters")

    def __init__(
        self, base_layer: nn.Module, called_elsewhere: bool = False, quantisation: Settings | None = None
    ) -> None:
        super().__init__()
        kind = kind_of(base_layer)
        assert kind is not None
        compute(base_layer)
        self.base_layer = base_layer
        self.kind = kind
        self.subspace_params = nn.ModuleDict()
        self.subspace_constants = nn.ModuleDict()
        self.adapters: dict[str, AdapterState] = {}
        self._watch = Watch()
        self._forget()
        self._given = set()
        self._disable_adapters = False
        self.merged_adapters = []
        self._frozen, self._replaced = {}, []
        self.called_elsewhere = called_elsewhere
        self.quantisation, self.requantised = quantisation or {}, None
        self.reached = False  # called, or read in place of a call
        self._knows_forward = kind.knows(base_layer)
        *stack, self.in_features, self.out_features = self.frozen_matrix.shape
        self.stacked, self.copies = bool(stack), stack[0] if stack else 1
        self.register_load_state_dict_post_hook(follow_loaded)  # type: ignore[no-untyped-call]
        self.train(base_layer.training)  # a second adapter may be added to a model in evaluation mode

    def update_layer(
        self,
        adapter_name: str,
        method: Method,
        r: int,
        alpha: float,
        *,
        scale: float | None = None,
        dropout: float = 0.0,
        patterns: tuple[str, ...] = (),
        pattern_weight: float = 0.0,
        gate_weight: float = 0.0,
        entries: int = 0,
        directions: int = 0,
        positions: Tensor | None = None,
        init_weights: bool = True,
        save_constants: bool = False,
        inference_mode: bool = False,
    ) -> None:
        """Add an adapter to the layer, or replace the one of this name. ``scale`` is alpha / r by default."""
        self.follow(thoroughly=True)
        weight = self.kind.matrix(self.frozen_weight)
        window = self.kind.window(self.get_base_layer())
        method = method.on_axes(len(window)) if window else method
        scale = alpha / r if scale is None else scale
        one_hot = self.kind.one_hot
        if init_weights:
            method.check_start(r, one_hot)
        sizes = Sizes(self.in_features, self.out_features, r, entries, directions, window)
        start = partial(
            initial_factors,
            method,
            rank=r,
            one_hot=one_hot,
            random=not init_weights,
            scale=scale,
            entries=entries,
            directions=directions,
            window=window,
            positions=positions,
        )
        factors = factors_of_each(start, weight)
        parameters = {name: tensor.to(weight.dtype) for name, tensor in factors.parameters.items()}  # peft may raise it
        # Pairs keep the formula's order, in which norms are summed; a dict would be sorted by name.
        self.subspace_params[adapter_name] = nn.ParameterDict(parameters.items())
        chosen_from_data = bool(method.formula.masked) and method.needs_calibration
        state = AdapterState(
            method=method,
            r=r,
            alpha=alpha,
            scale=scale,
            sizes=sizes,
            plans=self._plans(method, sizes, dropout),
            dropout=dropout,
            patterns=patterns,
            pattern_weight=pattern_weight,
            gate_weight=gate_weight,
            computed=self.names_computed(method, sizes, scale),
            awaits_mask=chosen_from_data and positions is None and init_weights and entries > 0,
            copies=self.copies,
        )
        constants = BufferDict(factors.constants, persistent=save_constants)
        # What can only be restored from the file: drawn starts, masks, chosen directions.
        drawn = [start_of(name) for name, anchored in method.anchors(one_hot).items() if not anchored]
        restored = {*drawn, *method.formula.masked, *CHOSEN_SHAPES}
        for name in (name for name in factors.constants if name in restored):
            constants.register_buffer(name, constants[name], persistent=True)
        _ = method.readings  # compiled code could not, see `derive`
        method.formula.derive()
        self.subspace_constants[adapter_name] = constants
        if state.computed and not self.follows:
            self._watch.remember(self.frozen_weight)
        self.adapters[adapter_name] = state
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _plans(self, method: Method, sizes: Sizes, dropout: float) -> tuple[Plan, Plan]:
        """Return a method's plans for the weight's device, in training and in evaluation."""
        device, drops = self.frozen_matrix.device.type, 0.0 if self.kind.one_hot else dropout  # no dropout on indices
        return (
            plan(method.formula, sizes, training=True, dropout=drops, device=device, opaque=self.kind.opaque),
            plan(method.formula, sizes, training=False, device=device, opaque=self.kind.opaque),
        )

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, and what was kept of it."""
        self._forget()
        super().delete_adapter(adapter_name)

    def _forget(self) -> None:
        """Forget what was kept from one call to the next."""
        self._evaluation, self._mixtures = None, {}

    def train(self, mode: bool = True) -> SubspaceLayer:
        """Set the mode. Whatever evaluation kept is discarded, even if the mode stays the same."""
        self._forget()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SubspaceLayer:
        """Move or cast the layer; another type of device needs other plans."""
        before = self.frozen_matrix.device.type
        self._forget()
        super()._apply(fn, recurse)
        if self.frozen_matrix.device.type != before:
            for name, state in self.adapters.items():
                self._change(name, plans=self._plans(state.method, state.sizes, state.dropout))
        return self

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the base layer's device, but not to its precision as peft does.

        Singular vectors in a low precision are not orthogonal, and loaded factors must equal the saved ones.
        """
        for tensors in (self.subspace_params, self.subspace_constants):
            if adapter_name in tensors and not any(
                parameter.is_meta for parameter in tensors[adapter_name].parameters()
            ):
                tensors[adapter_name].to(self.frozen_matrix.device if device is None else device)

    def raise_precision(self, adapter_name: str) -> None:
        """Cast factors of a low precision to float32 by new parameters, as peft does."""
        factors = self.subspace_params[adapter_name] if adapter_name in self.subspace_params else nn.ParameterDict()
        for name, factor in list(factors.named_parameters()):
            if factor.is_floating_point() and factor.dtype.itemsize < torch.float32.itemsize:
                setattr(factors, name, nn.Parameter(factor.data.float(), factor.requires_grad))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load as torch does, but report an adapter of another base model in one line."""
        for adapter, state in self.adapters.items():
            constants = f"{prefix}subspace_constants.{adapter}."
            if state.awaits_mask and any(key.startswith(constants) for key in state_dict):
                self._change(adapter, awaits_mask=False)
        for name, parameter in self.subspace_params.named_parameters():
            loaded = state_dict.get(f"{prefix}subspace_params.{name}", parameter)
            if loaded.shape != parameter.shape:
                raise SubspaceError(
                    f"{prefix.rstrip('.')}: the adapter's factor {name.rpartition('.')[2]} has the shape "
                    f"{tuple(loaded.shape)}, here it needs {tuple(parameter.shape)}: it was trained on "
                    "another base model"
                )
        self.expect(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return a public attribute of the base layer, such as ``stride`` or ``eps``, that the layer itself lacks."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "base_layer" or hasattr(type(self), name):
                raise
            return getattr(self.base_layer, name)

    @property
    def weight(self) -> Tensor:
        """The weight that a call applies: phi(W), differentiable, for code that reads it instead of calling the layer.

        It is formed at every access, without dropout. If the formula has no dense form, only dtype, shape and device
        can be read. The frozen weight is ``frozen_weight``.
        """
        weight: Tensor = self.get_base_layer().weight  # type: ignore[assignment]
        names = self.applied
        if not names:
            return weight
        opaque = next((name for name in names if not self.has_dense_form(name)), None)
        if opaque is None:
            self.reached = True
            return self._effective(names)["weight"]
        return weight if torch.compiler.is_compiling() else CalledOnly.of(weight, self.adapters[opaque].method.name)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The bias that a call applies, or None (an embedding does not even have the attribute)."""
        names = [name for name in self.applied if isinstance(self.adapters[name].method.formula.evaluated, Affine)]
        names = [name for name in names if self.has_dense_form(name)]
        return self._effective(names)["bias"] if names else getattr(self.get_base_layer(), "bias", None)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_evaluation": None, "_mixtures": {}}  # a copy shares nothing bound to this layer

    def factor(self, name: str, adapter_name: str = "default") -> Tensor:
        """Return the value of a factor in the formula: its parameter, or its anchor plus the parameter."""
        value: Tensor = self._environment(adapter_name)[name]
        return value

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return whether ``peft.convert_to_lora`` can approximate the adapter."""
        if adapter_name not in self.adapters or not isinstance(self, SubspaceLinear):
            return False
        formula = self.adapters[adapter_name].method.formula
        return formula.is_linear and not formula.names_bias

    def __repr__(self) -> str:
        return "subspace." + super().__repr__()


class SubspaceLinear(SubspaceLayer):
    """A layer on a Linear or a Conv1D; peft finds adapted linear layers by the word in the class's name."""


class SubspaceEmbedding(SubspaceLayer):
    """A layer on an embedding."""


class SubspaceConv(SubspaceLayer):
    """A layer on a convolution in one, two or three dimensions."""


class SubspaceNorm(SubspaceLayer):
    """A layer on a normalisation, whose bias is adapted."""


class SubspaceParameter(SubspaceLayer):
    """A layer on a parameter that its module reads in a forward of its own. Nobody calls it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise SubspaceError: there are no rows here, only ``weight``."""
        raise SubspaceError("a parameter is not called: call the module that reads it")


def layer_class(module: nn.Module) -> type[SubspaceLayer]:
    """Return the class of the layer for a module."""
    kind = kind_of(module)
    if isinstance(kind, ParameterKind):
        return SubspaceParameter
    if kind is not None and kind.only_bias:
        return SubspaceNorm
    if isinstance(kind, EmbeddingKind):
        return SubspaceEmbedding
    return SubspaceConv if isinstance(kind, ConvKind) else SubspaceLinear
