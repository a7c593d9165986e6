"""What an extracted adapter keeps of a fine-tune besides its matrices: modules kept whole, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.checkpoint import Checkpoint
from ..models.heads import head_modules, outermost


@dataclass(frozen=True)
class LeftOut:
    """A tensor that the fine-tuning changed and the adapter does not contain."""

    tensor: str
    numbers: int
    change: float | None  # ||T* - T|| / ||T||, or None if T is zero

    def row(self) -> dict[str, Any]:
        """Return the entry for the report."""
        return asdict(self)


def kept_whole(base: Checkpoint, tuned: Checkpoint, adapted: Collection[str]) -> list[str]:
    """Return the modules kept whole, as names for ``modules_to_save``.

    These are heads that the fine-tuning changed, embeddings whose vocabulary it changed, and modules that share a
    weight with one of them or with an adapted module, since otherwise only one side of a shared weight would change.
    """
    outputs = _embedding(tuned.model, tuned.model.get_output_embeddings)
    heads = [name for name in dict.fromkeys([*head_modules(tuned.model), *outputs]) if name not in adapted]
    kept = [head for head in heads if any(_is_changed(base, tuned, name) for name in tensors_of(tuned, head))]
    vocabulary = _vocabulary(tuned.model)
    kept += [name for name in vocabulary if name not in adapted and _is_resized(base, tuned, name)]
    for names in tuned.shared:
        owners = [name.rpartition(".")[0] for name in names]
        touched = any(owner in adapted or _is_within(owner, kept) for owner in owners)
        if touched and _is_changed(base, tuned, names[0]):
            kept += [owner for owner in owners if owner not in adapted and not _is_within(owner, kept)]
    return outermost(tuned.model, kept)


def left_out(base: Checkpoint, tuned: Checkpoint, adapted: Collection[str], kept: Collection[str]) -> Iterator[LeftOut]:
    """Yield the changes of tensors that are neither adapted nor kept whole."""
    again = {name for names in tuned.shared for name in names[1:]}
    for name in tuned.model.state_dict():
        owner = name.rpartition(".")[0]
        if name in again or owner in adapted or _is_within(owner, kept) or not _is_changed(base, tuned, name):
            continue
        theirs, ours = tuned.read(tuned.stored(name)).double(), base.find(name)
        before = torch.zeros_like(theirs) if ours is None else base.read(ours).double()
        moved, size = float((theirs - before).norm()), float(before.norm())
        yield LeftOut(name, theirs.numel(), moved / size if size else None)


def resizable(model: PreTrainedModel) -> set[str]:
    """Return the modules whose shape a fine-tune may change: heads, and both sides of the vocabulary."""
    heads = head_modules(model)
    return {*_vocabulary(model), *(name for name, _ in model.named_modules() if _is_within(name, heads))}


def tensors_of(checkpoint: Checkpoint, module: str) -> list[str]:
    """Return the names of the tensors of a module, named as in ``modules_to_save``."""
    return [name for name in checkpoint.model.state_dict() if f".{module}." in f".{name}"]


def _vocabulary(model: PreTrainedModel) -> list[str]:
    return [*_embedding(model, model.get_input_embeddings), *_embedding(model, model.get_output_embeddings)]


def _embedding(model: PreTrainedModel, get: Callable[[], nn.Module | None]) -> list[str]:
    """Return the names of an embedding declared by a model and of the modules that share its weight."""
    try:
        found = get()
    except (NotImplementedError, AttributeError):  # a model without words
        return []
    if not isinstance(found, (nn.Embedding, nn.Linear)):
        return []
    return [name for name, module in model.named_modules() if getattr(module, "weight", None) is found.weight]


def _is_within(owner: str, modules: Collection[str]) -> bool:
    return any(f".{module}." in f".{owner}." for module in modules)


def _is_resized(base: Checkpoint, tuned: Checkpoint, module: str) -> bool:
    ours, theirs = base.find(f"{module}.weight"), tuned.find(f"{module}.weight")
    return ours is not None and theirs is not None and base.shape(ours) != tuned.shape(theirs)


def _is_changed(base: Checkpoint, tuned: Checkpoint, name: str) -> bool:
    ours, theirs = base.find(name), tuned.find(name)
    if theirs is None:
        return False
    if ours is None or base.shape(ours) != tuned.shape(theirs):
        return True
    before, after = base.read(ours), tuned.read(theirs)
    return not torch.equal(before, after.to(before.dtype))
