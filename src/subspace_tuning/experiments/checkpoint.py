"""A model's weights on disk, one tensor at a time: safetensors, whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Container
from functools import cached_property
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ..errors import SubspaceError, reading
from ..tuner.kinds import Kind, kind_of
from .count import without_weights
from .model import cannot_load, locate

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class Checkpoint:
    """The checkpoint of a model, whose weights stay on disk until one of them is asked for.

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
        except Exception as error:  # a damaged configuration makes the library fail in any way
            raise SubspaceError(cannot_load(name, str(self.folder), error)) from error
        self.files = _files(self.folder)
        for file in sorted(set(self.files.values())):
            if not (self.folder / file).is_file():
                raise SubspaceError(f"model {name!r}: the shard {file} is missing in {self.folder}")

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model without weights, of the class that was saved."""
        with reading(f"the configuration of model {self.name!r}"):
            saved = getattr(transformers, (self.architecture.architectures or [""])[0], None)
        if saved is None:
            return without_weights(self.architecture)
        with reading(f"the configuration of model {self.name!r}"), torch.device("meta"):
            model: PreTrainedModel = saved(self.architecture)
        return model

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The modules that have a weight which can be adapted, by name."""
        return {name: module for name, module in self.model.named_modules() if kind_of(module) is not None}

    def __contains__(self, module: str) -> bool:
        return self._known(module, self.modules) is not None

    def module(self, name: str) -> nn.Module:
        """A module without its weights, by its name here or in a model with a head around this one."""
        known = self._known(name, self.modules)
        if known is None:
            raise SubspaceError(f"model {self.name!r} has no module {name} that could be adapted")
        return self.modules[known]

    def kind(self, module: str) -> Kind:
        """How a module holds its matrix."""
        kind = kind_of(self.module(module))
        assert kind is not None
        return kind

    def find(self, tensor: str) -> str | None:
        """The name in the files of a tensor of the model, None if they do not have it."""
        return self._known(tensor, self.files)

    def _known(self, name: str, among: Container[str]) -> str | None:
        """A name as it is known: a bare encoder goes without the prefix that it has beside a head."""
        prefix = f"{self.model.base_model_prefix}."
        candidates = (name, name.removeprefix(prefix), f"{prefix}{name}")
        return next((known for known in candidates if known in among), None)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        with self._open(tensor) as file:
            return tuple(file.get_slice(tensor).get_shape())

    def read(self, tensor: str) -> Tensor:
        """A tensor by its name in the files. Raises SubspaceError if it holds NaN or infinity."""
        with self._open(tensor) as file:
            value: Tensor = file.get_tensor(tensor)
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise SubspaceError(f"model {self.name!r}: {tensor} holds NaN or infinity")
        return value

    def matrix(self, module: str) -> Tensor:
        """W of a module, n x m, in the precision of the file."""
        return self.kind(module).matrix(self.read(self.stored(f"{module}.weight")))

    def matrix_shape(self, module: str) -> tuple[int, int]:
        """n and m of a module, without reading its weight."""
        n, m = self.kind(module).matrix(self.module(module).weight).shape  # type: ignore[arg-type]
        return n, m

    def bias(self, module: str) -> Tensor | None:
        """The bias of a module, None if it has none."""
        if getattr(self.module(module), "bias", None) is None:
            return None
        return self.read(self.stored(f"{module}.bias"))

    def stored(self, tensor: str) -> str:
        """As ``find``. Raises SubspaceError if the files have no such tensor."""
        found = self.find(tensor)
        if found is None:
            raise SubspaceError(f"model {self.name!r} has no tensor {tensor}")
        return found

    def _open(self, tensor: str) -> safe_open:
        path = self.folder / self.files[tensor]
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise SubspaceError(f"model {self.name!r}: {path.name} cannot be read: {error}") from error


def _folder(name: str) -> Path:
    source = locate(name)
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's own, of many kinds
        raise SubspaceError(cannot_load(name, source, error)) from error


def _files(folder: Path) -> dict[str, str]:
    """The file of each tensor."""
    index = folder / _INDEX
    if index.is_file():
        with reading(f"{index}, an index of shards,"):
            files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            if not all(isinstance(file, str) and Path(file).name == file for file in files.values()):
                raise ValueError("weight_map does not map tensors to files beside it")
        return files
    if not (folder / _WHOLE).is_file():
        raise SubspaceError(f"{folder} has no {_WHOLE} and no {_INDEX}: save the model with save_pretrained first")
    try:
        with safe_open(folder / _WHOLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), _WHOLE)
    except (OSError, SafetensorError) as error:
        raise SubspaceError(f"{folder / _WHOLE} cannot be read: {error}") from error
