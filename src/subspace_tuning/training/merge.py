"""Merges a run's adapter into its base: a model that transformers loads without this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from transformers import PreTrainedTokenizerBase

from ..errors import SubspaceError, reading
from ..files import replaced
from ..tasks import Task
from .saved import save_task
from .use import Finished

ROWS, LENGTH = 32, 24
"""The inputs on which a merged model is compared with the adapter: random tokens, rows x length, or random images."""


@dataclass(frozen=True)
class Merged:
    """How close a merged model is to the adapter.

    Attributes:
        difference: the largest difference of an output.
        largest: the largest output, for scale.
    """

    difference: float
    largest: float


def merge(made: Finished, output: Path) -> Merged:
    """Write the merged model of a run to a folder, read it back and compare its outputs.

    Args:
        made: the run.
        output: the folder; an existing one is replaced.

    Raises:
        SubspaceError: the method has no dense form that could be merged.
    """
    batch = _drawn(made)
    wanted = made.task.values(_outputs(made.task, made.model, batch))
    model: Any = made.model
    if isinstance(model, PeftModel):
        try:
            model = model.merge_and_unload(safe_merge=True)
        except (SubspaceError, AttributeError, NotImplementedError) as error:
            raise SubspaceError(f"the adapter in {made.folder} cannot be merged: {_why(error)}") from error
    task = made.task.stand_alone(model)
    with replaced(output) as temporary:
        model.save_pretrained(str(temporary))
        made.processor.save_pretrained(str(temporary))
        save_task(temporary, task, made.max_length, made.base)
        with reading(f"the merged model in {output}"):
            loaded = task.model_class.from_pretrained(str(temporary), dtype=torch.float32)
    found = task.values(_outputs(task, loaded.to(next(made.model.parameters()).device).eval(), batch))
    return Merged(float(abs(found - wanted).max()), float(abs(wanted).max()))


def _why(error: Exception) -> str:
    if isinstance(error, SubspaceError):
        return str(error)
    return "its method adds to the inputs, not to the weights"


def _drawn(made: Finished) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    device = next(made.model.parameters()).device
    if not isinstance(made.processor, PreTrainedTokenizerBase):
        noise = torch.randint(256, (ROWS, LENGTH, LENGTH, 3), generator=generator, dtype=torch.uint8)
        batch = made.processor([Image.fromarray(image) for image in noise.numpy()], return_tensors="pt")
        return {name: value.to(device) for name, value in batch.items()}
    length = min(LENGTH, made.max_length)
    tokens = torch.randint(len(made.processor), (ROWS, length), generator=generator)
    return {"input_ids": tokens.to(device), "attention_mask": torch.ones_like(tokens).to(device)}


@torch.no_grad()
def _outputs(task: Task[Any], model: Any, batch: dict[str, torch.Tensor]) -> Any:
    return task.forward(model, batch).double().cpu().numpy()
