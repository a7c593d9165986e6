"""An adapter's content is exchanged in place: under compiled code, in a server, without another attached adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.utils import load_peft_weights
from torch import Tensor, nn

from ..errors import SubspaceError, nearest, reading
from .config import SubspaceConfig
from .layer import SubspaceLayer
from .model import SubspaceModel
from .walking import layers_of

_LOADED = "exchanged_in_place"  # the name of the new adapter until its content has been copied


@torch.no_grad()
def hotswap(model: PeftModel, path: str | Path, adapter_name: str = "default") -> None:
    """Exchange an adapter for a saved one of the same formula, in place.

    Factors, constants, scale, saved modules and the config become those of the file; the parameters stay the same
    tensors. So compiled code and CUDA graphs stay valid, unless the scale differs: compiled code holds it as a number
    and is compiled again. A lower rank is padded with zeros if that leaves the formula's value unchanged. Merged
    weights are unmerged and merged again. If the adapter is refused, the model stays as it was.

    Args:
        model: the model with the adapter.
        path: the folder of the other adapter, or its name on the hub.
        adapter_name: the name of the adapter to exchange.

    Raises:
        SubspaceError: there is no such adapter, or the other one has another formula, other modules or a higher rank.
    """
    own = model.peft_config.get(adapter_name)
    if own is None:
        raise SubspaceError(f"there is no adapter {adapter_name!r}: {nearest(adapter_name, model.peft_config)}")
    if not isinstance(own, SubspaceConfig):
        raise SubspaceError(f"adapter {adapter_name!r} is not a subspace adapter: use peft.utils.hotswap")
    path, tuner = str(path), cast("SubspaceModel", model.base_model)
    _check(model, own, adapter_name, path)
    merged = {name for _, layer in layers_of(model) for name in layer.merged_adapters}
    if merged:
        tuner.unmerge_adapter()  # type: ignore[no-untyped-call]
    try:
        with reading(f"the adapter in {path}"):
            model.load_adapter(path, _LOADED, is_trainable=True)  # is_trainable leaves the mode alone
        try:
            config = _config_after(model, own, adapter_name, path)
            for target, source in _pairs(model, adapter_name):
                _write(target, source)
            for _, layer in layers_of(model):
                if adapter_name in layer.adapters:
                    _restate(layer, adapter_name)
            model.peft_config[adapter_name] = config
        finally:
            model.delete_adapter(_LOADED)
    finally:
        if merged:
            tuner.merge_adapter([name for name in model.active_adapters if name in merged])


def _check(model: PeftModel, own: SubspaceConfig, adapter_name: str, path: str) -> None:
    """Raise SubspaceError if the adapter in a file has another formula or adapts other modules."""
    with reading(f"the adapter in {path}"):
        other = PeftConfig.from_pretrained(path)
        weights = load_peft_weights(path, device="cpu")
    formula = other.resolved.formula if isinstance(other, SubspaceConfig) else PeftType(other.peft_type).value
    if str(formula) != str(own.resolved.formula):
        raise SubspaceError(
            f"the adapter in {path} is {formula}, and {adapter_name!r} is {own.resolved.formula}: only an adapter of "
            "the same formula can take its place"
        )
    mark = f".{SubspaceModel.prefix}"
    places = {key.partition(mark)[0] for key in weights if mark in key}
    adapted = {name for name, layer in layers_of(model) if adapter_name in layer.adapters}
    if differing := sorted(places ^ adapted):
        name = differing[0].removeprefix("base_model.model.")
        raise SubspaceError(f"the adapter in {path} and {adapter_name!r} adapt different modules, such as {name}")


def _config_after(model: PeftModel, own: SubspaceConfig, adapter_name: str, path: str) -> SubspaceConfig:
    """Return the config after the exchange. Raises SubspaceError if the loaded adapter does not fit."""
    loaded = cast("SubspaceConfig", model.peft_config[_LOADED])
    for target, source in _pairs(model, adapter_name):
        if target.shape != source.shape and not _is_corner(source, target):
            raise SubspaceError(
                f"the adapter in {path} cannot take the place of {adapter_name!r}: a factor or constant has the shape "
                f"{tuple(source.shape)}, here {tuple(target.shape)}"
            )
    ranks = {
        (layer.adapters[_LOADED].sizes.r, layer.adapters[adapter_name].sizes.r)
        for _, layer in layers_of(model)
        if adapter_name in layer.adapters and own.resolved.formula.has_rank
    }
    if all(low == high for low, high in ranks):
        return replace(loaded, inference_mode=own.inference_mode)
    return _padded(own, loaded, ranks, path)


def _padded(own: SubspaceConfig, loaded: SubspaceConfig, ranks: set[tuple[int, int]], path: str) -> SubspaceConfig:
    """Return the config of an adapter whose rank was raised by zeros."""
    if len(ranks) > 1 or loaded.rank_pattern or loaded.alpha_pattern:
        raise SubspaceError(f"the adapter in {path} has several ranks: only a single lower rank can be padded")
    [(low, high)] = ranks
    if not _is_padded_by_zeros(loaded, low, high):
        raise SubspaceError(
            f"the adapter in {path} has rank {low}, here {high}: zeros in its factors would change "
            f"{loaded.resolved.formula}"
        )
    alpha = loaded.scale(loaded.alpha, low) / loaded.scale(1.0, high)
    return replace(loaded, r=high, alpha=alpha, inference_mode=own.inference_mode)


def _is_padded_by_zeros(config: SubspaceConfig, low: int, high: int) -> bool:
    """Return whether factors of a rank, padded with zeros, give the same value at a small random weight."""
    side = 2 * high
    base = nn.Sequential(nn.Linear(side, side + 1, dtype=torch.float64)).requires_grad_(False)
    given: dict[str, Any] = {"target_modules": ["0"], "init_weights": False, "layouts": None, "inference_mode": False}
    model: Any = get_peft_model(base, replace(config, r=high, alpha=float(high), **given))
    model.add_adapter(_LOADED, replace(config, r=low, alpha=float(low), **given))
    layer: SubspaceLayer = model.base_model.model[0]
    for target, source in _pairs(model, "default"):
        if target.shape != source.shape and not _is_corner(source, target):
            return False
        _write(target, source)
    x = torch.randn(4, side, dtype=torch.float64)
    outputs = []
    for name in ("default", _LOADED):
        model.set_adapter(name)
        outputs.append(layer(x))
    return torch.allclose(*outputs)


def _pairs(model: nn.Module, adapter_name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Return each tensor of an adapter with that of the loaded one."""
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, source in every.items():
        if f".{_LOADED}." in f"{name}.":
            yield every[f"{name}.".replace(f".{_LOADED}.", f".{adapter_name}.").removesuffix(".")], source


