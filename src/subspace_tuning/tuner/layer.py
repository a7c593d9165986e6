"""The one layer that hosts every method on every kind of module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra import Plan, Sizes, plan
from ..algebra.names import CHOSEN_SHAPES, start_of
from ..algebra.nodes import Affine
from ..errors import SubspaceError
from ..methods import Method, environment, initial_factors
from .calling import (
    BASE,
    Args,
    CalledOnly,
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
from .compat import BufferDict, set_layer_requires_grad
from .evaluation import Evaluation
from .following import follow_loaded
from .kinds import kind_of
from .merging import MergingLayer
from .parametrised import compute
from .watch import Watch
from .weights import bring_back, is_offloaded, whole

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


class SubspaceLayer(MergingLayer):
    """A frozen module with adapters: y = x @ phi(W) + b.

    With several active adapters y is the frozen output plus the sum of what each would change at the frozen weight, so
    their order does not matter.
    """

    adapter_layer_names = ("subspace_params",)
    other_param_names = (
        "subspace_constants",
        "method",
        "r",
        "alpha",
        "scaling",
        "strength",
        "dropout",
        "patterns",
        "gate_weight",
        "sizes",
        "_plans",
        "computed",
    )

    def __init__(self, base_layer: nn.Module, called_elsewhere: bool = False) -> None:
        super().__init__()
        kind = kind_of(base_layer)
        assert kind is not None
        compute(base_layer)
        self.base_layer = base_layer
        self.kind = kind
        self.subspace_params = nn.ModuleDict()
        self.subspace_constants = nn.ModuleDict()
        self.method = {}
        self.r = {}
        self.alpha: dict[str, float] = {}
        self.scaling = {}  # s
        self.strength = {}  # t in W + t (phi(W) - W)
        self.patterns: dict[str, tuple[tuple[str, ...], float]] = {}  # the penalties on A and B, and their weight
        self.gate_weight: dict[str, float] = {}
        self.unfilled: set[str] = set()  # adapters whose mask has yet to be loaded
        self.dropout: dict[str, float] = {}
        self.sizes = {}
        self._plans: dict[str, tuple[Plan, Plan]] = {}  # in training, in evaluation
        self.computed = {}
        self._watch = Watch()
        self._evaluation: Evaluation | None = None  # of the state in which the layer was called last
        self._given = set()
        self._unfrozen: set[str] | None = set()  # None: to be looked up
        self._disable_adapters = False
        self.merged_adapters = []
        self._frozen, self._replaced = {}, []
        self.called_elsewhere = called_elsewhere
        self.reached = False  # called, or read in place of a call
        self._knows_forward = kind.knows(base_layer)
        self.in_features, self.out_features = self.kind.matrix(self.frozen_weight).shape
        self.register_load_state_dict_post_hook(follow_loaded)  # type: ignore[no-untyped-call]
        self.train(base_layer.training)  # a second adapter may come to a model that is in evaluation

    def update_layer(
        self,
        adapter_name: str,
        method: Method,
        r: int,
        alpha: float,
        *,
        scale: float | None = None,
        dropout: float = 0.0,
        patterns: tuple[tuple[str, ...], float] = ((), 0.0),
        gate_weight: float = 0.0,
        entries: int = 0,
        directions: int = 0,
        positions: Tensor | None = None,
        init_weights: bool = True,
        save_constants: bool = False,
        inference_mode: bool = False,
    ) -> None:
        """Give the layer an adapter, or replace the one of this name. ``scale`` is alpha / r if it is not given."""
        self.follow(thoroughly=True)
        weight = self.kind.matrix(self.frozen_weight)
        window = self.kind.window(self.get_base_layer())
        method = method.on_axes(len(window)) if window else method
        scale = alpha / r if scale is None else scale
        one_hot = self.kind.one_hot
        if init_weights:
            method.check_start(r, one_hot)
        sizes = Sizes(self.in_features, self.out_features, r, entries, directions, window)
        factors = initial_factors(
            method,
            weight,
            r,
            one_hot=one_hot,
            random=not init_weights,
            scale=scale,
            entries=entries,
            directions=directions,
            window=window,
            positions=positions,
        )
        parameters = {name: tensor.to(weight.dtype) for name, tensor in factors.parameters.items()}  # peft may raise it
        self.subspace_params[adapter_name] = nn.ParameterDict(parameters)
        self.method[adapter_name] = method
        self.r[adapter_name] = r
        self.alpha[adapter_name] = alpha
        self.scaling[adapter_name] = scale
        self.strength[adapter_name] = 1.0
        self.patterns[adapter_name] = patterns
        self.gate_weight[adapter_name] = gate_weight
        self.unfilled.discard(adapter_name)
        if method.formula.masked and method.needs_calibration and positions is None and init_weights and entries:
            self.unfilled.add(adapter_name)
        self.dropout[adapter_name] = dropout
        self.sizes[adapter_name] = sizes
        self._choose_plans(adapter_name)
        constants = BufferDict(factors.constants, persistent=save_constants)
        # What nothing but the file can give back: drawn starts, masks, chosen directions.
        drawn = [start_of(name) for name, anchored in method.anchors(one_hot).items() if not anchored]
        for name in {*drawn, *method.formula.masked, *CHOSEN_SHAPES} & set(constants):
            constants.register_buffer(name, constants[name], persistent=True)
        _ = method.readings  # as compiled code could not, see `derive`
        method.formula.derive()
        self.subspace_constants[adapter_name] = constants
        self.computed[adapter_name] = self.names_computed(adapter_name)
        if sum(map(bool, self.computed.values())) == 1:
            self._watch.remember(self.frozen_weight)
        self.unfrozen.add(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _choose_plans(self, adapter_name: str) -> None:
        """Choose how to evaluate an adapter where the weight is."""
        formula, sizes, device = self.method[adapter_name].formula, self.sizes[adapter_name], self.frozen_weight.device
        dropout = 0.0 if self.kind.one_hot else self.dropout[adapter_name]  # of indices there is none to drop
        self._plans[adapter_name] = (
            plan(formula, sizes, training=True, dropout=dropout, device=device.type),
            plan(formula, sizes, training=False, device=device.type),
        )

    def train(self, mode: bool = True) -> SubspaceLayer:
        """Set the mode. What evaluation kept is forgotten, also if the mode stays the same."""
        self._evaluation = None
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SubspaceLayer:
        """Move or cast the layer; on another type of device other plans are the cheapest."""
        before = self.frozen_weight.device.type
        self._evaluation = None
        super()._apply(fn, recurse)
        if self.frozen_weight.device.type != before:
            for name in self._plans:
                self._choose_plans(name)
        return self

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the base layer's device, and not to its precision as peft does.

        Singular vectors in a low precision are not orthogonal, and loaded factors stay what they were when saved.
        """
        for tensors in (self.subspace_params, self.subspace_constants):
            if adapter_name in tensors and not any(
                parameter.is_meta for parameter in tensors[adapter_name].parameters()
            ):
                tensors[adapter_name].to(self.frozen_weight.device if device is None else device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load as torch does, but tell an adapter of another base model in one line."""
        for adapter in list(self.unfilled):
            if any(key.startswith(f"{prefix}subspace_constants.{adapter}.") for key in state_dict):
                self.unfilled.discard(adapter)
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

    # Many adapters: what peft does with each of them is done with the few that it changes.

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

    # What others find on the layer

    def __getattr__(self, name: str) -> Any:
        """Return a public attribute of the base layer, such as ``stride`` or ``eps``, that the layer itself has not."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "base_layer" or hasattr(type(self), name):
                raise
            return getattr(self.base_layer, name)

    @property
    def applied(self) -> list[str]:
        """The adapters that a call applies: the active ones, none while they are disabled or merged."""
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if name in self.subspace_params]

    @property
    def weight(self) -> Tensor:
        """The weight that a call applies: phi(W), differentiable, for code that reads it and does not call the layer.

        It is formed anew at every access, and without dropout. If the formula has no dense form only dtype, shape and
        device can be read. The frozen one is ``frozen_weight``.
        """
        weight: Tensor = self.get_base_layer().weight  # type: ignore[assignment]
        names = self.applied
        if not names:
            return weight
        opaque = next((name for name in names if not self.has_dense_form(name)), None)
        if opaque is None:
            self.reached = True
            return self._effective(names)["weight"]
        return weight if torch.compiler.is_compiling() else CalledOnly.of(weight, self.method[opaque].name)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The bias that a call applies, None if there is none (an embedding has not even the attribute)."""
        names = [name for name in self.applied if isinstance(self.method[name].formula.evaluated, Affine)]
        names = [name for name in names if self.has_dense_form(name)]
        return self._effective(names)["bias"] if names else getattr(self.get_base_layer(), "bias", None)

    # Strength: peft's and diffusers' calls to weigh an adapter. It is not saved.

    def set_scale(self, adapter: str, scale: float) -> None:
        """Weigh an adapter: the layer's weight is W + scale * (phi(W) - W). A merged weight stays as it was merged."""
        if adapter in self.strength:
            self.strength[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of the active adapters."""
        for name in self.active_adapters:
            self.set_scale(name, self.strength.get(name, 1.0) * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strength of the active adapters, or set it back to 1 if ``scale`` is not given."""
        for name in self.active_adapters:
            self.set_scale(name, 1.0 if scale is None else self.strength.get(name, 1.0) / scale)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_evaluation": None}  # a copy is bound to nothing of this layer

    # Forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the base layer's output with phi(W) for the active adapters, or row by row for ``adapter_names``.

        A base layer with hooks, or with a forward of its own, is called as it is: hooks run around the adapted forward,
        and an own forward finds phi(W) in place of its weight.
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
        """Whether accelerate keeps the base layer or an active adapter elsewhere until they run."""
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
        """Compute the output, inside the base layer's hooks if it has any, or go through a forward of its own."""
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
        return type(base).forward(base, x)  # type: ignore[no-any-return]

    def _outputs(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Return the output with some adapters: the frozen one plus what each of them changes at the frozen weight."""
        base = self.get_base_layer()
        if names and self.kind.forms_weight(base) and all(map(self._is_plain_weight, names)):
            with tensors_replaced(base, self._effective(names)):
                return self._plain(x)
        if len(names) == 1:
            return self._at_strength(x, names[0])
        frozen = self._plain(x)
        return frozen if not names else frozen + sum(self._at_strength(x, name) - frozen for name in names)

    def _effective(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return weight and bias as a call applies them with these adapters."""
        for name in names:
            self._check_filled(name)
        bias = self.frozen_bias
        tensors = {"weight": self.frozen_weight} | ({} if bias is None else {"bias": bias})
        return self._changed(tensors, names, self.training)

    def _through(self, names: Sequence[str], args: Args, kwargs: Kwargs) -> Any:
        """Call a forward of the base layer's own with phi(W) in place of W.

        If it only replaced the known forward in this one module, what has no dense form is added to its output.
        """
        base = self.get_base_layer()
        for name in names:
            problem = own_forward_problem(base, self.kind, self.method[name], self.training * self.dropout[name])
            if problem is not None:
                raise SubspaceError(problem)
        dense_names = [name for name in names if self.method[name].formula.is_linear]
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
        """Whether this call of an adapter is one with phi(W), and drops nothing of the input."""
        return self.method[name].formula.is_linear and not (self.training and self.dropout[name])

    def _at_strength(self, x: Tensor, name: str) -> Tensor:
        """Return the output with one adapter, its change of the frozen output times the adapter's strength."""
        y, strength = self._adapted(x, name), self.strength[name]
        if strength == 1.0:
            return y
        frozen = self._plain(x)
        return frozen + strength * (y - frozen)

    def _adapted(self, x: Tensor, name: str) -> Tensor:
        """Return the output with one adapter."""
        self._check_filled(name)
        return Evaluation(self, name)(x)

    def _mixed_batch(self, adapter_names: Sequence[str], args: Args, kwargs: Kwargs) -> Any:
        """Give every row of the batch its own adapter."""
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
            return by_adapter(wanted, lambda names, rows: self._outputs(chosen_rows(x, rows), names))

        return self._called(compute, lambda *args, **kwargs: self._mixed_through(wanted, args, kwargs), args, kwargs)

    def _mixed_through(self, wanted: Sequence[str], args: Args, kwargs: Kwargs) -> Tensor:
        """Call a forward of the base layer's own for all rows, once for each adapter."""

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
        if name in self.unfilled:
            raise SubspaceError(
                f"adapter {name!r} was chosen from data and its mask is not loaded: load the adapter, or call calibrate"
            )

    def _environment(self, name: str, weight: Tensor | None = None, bias: Tensor | None = None) -> dict[str, Any]:
        """Return what the formula's names stand for, at the frozen weight and bias or at others."""
        if self.computed[name]:
            self.follow_moves(name)
        if weight is None:
            weight, bias = self.frozen_weight, self.frozen_bias
        env: dict[str, Any] = environment(
            self.method[name],
            self.kind.matrix(weight),
            self.subspace_params[name],  # type: ignore[arg-type]
            self.subspace_constants[name]._buffers,  # type: ignore[arg-type]
            self.scaling[name],
            bias,
            self.kind.one_hot,
            self._plain if self.method[name].formula.wraps_norm else None,
        )
        return env

    def factor(self, name: str, adapter_name: str = "default") -> Tensor:
        """Return the value of a factor as it stands in the formula: its parameter, or its anchor plus it."""
        value: Tensor = self._environment(adapter_name)[name]
        return value

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether ``peft.convert_to_lora`` can approximate the adapter."""
        method = self.method.get(adapter_name)
        if method is None or not isinstance(self, SubspaceLinear):
            return False
        return method.formula.is_linear and not method.formula.names_bias

    def __repr__(self) -> str:
        return "subspace." + super().__repr__()


class SubspaceLinear(SubspaceLayer):
    """A layer on a Linear or a Conv1D; peft finds adapted linear layers by the word in the class's name."""


class SubspaceEmbedding(SubspaceLayer):
    """A layer on an embedding."""


class SubspaceConv(SubspaceLayer):
    """A layer on a convolution in one, two or three dimensions."""


class SubspaceNorm(SubspaceLayer):
    """A layer on a normalisation, of which only the bias is adapted."""
