"""Mix-and-match: prefix tuning on the attention and parallel adapters on the feed-forward block, in one model.

peft has no models with two types of adapters. Here the parallel adapters are layers inside the base model, and peft's
prefix tuning wraps it; the class below saves and loads both: the prefix as peft does, and the adapters in two more
files.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import peft
from peft import PeftModel, PrefixTuningConfig
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import SubspaceError
from ..methods.roles import FFN_IN, FFN_OUT
from .config import SubspaceConfig
from .model import SubspaceModel
from .roles import target_modules

ADAPTER = "parallel"
_CONFIG, _WEIGHTS = "parallel_adapter.json", "parallel_adapter.safetensors"


def mam_model(model: nn.Module, prefix: PrefixTuningConfig, parallel: SubspaceConfig | None = None) -> PeftModel:
    """Return the model with both parts attached; by default ``parallel`` is as wide as the prefix is long."""
    if parallel is None:
        model_type = str(SubspaceModel.get_model_config(model).get("model_type"))
        where = target_modules(model_type, [FFN_IN, FFN_OUT])
        parallel = SubspaceConfig(method="parallel_adapter", r=prefix.num_virtual_tokens, target_modules=where)
    SubspaceModel(model, {ADAPTER: parallel}, ADAPTER)
    wrapped = peft.get_peft_model(model, prefix)
    wrapped.__class__ = type(f"MixAndMatch{type(wrapped).__name__}", (MixAndMatch, type(wrapped)), {})
    assert isinstance(wrapped, MixAndMatch)
    wrapped.parallel_config = parallel
    for name, parameter in wrapped.named_parameters():
        if f"subspace_params.{ADAPTER}." in name:  # peft froze them together with the base model
            parameter.requires_grad_(True)
    return wrapped


def load_mam(model: nn.Module, folder: str | Path, is_trainable: bool = False) -> PeftModel:
    """Attach a saved mix-and-match adapter. Raises SubspaceError if a part is missing."""
    prefix = PrefixTuningConfig.from_pretrained(str(folder))
    path = Path(folder) / _CONFIG
    if not path.is_file():
        raise SubspaceError(f"{folder} has a prefix but no {_CONFIG}: it is not a mix-and-match adapter")
    prefix.inference_mode = False
    wrapped = mam_model(model, prefix, SubspaceConfig(**json.loads(path.read_text(encoding="utf-8"))))
    wrapped.load_adapter(str(folder), "default", is_trainable=True)
    if not is_trainable:
        wrapped.requires_grad_(False)
        wrapped.eval()
    return wrapped


class MixAndMatch(PeftModel):
    """A prefix-tuned model whose base has parallel adapters."""

    parallel_config: SubspaceConfig

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """Save the prefix as peft does, and the parallel adapters beside it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            self.parallel_config.save_pretrained(temporary)
            (Path(temporary) / "adapter_config.json").replace(folder / _CONFIG)
        tensors = {
            name: tensor.contiguous()
            for name, tensor in self.base_model.state_dict().items()
            if f".subspace_params.{ADAPTER}." in name
        }
        save_file(tensors, folder / f"{_WEIGHTS}.tmp")
        (folder / f"{_WEIGHTS}.tmp").replace(folder / _WEIGHTS)

    def load_adapter(self, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        """Load both parts from a folder."""
        result = super().load_adapter(model_id, *args, **kwargs)
        tensors = load_file(Path(model_id) / _WEIGHTS)
        wanted = {name for name in self.base_model.state_dict() if f".subspace_params.{ADAPTER}." in name}
        if tensors.keys() - wanted:
            raise SubspaceError(f"{model_id}: {min(tensors.keys() - wanted)} has no place in this base model")
        if wanted - tensors.keys():
            raise SubspaceError(f"{model_id}: {min(wanted - tensors.keys())} is missing from {_WEIGHTS}")
        self.base_model.load_state_dict(tensors, strict=False)
        return result
