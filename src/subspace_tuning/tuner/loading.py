"""Checks that the tensors of a file belong to an adapter of this model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..errors import SubspaceError


def check_fit(loaded: Iterable[str], model: nn.Module, adapter_name: str, prefix: str) -> None:
    """Raise SubspaceError for what peft ignores: tensors without a place in the model, and missing factors."""
    places = {key.removeprefix("base_model.model.") for key in model.state_dict()}
    keys = [key.removeprefix("base_model.model.") for key in loaded if f".{prefix}" in key]
    lost = [key for key in keys if key not in places]
    if lost:
        raise SubspaceError(
            f"the adapter has {len(lost)} tensors that this base model has no place for, such as {lost[0]}: it was "
            "trained on another base model"
        )
    # A module missing from the file keeps phi(W) = W, and peft warns; half a module means damage.
    known = {key.partition(f".{prefix}")[0] for key in keys}
    parts = tuple(f".{part}.{adapter_name}." for part in ("subspace_params", "subspace_constants"))
    missing = [place for place in sorted(places - set(keys)) if any(part in place for part in parts)]
    missing = [place for place in missing if place.partition(f".{prefix}")[0] in known]
    if missing:
        raise SubspaceError(
            f"the adapter lacks {len(missing)} tensors that its config needs, such as {missing[0]}: its file is "
            "damaged, or the config belongs to another adapter"
        )
