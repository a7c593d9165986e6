"""Adapters as folders: reading and writing them.

Adapters of this package and peft's own LoRA are read; both can be written.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import methods
from ..errors import SubspaceError, reading
from ..files import check_folder, recover, replaced
from ..tuner import SubspaceConfig
from ..tuner.exact import exactly
from ..tuner.lora_form import Layout, from_peft
from .adapter import Adapter, SavedLayer, dimensions_of
from .strict import check_factors, check_modules

PREFIX = "base_model.model."
"""With which peft begins the names of an adapter's tensors."""
_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
DIFFUSERS_LORA = "pytorch_lora_weights.safetensors"
"""The file in which pipelines of diffusers look for LoRA."""
# Options of peft's LoRA that change its formula, and starts that change W.
_BEYOND = (
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "use_qalora",
    "bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PARTS = (".subspace_params.", ".subspace_constants.")


def read_adapter(path: str | Path) -> Adapter:
    """Read an adapter folder of this package, or of peft's LoRA.

    Raises:
        SubspaceError: there is no adapter, it is damaged, or it is of another type.
    """
    folder = Path(path).expanduser()
    if not (folder / _CONFIG).is_file():
        raise SubspaceError(f"{str(path)!r} is not an adapter: it has no {_CONFIG}")
    with reading(f"adapter {str(path)!r}"):
        described = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if not isinstance(described, dict):
            raise ValueError(f"{_CONFIG} does not hold an object")
        config, kind = PeftConfig.from_pretrained(str(folder)), described.get("peft_type")
        tensors = load_file(folder / _WEIGHTS)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise SubspaceError(f"adapter {str(path)!r}: {name} holds NaN or infinity")
    if isinstance(config, (SubspaceConfig, LoraConfig)):
        with reading(f"adapter {str(path)!r}"):
            if isinstance(config, SubspaceConfig):
                adapter = _own(config, tensors, str(path))
            else:
                adapter = _from_lora(config, tensors, str(path))
        if not adapter.layers:
            raise SubspaceError(f"adapter {str(path)!r} has no factors of the method in its config")
        return adapter
    raise SubspaceError(f"adapter {str(path)!r} is of peft's type {kind}: only this package's own and LoRA can be read")


def _own(config: SubspaceConfig, tensors: Mapping[str, Tensor], source: str) -> Adapter:
    parameters: dict[str, dict[str, Tensor]] = {}
    constants: dict[str, dict[str, Tensor]] = {}
    saved = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        for part, held in zip(_PARTS, (parameters, constants), strict=True):
            module, found, factor = name.partition(part)
            if found:
                held.setdefault(module, {})[factor] = tensor
                break
        else:
            saved[name] = tensor
    layers = {}
    method = config.resolved
    check_modules(config.target_parameters or (), source)
    for module, factors in parameters.items():
        # For a method with singular triples, a narrow matrix has fewer of them than the config's rank.
        r = dimensions_of(config.resolved, factors).get("r") or _pattern(config.rank_pattern, module, config.r)
        alpha = _pattern(config.alpha_pattern, module, config.alpha)
        axes = len(factors.keys() - method.formula.shapes.keys())  # a convolution has one more factor for each axis
        own = method.on_axes(axes) if axes else method
        check_factors(source, module, own, r, factors, constants.get(module, {}))
        layers[module] = SavedLayer(module, own, r, config.scale(alpha, r), factors, constants.get(module, {}))
    return Adapter(config, layers, saved, config.base_model_name_or_path, source)


def pair(method: methods.Method) -> tuple[str, str]:
    """Return the names of a LoRA's factors A and B."""
    (term,) = method.formula.low_rank
    return str(term.down), str(term.up)


def _from_lora(config: LoraConfig, tensors: Mapping[str, Tensor], source: str) -> Adapter:
    _check_plain(config, source)
    pairs: dict[str, dict[str, Tensor]] = {}
    saved = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        module, found, end = name.partition(".lora_")
        if found:
            pairs.setdefault(module, {})[f"lora_{end}"] = tensor
        else:
            saved[name] = tensor
    lora = methods.get("lora")
    down, up = pair(lora)
    layers, layouts = {}, {}
    for module, factors in pairs.items():
        try:
            layout, A, B = from_peft(factors)
        except SubspaceError as error:
            raise SubspaceError(f"adapter {source!r}: {module}: {error}") from None
        check_factors(source, module, lora, A.shape[1], {down: A, up: B}, {})
        alpha = _pattern(config.alpha_pattern or {}, module, config.lora_alpha)
        r = next(tensor.shape[0] for name, tensor in factors.items() if name.startswith(("lora_A", "lora_embedding_A")))
        scale = alpha / (r**0.5 if config.use_rslora else r)
        layers[module] = SavedLayer(module, lora, A.shape[1], scale, {down: A.contiguous(), up: B.contiguous()})
        if layout != Layout():
            layouts[module] = layout.written()
    alphas = {key: layer.scale * (layer.r**0.5 if config.use_rslora else layer.r) for key, layer in layers.items()}
    own = SubspaceConfig(
        method="lora",
        r=config.r,
        alpha=float(config.lora_alpha),
        rank_stabilised=config.use_rslora,
        rank_pattern={key: layer.r for key, layer in layers.items() if layer.r != config.r},
        alpha_pattern={key: alpha for key, alpha in alphas.items() if not math.isclose(alpha, config.lora_alpha)},
        target_modules=exactly(layers),
        layouts=layouts,
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
    )
    return Adapter(own, layers, saved, config.base_model_name_or_path, source)


def _check_plain(config: LoraConfig, source: str) -> None:
    """Raise SubspaceError if an adapter is not W + s * A @ B over the base model's own W."""
    for option in _BEYOND:
        value = getattr(config, option, None)
        if value not in (None, False, "none", {}, []):
            raise SubspaceError(f"adapter {source!r} is LoRA with {option}={value!r}, which is not W + s * A @ B")
    start = str(config.init_lora_weights)
    if start.startswith(_CHANGES_BASE):
        raise SubspaceError(
            f"adapter {source!r} is LoRA with init_lora_weights={start!r}, which changes the base weight: save it with "
            "peft's path_initial_model_for_weight_conversion first"
        )


def write_adapter(
    path: str | Path, adapter: Adapter, overwrite: bool = False, *, also: Callable[[Path], None] | None = None
) -> None:
    """Write an adapter folder atomically.

    Args:
        path: the folder.
        adapter: the adapter.
        overwrite: replace an existing adapter.
        also: called with the folder to write further files into it.

    Raises:
        SubspaceError: the path exists and is not an adapter, or is one and ``overwrite`` is false.
    """
    tensors: dict[str, Tensor] = {}
    for module, layer in adapter.layers.items():
        for part, held in zip(_PARTS, (layer.parameters, layer.constants), strict=True):
            tensors |= {f"{PREFIX}{module}{part}{name}": stored(tensor) for name, tensor in held.items()}
    write_files(path, adapter.config, tensors, adapter, overwrite, also)


def check_output(path: str | Path, overwrite: bool) -> Path:
    """Return the path of an adapter to write. Raises SubspaceError if it exists and must not be replaced."""
    folder = check_folder(Path(path))
    recover(folder)
    if folder.is_dir() and any(folder.iterdir()):
        if not any((folder / name).is_file() for name in (_CONFIG, DIFFUSERS_LORA)):
            raise SubspaceError(f"output {str(path)!r} is not empty and has no adapter: choose another")
        if not overwrite:
            raise SubspaceError(f"output {str(path)!r} holds an adapter: choose another, or --overwrite")
    return folder


def write_files(
    path: str | Path,
    config: PeftConfig,
    tensors: Mapping[str, Tensor],
    adapter: Adapter,
    overwrite: bool,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a config with its tensors and an adapter's modules saved whole, as peft names its files.

    Raises:
        SubspaceError: the path exists and must not be replaced.
    """
    folder = check_output(path, overwrite)
    config = dataclasses.replace(config)
    config.base_model_name_or_path = adapter.base
    config.inference_mode = True
    saved = {f"{PREFIX}{name}": stored(tensor) for name, tensor in adapter.saved.items()}
    with replaced(folder) as temporary:
        save_file({**tensors, **saved}, temporary / _WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(temporary))
        if also is not None:
            also(temporary)


def _pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return patterns.get(get_pattern_key(list(patterns), module), default)


def stored(tensor: Tensor) -> Tensor:
    """Return a tensor as files have it: contiguous, and in float32 at most."""
    return (tensor.float() if tensor.dtype == torch.float64 else tensor).contiguous().clone()
