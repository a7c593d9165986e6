"""How a layer evaluates one adapter, with every lookup and every constant computation done only once.

A layer keeps the evaluation of its current state (:meth:`Evaluation.bound`). The next call checks by a few attributes
that the state is the same, and evaluates. In any other state the layer takes the slow path, which looks everything up.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.cuda import is_current_stream_capturing
from torch.utils.checkpoint import checkpoint

from ..algebra.evaluate import Fused, Stage, prepare
from ..algebra.evaluate.kernels import product_dtype
from ..algebra.nodes import Environment, Expression
from ..algebra.operators import reads_entries
from ..algebra.shapes import NodeShapes
from ..compat import functorch_is_active
from ..methods import environment
from .calling import forward_slot, has_hooks
from .kinds import NormKind
from .seen import Seen, unchanged
from .weights import is_offloaded

if TYPE_CHECKING:
    from .running import RunningLayer

KEPT_SHARE = 4  # tensors with fewer entries than W over this are kept between calls; larger ones cost memory


class Evaluation:
    """The evaluation of one adapter of a layer, in the layer's current mode."""

    def __init__(self, layer: RunningLayer, name: str) -> None:
        self.layer, self.name, self.training = layer, name, layer.training
        self.own, self.base = layer.base_layer, layer.get_base_layer()
        self.kind = layer.kind
        self.active = layer._active_adapter
        self.state = state = layer.adapters[name]
        self.plan = state.plans[0 if self.training else 1]
        self.factors = cast(nn.ParameterDict, layer.subspace_params[name])
        self.constants = layer.subspace_constants[name]
        self.scale = state.scale
        self.method, self.follows = state.method, bool(state.computed) and not self.kind.opaque
        formula = self.method.formula
        self.norm = layer._plain if formula.wraps_norm else None
        self.fusible = self.kind.fusible and self.own is self.base
        self.keeps_rows = self.kind.keeps_rows(self.base)
        # The kind of a normalisation, of which only the bias changes.
        self.beside = self.kind if isinstance(self.kind, NormKind) and not formula.wraps_norm else None
        self.adds_bias = not (formula.names_bias or formula.wraps_norm)
        self.count = len(self.factors)
        self.keeps = not (self.training or self.kind.opaque or self.beside is not None or self._is_raw())
        # Otherwise autograd would keep the entries of every quantised weight until the backward pass.
        self.repeats = self.kind.opaque and reads_entries(formula.evaluated, differentiably=True)
        self._shape: torch.Size | None = None  # of the last input, whose stage is in `_found`
        self._dtype: torch.dtype | None = None
        self._found: tuple[Stage, Fused | None]
        self._weight: list[Seen] = []  # W, when what is computed from it was last compared with it
        # Everything the formula reads, its environment and bias at that time, and by stage and precision what follows.
        self._seen: list[Seen] = []
        self._read: tuple[dict[str, Any], Tensor | None]
        self._kept: dict[tuple[int, torch.dtype | None], Any] = {}

    def _is_raw(self) -> bool:
        """Return whether there is nothing to keep: the plan multiplies the rows by the uncast factors themselves."""
        reading, weight = self.method.readings[1 if self.kind.one_hot else 0], self.layer.frozen_matrix
        rounded = any(factor.dtype != weight.dtype for factor in self.factors.values())
        return self.fusible and self.plan.keeps_nothing and not (rounded or reading.sums or reading.offsets)

    # The state

    @classmethod
    def bound(cls, layer: RunningLayer) -> Evaluation | None:
        """Return the evaluation for a call, or None if it needs more than the evaluation of one adapter.

        Also None if the base layer has hooks or a custom forward, or if accelerate holds its tensors.
        """
        names = layer.applied
        states = [layer.adapters[name] for name in names]
        if len(states) != 1 or states[0].awaits_mask or states[0].strength != 1.0:
            return None
        found = cls(layer, names[0])
        base, factors = found.base, found.factors
        if found.kind.forms_weight(base) and found.method.formula.is_linear:
            return None
        if any(map(is_offloaded, (base, factors, found.constants))) or has_hooks(base):
            return None
        known = layer._knows_forward and forward_slot(base) == "forward"
        return found if known and len(factors._parameters) == found.count and found.holds(layer) else None

    def holds(self, layer: RunningLayer) -> bool:
        """Return whether the layer is in the state to which this is bound. It makes no calls, which would cost time."""
        base, name, modules = self.base, self.name, layer._modules
        own = base.__dict__
        return (
            self.layer is layer
            and layer.training is self.training
            and layer._active_adapter is self.active
            and not layer._disable_adapters
            and not layer.merged_adapters
            and modules["base_layer"] is base
            and modules["subspace_params"]._modules[name] is self.factors  # type: ignore[union-attr]
            and modules["subspace_constants"]._modules[name] is self.constants  # type: ignore[union-attr]
            and layer.adapters[name] is self.state
            and "weight" in base._parameters
            and "forward" not in own
            and "_hf_hook" not in own
            and "_hf_hook" not in self.factors.__dict__
            and "_hf_hook" not in self.constants.__dict__
            and not (own["_forward_hooks"] or own["_forward_pre_hooks"])
            and not (own["_backward_hooks"] or own["_backward_pre_hooks"])
        )

    # Evaluation

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's output with the adapter."""
        # A bound evaluation keeps its results, but neither for autograd nor in a CUDA graph's own memory.
        keeps = self.keeps and self.layer._evaluation is self and not torch.is_grad_enabled()
        if not keeps or functorch_is_active() or (x.is_cuda and is_current_stream_capturing()):
            return self._at(x, *self.environment())
        return self._by_kept(x)

    def _at(self, x: Tensor, env: dict[str, Any], bias: Tensor | None) -> Tensor:
        """Evaluate the plan, computing everything that follows from its names now."""
        if self.beside is not None:
            frozen = self.layer._plain(x)
            change = self.layer._bias_delta(self.name, env)
            return frozen + self.beside.along(change, frozen.dim()).to(frozen.dtype)
        stage, fused = self._stage(x, env["W"])
        if fused is not None:
            return fused.apply(x, env)
        if self.repeats and torch.is_grad_enabled():
            run = partial(self.by_nodes, expression=stage.expression, env=env, bias=bias)
            return checkpoint(run, x, use_reentrant=False)  # type: ignore[no-any-return]
        return self.by_nodes(x, stage.expression, env, bias)

    def _stage(self, x: Tensor, weight: Tensor) -> tuple[Stage, Fused | None]:
        """Return the plan's expression for an input, and the kernel's form if it can be used."""
        if x.shape != self._shape or weight.dtype is not self._dtype:
            stage = self.plan.stage(self.kind.count_rows(self.base, x))
            fuses = stage.fused is not None and self.fusible and stage.fused.suits(weight)
            self._shape, self._dtype, self._found = x.shape, weight.dtype, (stage, stage.fused if fuses else None)
        return self._found

    def environment(self) -> tuple[dict[str, Any], Tensor | None]:
        """Return the formula's environment, and the frozen bias."""
        layer, tensors, parameters = self.layer, self.base._parameters, self.factors._parameters
        try:
            weight, bias = tensors["weight"], tensors["bias"]
        except KeyError:  # it is computed, or has no bias
            weight, bias = (None if self.kind.opaque else layer.frozen_weight), layer.frozen_bias  # type: ignore[assignment]
        if self.follows and not torch.compiler.is_compiling() and not unchanged(((weight,),), self._weight):
            layer.follow_moves(self.name)
            seen = Seen.of(weight)  # type: ignore[arg-type]
            self._weight = [] if seen is None else [seen]
        env: dict[str, Any] = environment(
            self.method,
            layer.frozen_matrix if self.kind.opaque else self.kind.matrix(weight),  # type: ignore[arg-type]
            parameters if len(parameters) == self.count else self.factors,  # type: ignore[arg-type]  # under FSDP
            self.constants._buffers,  # type: ignore[arg-type]
            self.scale,
            bias,
            self.kind.one_hot,
            self.norm,
            evaluated=True,
        )
        if bias is not None and "b" not in env and self.fusible:
            env["b"] = bias
        return env, bias

    @property
    def needs_frozen(self) -> bool:
        """Whether ``by_nodes`` needs the frozen output: to add to it, or to keep some of its rows."""
        return self.plan.adds_to_base_output or self.keeps_rows

    def by_nodes(
        self, x: Tensor, expression: Expression, env: Environment, bias: Tensor | None, frozen: Tensor | None = None
    ) -> Tensor:
        """Return the output by a stage's expression; ``frozen`` is the frozen output, if it is known."""
        kind, base = self.kind, self.base
        if frozen is None and self.needs_frozen:
            frozen = self.layer._plain(x)
        if frozen is not None and self.plan.adds_to_base_output:
            change = kind.run(base, expression, x, env, None).to(frozen.dtype)
            return frozen + (
                kind.keep_outputs(base, x, change, torch.zeros_like(change)) if self.keeps_rows else change
            )
        y = kind.run(base, expression, x, env, bias if self.adds_bias else None)
        return kind.keep_outputs(base, x, y, frozen) if frozen is not None and self.keeps_rows else y

    # In evaluation, what follows from factors and W alone is kept until one of them changes

    def _by_kept(self, x: Tensor) -> Tensor:
        tensors = self.factors._parameters.values(), self.constants._buffers.values(), self.base._parameters.values()
        if not unchanged(tensors, self._seen):
            env, bias = self.environment()  # which follows W
            seen = [Seen.of(tensor) for own in tensors for tensor in own if tensor is not None]
            if None in seen:
                return self._at(x, env, bias)
            # In this order, so that another thread that sees the new `_seen` sees the rest, too.
            self._kept, self._read, self._seen = {}, (env, bias), seen  # type: ignore[assignment]
        kept, (env, bias) = self._kept, self._read
        stage, fused = self._stage(x, env["W"])
        if fused is not None:
            if not fused.on_weight:  # all of phi(W) is formed
                return fused.apply(x, env)
            dtype = product_dtype(x)
            if (stage.rows, dtype) not in kept:
                kept[stage.rows, dtype] = fused.parts(env).settled(dtype)
            return fused.evaluate(x, kept[stage.rows, dtype], dtype)
        key = stage.rows, None
        if key not in kept:
            shape = NodeShapes(self.method.formula.shapes, self.state.sizes)
            prepared = prepare(stage.expression, shape, env["W"].numel() // KEPT_SHARE)
            kept[key] = prepared.expression, env | prepared.values(env)
        expression, env = kept[key]
        return self.by_nodes(x, expression, env, bias)


def at_strength(y: Tensor, frozen: Tensor, strength: Tensor | float) -> Tensor:
    """Return an adapted output with its change of the frozen one times a strength."""
    return frozen + (strength.to(y.dtype) if isinstance(strength, Tensor) else strength) * (y - frozen)
