"""From a method's roles to a model's modules: by the table, by names and shapes, or by peft's targets for LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from .architectures import ARCHITECTURES, PLACES
from .exact import exactly
from .recognise import in_short, recognise
from .roles import target_modules


def by_role(
    modules: Iterable[tuple[str, nn.Module]], model_type: str | None, roles: Collection[str]
) -> list[str] | str | None:
    """Return peft's ``target_modules`` for the modules that play roles, or None if nothing is recognised.

    A model type that is not in the table causes a warning that lists the choice.

    Args:
        modules: the model's adaptable modules, with their names.
        model_type: the type in the model's configuration, or None.
        roles: a method's placement.

    Raises:
        SubspaceError: the architecture is known and has none of the roles.
    """
    if model_type in ARCHITECTURES:
        return target_modules(str(model_type), roles)
    modules = list(modules)
    found = recognise(modules)
    played = {role: found[role] for role in PLACES if role in roles and role in found}
    untold = f"model type {model_type!r} is not in the table of placements" if model_type else "a model without a type"
    if played:
        inferred = "; ".join(f"{role} {in_short(names)}" for role, names in played.items())
        warnings.warn(
            f"{untold}: inferred from names and shapes are {inferred}. Pass target_modules to choose others",
            stacklevel=2,
        )
        names = dict.fromkeys(name for names in played.values() for name in names)
        return exactly(names, (name for name, _ in modules))
    peft_targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type or "")
    if peft_targets is None:
        return None
    warnings.warn(f"{untold}: taken are the targets of peft's LoRA, {peft_targets}", stacklevel=2)
    return peft_targets if isinstance(peft_targets, str) else list(peft_targets)
