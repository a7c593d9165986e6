"""A model's weights on disk, one tensor at a time: safetensors, whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from functools import cached_property
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from ..errors import SubspaceError, reading
from ..tuner.kind import Kind
from ..tuner.kinds import kind_of
from .locate import cannot_load, locate
from .meta import without_weights


class Checkpoint:
    """The checkpoint of a model, whose weights are read from disk on demand.

    Args:
        name: a local folder, a hub name or ``minilm``.

    Raises:
        SubspaceError: there is no such model, it has no safetensors, or a shard is missing.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = _folder(name)
        try:
            self.architecture: PretrainedConfig = AutoConfig.from_pretrained(str(self.folder))
        except Exception as error:  # a damaged configuration can raise anything in the library
            raise SubspaceError(cannot_load(name, str(self.folder), error)) from error
        self.files = files_of(name, self.folder)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model without weights, of the saved class."""
        with reading(f"the configuration of model {self.name!r}"):
            saved = getattr(transformers, (self.architecture.architectures or [""])[0], None)
        if saved is None:
            return without_weights(self.architecture)
        with reading(f"the configuration of model {self.name!r}"), torch.device("meta"):
            model: PreTrainedModel = saved(self.architecture)
        return model

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The modules with a weight that can be adapted, by name."""
        return {name: module for name, module in self.model.named_modules() if kind_of(module) is not None}

    def __contains__(self, module: str) -> bool:
        return self._known(module, self.modules) is not None

    def module(self, name: str) -> nn.Module:
        """Return a module without its weights, by its name in this model or in one that adds a head to it."""
        known = self._known(name, self.modules)
        if known is None:
            raise SubspaceError(f"model {self.name!r} has no module {name} that could be adapted")
        return self.modules[known]

    def kind(self, module: str) -> Kind:
        """Return the kind of a module."""
        kind = kind_of(self.module(module))
        assert kind is not None
        return kind

    def find(self, tensor: str) -> str | None:
        """Return the name that ``read`` takes for a tensor of the model, or None if it is not in the files."""
        return self._known(tensor, self.keys)

    @cached_property
    def keys(self) -> dict[str, str | None]:
        """The key in the files for each tensor name of the model; None if it is computed from tensors in the files.

        transformers renames, splits and stacks tensors saved by older versions and other libraries, and files store
        shared weights once.
        """
        found: dict[str, str | None] = {}
        renamed = renaming(self.model)
        for key in self.files:
            names, is_made = renamed(key)
            found |= dict.fromkeys(names, None if is_made else key)
        for names in self.shared:
            stored = next((found[name] for name in names if name in found), None)
            found |= {name: stored for name in names if stored is not None and name not in found}
        return found

    @cached_property
    def shared(self) -> list[list[str]]:
        """The names of tensors shared in the model, such as an embedding and the head tied to it."""
        with torch.device("meta"):
            self.model.tie_weights()
        groups: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            groups.setdefault(id(parameter), []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    @cached_property
    def _made(self) -> dict[str, Tensor]:
        """The tensors of the model loaded by transformers, for those computed from others in the files."""
        with reading(f"model {self.name!r}"):
            loaded: PreTrainedModel = type(self.model).from_pretrained(str(self.folder), dtype="auto")
        return loaded.state_dict()

    def _known(self, name: str, among: Container[str]) -> str | None:
        """Return the known form of a name: a bare encoder lacks the prefix that it has beside a head."""
        prefix = f"{self.model.base_model_prefix}."
        candidates = (name, name.removeprefix(prefix), f"{prefix}{name}")
        return next((known for known in candidates if known in among), None)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        key = self.keys[tensor]
        if key is None:
            return tuple(self.model.state_dict()[tensor].shape)
        with self._open(key) as file:
            return tuple(file.get_slice(key).get_shape())

    def read(self, tensor: str) -> Tensor:
        """Return a tensor by its name from ``find``. Raises SubspaceError if it holds NaN or infinity."""
        key = self.keys[tensor]
        if key is None:
            value = self._made[tensor]
        else:
            with self._open(key) as file:
                value = file.get_tensor(key)
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise SubspaceError(f"model {self.name!r}: {tensor} holds NaN or infinity")
        return value

    def matrix(self, module: str) -> Tensor:
        """Return W of a module, n x m, in the precision of the file."""
        return self.kind(module).matrix(self.read(self.stored(f"{module}.weight")))

    def matrix_shape(self, module: str) -> tuple[int, int]:
        """Return n and m of a module, without reading its weight."""
        n, m = self.kind(module).matrix(self.module(module).weight).shape  # type: ignore[arg-type]
        return n, m

    def bias(self, module: str) -> Tensor | None:
        """Return the bias of a module, or None."""
        if getattr(self.module(module), "bias", None) is None:
            return None
        return self.read(self.stored(f"{module}.bias"))

    def stored(self, tensor: str) -> str:
        """Like ``find``, but raises SubspaceError if the files have no such tensor."""
        found = self.find(tensor)
        if found is None:
            raise SubspaceError(f"model {self.name!r} has no tensor {tensor}")
        return found

    def _open(self, key: str) -> safe_open:
        path = self.folder / self.files[key]
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise SubspaceError(f"model {self.name!r}: {path.name} cannot be read: {error}") from error


Renamed = tuple[list[str], bool]


def renaming(model: PreTrainedModel) -> Callable[[str], Renamed]:
    """Return the names in the model for a tensor in a file, and whether their values are computed.

    A tensor may be renamed, split into several, or stacked with others.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if not isinstance(one, WeightRenaming)]
    made = {pattern: one.target_patterns for one in converters for pattern in one.source_patterns}
    places = model.state_dict()

    def renamed(key: str) -> Renamed:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, places)  # type: ignore[arg-type]
        if name not in places and key in places:  # a current name that matches the patterns for older ones
            return [key], False
        if pattern is None:
            return [name], False
        first = made[pattern][0]  # transformers names a split after its first part
        return [name.replace(first, part, 1) for part in made[pattern]], True

    return renamed


def _folder(name: str) -> Path:
    source = locate(name)
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # errors of the hub have many types
        raise SubspaceError(cannot_load(name, source, error)) from error


def files_of(name: str, folder: Path, stem: str = "model") -> dict[str, str]:
    """Return the file of each tensor of a model in a folder.

    Args:
        name: the model, as messages call it.
        folder: where its files are.
        stem: how their names begin.

    Raises:
        SubspaceError: there are no safetensors, a shard is missing, or a file is damaged.
    """
    whole, index = f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return _of_one(folder, whole, index.name)
    with reading(f"{index}, an index of shards,"):
        files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(file, str) and Path(file).name == file for file in files.values()):
            raise ValueError("weight_map does not map tensors to files beside it")
    for file in sorted(set(files.values())):
        if not (folder / file).is_file():
            raise SubspaceError(f"model {name!r}: the shard {file} is missing in {folder}")
    return files


def _of_one(folder: Path, whole: str, index: str) -> dict[str, str]:
    if not (folder / whole).is_file():
        raise SubspaceError(f"{folder} has no {whole} and no {index}: save the model with save_pretrained first")
    try:
        with safe_open(folder / whole, framework="pt") as file:
            return dict.fromkeys(file.keys(), whole)
    except (OSError, SafetensorError) as error:
        raise SubspaceError(f"{folder / whole} cannot be read: {error}") from error
