"""Many adapters in one batch: the adapters of one form are the lanes of one evaluation.

Adapters have one form if they differ only in their numbers. Their tensors are stacked, and ``torch.vmap`` turns the
plan of one adapter into batched products. If that would stack matrices of W's size, or if the base layer must be called
with each weight, the adapters run one after the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.cuda import is_current_stream_capturing

from ..algebra.evaluate import Stage, prepare
from ..algebra.nodes import Expression, Leaf
from ..algebra.rows import wide
from ..algebra.shapes import NodeShapes
from ..compat import functorch_is_active
from .calling import BASE
from .evaluation import KEPT_SHARE, Evaluation, at_strength
from .seen import Seen, unchanged
from .weights import is_offloaded

if TYPE_CHECKING:
    from .running import RunningLayer

_KEPT = 2  # batches whose stacked tensors a layer keeps: a prompt and the tokens after it may differ
_FROZEN = ("W", "N", "b")  # what all adapters share
_STRENGTH = "<t>"  # not a valid name in a formula


def mixed(layer: RunningLayer, wanted: Sequence[str], x: Tensor) -> Tensor:
    """Return the output for a batch with an adapter per row, or none for ``__base__``.

    Without gradients, stacked tensors are kept for the next call with the same adapters, until one of them changes.
    """
    traced = torch.compiler.is_compiling() or functorch_is_active() or (x.is_cuda and is_current_stream_capturing())
    if traced or torch.is_grad_enabled():
        return Mixture(layer, wanted, x.device)(x)
    names, kept = tuple(wanted), layer._mixtures
    mixture = kept.get(names)
    if mixture is None or not mixture.holds():
        mixture = Mixture(layer, wanted, x.device)
        if mixture.remember():
            others = [item for item in kept.items() if item[0] != names]
            layer._mixtures = dict([*others[1 - _KEPT :], (names, mixture)])
    return mixture(x)


class Mixture:
    """A batch with its adapters: its rows, grouped by form, and the stacked tensors."""

    def __init__(self, layer: RunningLayer, wanted: Sequence[str], device: torch.device) -> None:
        self.layer, self.base = layer, layer.get_base_layer()
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(wanted):
            rows.setdefault(name, []).append(row)
        self.evaluations = {name: Evaluation(layer, name) for name in rows if name != BASE}
        groups: dict[Hashable, list[str]] = {}
        for name, own in rows.items():
            form = _form(self.evaluations[name]) if name != BASE else None
            groups.setdefault(name if form is None else (form, len(own)), []).append(name)
        self.parts = [
            _Part(layer, [self.evaluations.get(name) for name in g], len(rows[g[0]])) for g in groups.values()
        ]
        order = [row for group in groups.values() for name in group for row in rows[name]]
        self.order = None if order == list(range(len(wanted))) else torch.tensor(order, device=device)
        self.training = layer.training
        self.seen: list[Seen] = []

    def _read(self) -> Iterator[Sequence[Tensor | None]]:
        """Yield the tensors from which others are stacked; for a quantised layer, all except its weight."""
        layer, opaque = self.layer, self.layer.kind.opaque
        for name in self.evaluations:
            for part in (layer.subspace_params._modules[name], layer.subspace_constants._modules[name]):
                yield (*part._parameters.values(), *part._buffers.values())
        yield [tensor for name, tensor in self.base._parameters.items() if not (opaque and name == "weight")]

    def remember(self) -> bool:
        """Record the state of the tensors read, and return whether every change of them can be detected."""
        seen = [Seen.of(tensor) for tensors in self._read() for tensor in tensors if tensor is not None]
        self.seen = [one for one in seen if one is not None]
        return len(self.seen) == len(seen) and (self.layer.kind.opaque or "weight" in self.base._parameters)

    def holds(self) -> bool:
        """Return whether the layer, its weight and these adapters are unchanged."""
        layer, adapters = self.layer, self.layer.adapters
        return (
            layer.training is self.training
            and layer.get_base_layer() is self.base
            and all(adapters.get(name) is evaluation.state for name, evaluation in self.evaluations.items())
            and unchanged(self._read(), self.seen)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output for the batch."""
        x = x if self.order is None else x.index_select(0, self.order)
        y = _joined([part(rows) for part, rows in zip(self.parts, x.split([p.size for p in self.parts]), strict=True)])
        return y if self.order is None else torch.empty_like(y).index_copy(0, self.order, y)


