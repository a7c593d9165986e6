"""The UNet or the transformer of a pipeline of diffusers, on disk."""

from __future__ import annotations

import json
from collections.abc import Container
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ..errors import SubspaceError, reading
from ..extras import needs
from .checkpoint import Checkpoint, files_of

PARTS = MappingProxyType({"unet": "UNet", "transformer": "Transformer"})
"""The folders of a pipeline's parts that are adapted, each with a word in the names of their classes."""
_INDEX = "model_index.json"
_STEM = "diffusion_pytorch_model"


class PipelineCheckpoint(Checkpoint):
    """The checkpoint of a pipeline's UNet or transformer, whose weights are read from disk on demand.

    Args:
        name: the pipeline's folder.

    Raises:
        SubspaceError: it has neither part, or the part has no safetensors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        pipeline = Path(name).expanduser()
        found = [part for part in PARTS if (pipeline / part / "config.json").is_file()]
        if not found:
            raise SubspaceError(f"pipeline {name!r} has no {' and no '.join(f'{part}/config.json' for part in PARTS)}")
        self.part = found[0]
        self.folder = (pipeline / self.part).resolve()
        self.files = files_of(name, self.folder, _STEM)

    @cached_property
    def model(self) -> Any:
        """The model without weights."""
        needs(f"pipeline {self.name!r}", "diffusion", "diffusers")
        import diffusers

        with reading(f"the configuration in {self.folder}"):
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            known = getattr(diffusers, str(config["_class_name"]), None)
            if not (isinstance(known, type) and issubclass(known, diffusers.ModelMixin)):
                raise ValueError(f"diffusers has no model {config['_class_name']!r}")
            with torch.device("meta"):
                return known.from_config(config)

    @cached_property
    def keys(self) -> dict[str, str | None]:
        """The key in the files for each tensor name of the model: the name itself."""
        return {name: name for name in self.files}

    def _known(self, name: str, among: Container[str]) -> str | None:
        return name if name in among else None


def checkpoint_of(name: str) -> Checkpoint:
    """Return the checkpoint of a model of transformers, or of the part of a pipeline of diffusers that is adapted.

    Args:
        name: a local folder, a hub name or ``minilm``; a pipeline's folder.

    Raises:
        SubspaceError: there is no such model, or it has no safetensors.
    """
    is_pipeline = (Path(name).expanduser() / _INDEX).is_file()
    return PipelineCheckpoint(name) if is_pipeline else Checkpoint(name)