def _is_corner(source: Tensor, target: Tensor) -> bool:
    """Return whether a tensor can be padded to another's shape; a constant has to be the first part of the other."""
    if source.ndim != target.ndim or any(less > more for less, more in zip(source.shape, target.shape, strict=True)):
        return False
    return isinstance(target, nn.Parameter) or torch.equal(target[_corner(source)], source)


def _corner(source: Tensor) -> tuple[slice, ...]:
    return tuple(slice(size) for size in source.shape)


def _write(target: Tensor, source: Tensor) -> None:
    """Copy a tensor in place, into the first rows and columns if there are more; trained ones are zero elsewhere."""
    if isinstance(target, nn.Parameter) and target.shape != source.shape:
        target.zero_()
    target[_corner(source)].copy_(source)


def _restate(layer: SubspaceLayer, adapter_name: str) -> None:
    """Give a layer's adapter the scale and settings of the loaded one, if they differ."""
    own, loaded = layer.adapters[adapter_name], layer.adapters[_LOADED]
    state = replace(loaded, strength=own.strength)
    if loaded.sizes != own.sizes:  # a padded rank
        plans = layer._plans(loaded.method, own.sizes, loaded.dropout)
        state = replace(state, r=own.r, alpha=own.alpha, sizes=own.sizes, plans=plans)
    if state != own:
        layer.adapters[adapter_name] = state