def _form(evaluation: Evaluation) -> Hashable | None:
    """Return the key shared by adapters that can be evaluated together; None for one that is evaluated alone."""
    state, base, factors = evaluation.state, evaluation.base, evaluation.factors
    tensors = {**factors._parameters, **evaluation.constants._buffers}
    if (
        evaluation.training
        or evaluation.beside is not None
        or torch.compiler.is_compiling()
        or (evaluation.kind.forms_weight(base) and evaluation.method.formula.is_linear)
        or any(map(is_offloaded, (base, factors, evaluation.constants)))
        or len(factors._parameters) != evaluation.count
        or any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors.values())
    ):
        return None
    shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())  # type: ignore[union-attr]
    return state.method.formula, state.sizes, evaluation.plan, state.strength == 1.0, shapes


class _Stacked(NamedTuple):
    """A stage of a plan with its tensors: those shared by the adapters, and those with one entry per adapter."""

    expression: Expression
    shared: dict[str, Any]
    own: dict[str, Tensor]
    bias: Tensor | None


class _Part:
    """An equal number of rows for each of several adapters of one form."""

    def __init__(self, layer: RunningLayer, evaluations: Sequence[Evaluation | None], rows: int) -> None:
        self.layer, self.rows, self.size = layer, rows, rows * len(evaluations)
        self.evaluations = [evaluation for evaluation in evaluations if evaluation is not None]
        self._stacked: dict[int, _Stacked | None] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if len(self.evaluations) > 1:
            first = self.evaluations[0]
            stage = first.plan.stage(first.kind.count_rows(first.base, x[: self.rows]))
            if stage.rows not in self._stacked:
                self._stacked[stage.rows] = self._stack(stage)
            stacked = self._stacked[stage.rows]
            if stacked is not None:
                return self._in_lanes(x, stacked)
        names = [[evaluation.name] for evaluation in self.evaluations] or [[]]
        return _joined([self.layer._outputs(own, name) for own, name in zip(x.split(self.rows), names, strict=True)])

    def _in_lanes(self, x: Tensor, stacked: _Stacked) -> Tensor:
        first, shape = self.evaluations[0], (len(self.evaluations), self.rows)
        weighed = first.state.strength != 1.0
        frozen = self.layer._plain(x).unflatten(0, shape) if weighed or first.needs_frozen else None

        def lane(x: Tensor, frozen: Tensor | None, own: dict[str, Tensor]) -> Tensor:
            env = stacked.shared | own
            y = first.by_nodes(x, stacked.expression, env, stacked.bias, frozen)
            return at_strength(y, frozen, env[_STRENGTH]) if weighed and frozen is not None else y

        each = torch.vmap(lane, (0, None if frozen is None else 0, 0))
        return each(x.unflatten(0, shape), frozen, stacked.own).flatten(0, 1)

    def _stack(self, stage: Stage) -> _Stacked | None:
        """Return a stage with the tensors of all adapters; None if some are too large to stack."""
        first, weight = self.evaluations[0], self.layer.frozen_matrix
        n, m = weight.shape
        largest = (m if self.layer.kind.only_bias else n) * m // KEPT_SHARE  # a normalisation goes from m to m
        shape = NodeShapes(first.method.formula.shapes, first.state.sizes)
        prepared = prepare(stage.expression, shape, largest)
        expression = prepared.expression
        quantised = self.layer.kind.opaque and "W" in stage.expression.names
        if quantised or any(node.forms_itself and _is_own(node) for node in expression.walk()):
            return None
        values: dict[str, list[Any]] = {name: [] for name in (*expression.names, _STRENGTH)}
        for evaluation in self.evaluations:
            self.layer._check_filled(evaluation.name)
            env, bias = evaluation.environment()
            read = env | prepared.values(env) | {_STRENGTH: evaluation.state.strength}
            for name, each in values.items():
                each.append(read[name])
        own = {name: each for name, each in values.items() if name not in _FROZEN and _differ(each)}
        if any(isinstance(each[0], Tensor) and each[0].numel() > largest for each in own.values()):
            return None
        shared = {name: each[0] for name, each in values.items() if name not in own}
        dtype = wide(weight.dtype)
        return _Stacked(expression, shared, {name: _stack(each, dtype, weight) for name, each in own.items()}, bias)


def _is_own(node: Expression) -> bool:
    """Return whether a matrix is formed for each adapter."""
    return not isinstance(node, Leaf) and not {"W"}.issuperset(node.names)


def _differ(values: Sequence[Any]) -> bool:
    return isinstance(values[0], Tensor) or any(value != values[0] for value in values)


def _stack(values: Sequence[Any], dtype: torch.dtype, weight: Any) -> Tensor:
    if isinstance(values[0], Tensor):
        return torch.stack(list(values))
    return torch.tensor(values, dtype=dtype, device=weight.device)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
