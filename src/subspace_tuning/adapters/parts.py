"""The part of an interrupted extraction for one matrix: a file of tensors, and its row of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import written


class Part(NamedTuple):
    """Tensors by name, and plain data beside them."""

    tensors: Mapping[str, Tensor]
    row: Mapping[str, Any]


def read_part(folder: Path, name: str) -> Part | None:
    """Return a part, or None if it is missing or damaged."""
    try:
        with safe_open(_path(folder, name), framework="pt") as file:
            row = json.loads(file.metadata()["row"])
            # Copy: tensors mapped from a file are not aligned in memory, and sums would differ in the last bit.
            return Part({key: file.get_tensor(key).clone() for key in file.keys()}, row)  # noqa: SIM118  # not a mapping
    except (OSError, SafetensorError):
        return None


def keep_part(folder: Path, name: str, part: Part) -> None:
    """Write a part atomically."""
    tensors = {key: tensor.contiguous() for key, tensor in part.tensors.items()}
    with written(_path(folder, name)) as file:
        save_file(tensors, file, metadata={"row": json.dumps(part.row)})


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
