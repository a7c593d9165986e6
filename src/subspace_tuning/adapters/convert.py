"""Other forms of an adapter: converting its method, and combining several into one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..algebra import Sizes
from ..errors import SubspaceError
from ..linalg import exact_svd
from ..methods import Method
from ..models.checkpoint import Checkpoint
from ..theory.change import Change, change_of
from ..theory.convert import EXACT, Conversion, convert, dense_of
from ..tuner import SubspaceConfig
from ..tuner.exact import exactly
from .adapter import Adapter, SavedLayer, layer_base, persistent

PEFT_LORA = "peft-lora"
"""The value of `--to` for LoRA in peft's own files."""
DIFFUSERS_LORA = "diffusers-lora"
"""The value of `--to` for LoRA in the file of a pipeline of diffusers."""


_Sized = tuple[Sizes, Conversion]


@dataclass(frozen=True)
class Converted:
    """The result for one matrix."""

    module: str
    n: int
    m: int
    r: int
    error: float
    how: str

    @property
    def exact(self) -> bool:
        """Whether the conversion is exact up to rounding."""
        return self.error <= EXACT


@dataclass(frozen=True)
class ConvertedAdapter:
    """An adapter in its new form, and its converted matrices."""

    adapter: Adapter
    layers: tuple[Converted, ...]

    @property
    def error(self) -> float:
        """The largest relative error of a change."""
        return max((layer.error for layer in self.layers), default=0.0)


def target_config(to: str, r: int = 8) -> SubspaceConfig:
    """Return the config for a target: a method's name, a LoRA of other libraries, or a formula.

    Raises:
        SubspaceError: it is unknown.
    """
    name = "lora" if to in (PEFT_LORA, DIFFUSERS_LORA) else to
    known = name.isidentifier()
    return SubspaceConfig(method=name if known else None, formula=None if known else name, r=r, alpha=float(r))


def convert_adapter(
    adapter: Adapter,
    to: str,
    rank: int | None = None,
    base: Checkpoint | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> ConvertedAdapter:
    """Convert an adapter, matrix by matrix.

    Args:
        adapter: the adapter.
        to: a method's name, a formula, "peft-lora" or "diffusers-lora".
        rank: the rank of the result; by default the lowest that keeps the whole change.
        base: the base model; needed if the factors alone do not determine the change, or the new form involves W.
        on_progress: called after each matrix.

    Raises:
        SubspaceError: a matrix cannot be converted; the message names it.
    """
    target = target_config(to).resolved
    if target.chooses_form:
        raise SubspaceError(
            f"nothing can be converted to {target.name}, which chooses the form of each matrix from data"
        )
    found = {}
    for module, layer in adapter.layers.items():
        try:
            found[module] = _convert_layer(layer, target, rank, base, adapter.source)
        except SubspaceError as error:
            raise SubspaceError(f"{module}: {error}") from None
        on_progress()
    return result_of(adapter, to, found, base)


def _convert_layer(layer: SavedLayer, target: Method, rank: int | None, base: Checkpoint | None, source: str) -> _Sized:
    weight, bias = (None, None) if base is None else layer_base(base, layer, source)
    one_hot = base is not None and base.kind(layer.module).one_hot
    if weight is None and _starts_from_weight(layer.method):
        raise SubspaceError(
            f"the factors of {layer.method.name} depend on W and do not determine its change alone: give the base model"
        )
    env = layer.environment(weight, bias, one_hot)
    sizes = layer.sizes if weight is None else layer.sizes._replace(n=weight.shape[0], m=weight.shape[1])
    return sizes, convert(layer.method, target, sizes, env, r=rank, weight=weight, bias=bias)


def _starts_from_weight(method: Method) -> bool:
    """Return whether the values of factors, as opposed to their offsets, need W."""
    anchored = [name for name, is_anchored in method.anchors().items() if is_anchored]
    return bool(method.formula.spectral) or any(name not in method.fixed_anchors() for name in anchored)


def layer_change(layer: SavedLayer, base: Checkpoint | None, source: str) -> tuple[Sizes, Change]:
    """Return the change of one matrix as narrow factors: from its factors, or from phi(W) - W with the base model.

    Raises:
        SubspaceError: the method has no dense form, or the base model is needed but not given.
    """
    weight, bias = (None, None) if base is None else layer_base(base, layer, source)
    if weight is None and _starts_from_weight(layer.method):
        raise SubspaceError(f"{layer.method.name} depends on W: give the base model")
    one_hot = base is not None and base.kind(layer.module).one_hot
    env = layer.environment(weight, bias, one_hot)
    sizes = layer.sizes if weight is None else layer.sizes._replace(n=weight.shape[0], m=weight.shape[1])
    change = change_of(layer.method, sizes, env)
    if change is not None:
        return sizes, change
    if weight is None:
        raise SubspaceError(f"{layer.method.name} = {layer.method.formula} acts on W: give the base model")
    delta = dense_change(layer, weight, env)
    U, S, right = exact_svd(delta)
    return sizes, Change(U * S, right.T)


def dense_change(layer: SavedLayer, weight: Tensor, env: Mapping[str, Any]) -> Tensor:
    """Return phi(W) - W, n x m, in float64. Raises SubspaceError if the method has no dense form."""
    return dense_of(layer.method, env) - weight.double()


def result_of(adapter: Adapter, to: str, found: Mapping[str, _Sized], base: Checkpoint | None) -> ConvertedAdapter:
    highest = max((conversion.r for _, conversion in found.values()), default=1)
    config = target_config(to, highest)
    target = config.resolved
    numbers = {module: (conversion.r, conversion.scale) for module, (_, conversion) in found.items()}
    config.target_modules = exactly(
        sorted(found), () if base is None else (name for name, _ in base.model.named_modules())
    )
    config.layouts, config.auto_mapping = adapter.config.layouts, adapter.config.auto_mapping
    config.modules_to_save, config.task_type = adapter.config.modules_to_save, adapter.config.task_type
    config.trainable_token_indices = adapter.config.trainable_token_indices
    if target.formula.has_rank:
        config.rank_pattern = {module: r for module, (r, _) in numbers.items() if r != highest}
        config.alpha_pattern = {module: r * scale for module, (r, scale) in numbers.items() if r * scale != highest}
    if target.formula.masked:
        mask = target.formula.masked[0]
        config.entries = {
            module: [conversion.constants[mask].numel(), sizes.n, sizes.m]
            for module, (sizes, conversion) in found.items()
        }
        config.calibrated = True
    layers = {
        module: SavedLayer(
            module,
            target,
            conversion.r,
            conversion.scale,
            conversion.parameters,
            persistent(target, conversion.constants),
        )
        for module, (_, conversion) in found.items()
    }
    converted = tuple(
        Converted(module, sizes.n, sizes.m, conversion.r, conversion.error, conversion.how)
        for module, (sizes, conversion) in found.items()
    )
    return ConvertedAdapter(dataclasses.replace(adapter, config=config, layers=layers), converted)
