"""An adapter as LoRA in the files of other libraries: peft's folder, and the file of a pipeline of diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SubspaceError
from ..files import replaced
from ..models.checkpoint import Checkpoint
from ..models.pipeline import PARTS, PipelineCheckpoint
from ..tuner.exact import exactly
from ..tuner.lora_form import LINEAR, Layout, to_peft
from .adapter import Adapter
from .files import DIFFUSERS_LORA, PREFIX, check_output, pair, stored, write_files


def write_lora(
    path: str | Path,
    adapter: Adapter,
    overwrite: bool = False,
    *,
    base: Checkpoint | None = None,
    uneven: bool = False,
) -> None:
    """Write an adapter whose method is LoRA in peft's own format, which peft loads without this package.

    Args:
        path: the folder.
        adapter: the adapter.
        overwrite: replace an existing adapter.
        base: the base model, for adapters that do not record the kinds of their layers.
        uneven: keep the separate ranks. Otherwise the factors are padded with zeros to one rank, for programs that read
            a single rank and alpha.

    Raises:
        SubspaceError: a layer has an unknown kind, or a change that peft's LoRA cannot express.
    """
    r, ranks, tensors = _tensors(adapter, base, uneven)
    own = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
    write_files(path, _lora_config(adapter, ranks, r, base), own, adapter, overwrite)


def write_diffusers_lora(
    path: str | Path, adapter: Adapter, overwrite: bool = False, *, base: Checkpoint | None = None, uneven: bool = False
) -> None:
    """Write an adapter whose method is LoRA as the one file that ``load_lora_weights`` of a pipeline reads.

    Args:
        path: the folder of the file.
        adapter: the adapter of a pipeline's UNet or transformer.
        overwrite: replace an existing adapter.
        base: the pipeline, for adapters that do not record of which part of it they are.
        uneven: keep the separate ranks.

    Raises:
        SubspaceError: the part is not known, or the file cannot hold a layer's change or a module trained whole.
    """
    if adapter.saved:
        raise SubspaceError(
            f"adapter {adapter.source!r} has {', '.join(sorted(adapter.saved)[:3])} trained whole, which a LoRA of "
            "diffusers cannot hold: leave modules_to_save out"
        )
    part = _part(adapter, base)
    _, _, tensors = _tensors(adapter, base, uneven)
    if embeddings := [name for name in tensors if "lora_embedding" in name]:
        raise SubspaceError(f"{embeddings[0].partition('.lora_')[0]}: a LoRA of diffusers cannot hold an embedding")
    with replaced(check_output(path, overwrite)) as temporary:
        named = {f"{part}.{name}": tensor for name, tensor in tensors.items()}
        save_file(named, temporary / DIFFUSERS_LORA, metadata={"format": "pt"})


def _part(adapter: Adapter, base: Checkpoint | None) -> str:
    """Return the name in a pipeline of the model that an adapter belongs to."""
    if isinstance(base, PipelineCheckpoint):
        return base.part
    known = str((adapter.config.auto_mapping or {}).get("base_model_class"))
    found = next((part for part, word in PARTS.items() if word in known), None)
    if found is None:
        raise SubspaceError(
            f"adapter {adapter.source!r} does not record whether it is of a pipeline's {' or '.join(PARTS)}: give the "
            "pipeline's folder with --base"
        )
    return found


def _tensors(adapter: Adapter, base: Checkpoint | None, uneven: bool) -> tuple[int, dict[str, int], dict[str, Tensor]]:
    """Return peft's tensors for an adapter whose method is LoRA, with a scale of 1.

    Args:
        adapter: the adapter.
        base: the base model, for adapters that do not record the kinds of their layers.
        uneven: keep the separate ranks.

    Returns:
        The rank to which the factors are padded, the rank of each module, and the tensors by name.

    Raises:
        SubspaceError: a layer has an unknown kind, or a change that peft's LoRA cannot express.
    """
    layouts = {module: _layout(adapter, module, base) for module in adapter.layers}
    ranks = {module: layouts[module].rank(layer.r) for module, layer in adapter.layers.items()}
    r = max((rank for module, rank in ranks.items() if layouts[module].groups == 1), default=max(ranks.values()))
    if not uneven:  # kernels of a grouped convolution are already sparse, and padding would multiply them
        ranks = {module: r if layouts[module].groups == 1 else rank for module, rank in ranks.items()}
    tensors: dict[str, Tensor] = {}
    for module, layer in adapter.layers.items():
        A, B = (layer.parameters[name].double() for name in pair(layer.method))
        try:
            parts = to_peft(layouts[module], A, B * layer.scale, ranks[module])
        except SubspaceError as error:
            raise SubspaceError(f"{module}: {error}") from None
        tensors |= {f"{module}.{name}": stored(tensor) for name, tensor in parts.items()}
    return r, ranks, tensors


def _lora_config(adapter: Adapter, ranks: Mapping[str, int], r: int, base: Checkpoint | None) -> LoraConfig:
    return LoraConfig(
        r=r,
        lora_alpha=r,
        target_modules=_listed(adapter.layers, base),
        rank_pattern={name: rank for name, rank in ranks.items() if rank != r},
        alpha_pattern={name: rank for name, rank in ranks.items() if rank != r},
        modules_to_save=adapter.config.modules_to_save,
        trainable_token_indices=adapter.config.trainable_token_indices,
        task_type=adapter.config.task_type,
        inference_mode=True,
    )


def _layout(adapter: Adapter, module: str, base: Checkpoint | None) -> Layout:
    if base is not None:
        return Layout.of(base.module(module))
    if adapter.config.layouts is None:
        raise SubspaceError(
            f"{module}: the adapter does not record whether this is a linear layer, an embedding or a convolution, "
            "which peft stores differently: give --base"
        )
    return Layout.read(adapter.config.layouts.get(module, [LINEAR]))


def _listed(modules: Iterable[str], base: Checkpoint | None) -> list[str] | str:
    """Return the targets as a list, which other programs can read, unless peft would match more modules by it."""
    names = sorted(modules)
    every = set() if base is None else {name for name, _ in base.model.named_modules()}
    if not every.issuperset(names):  # names within a repeated block are not suffixes of other modules' names
        return names if all(re.search(r"\.\d+\.", name) for name in names) else exactly(names)
    matched = {name for name in every if any(name == end or name.endswith(f".{end}") for end in names)}
    return names if matched == set(names) else exactly(names, every)
