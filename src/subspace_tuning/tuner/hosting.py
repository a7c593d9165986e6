"""The config of a method and the model with it, whether the method is a formula or a class of peft's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import peft
from torch import nn

from .. import methods
from ..errors import SubspaceError
from ..methods import Hosted
from .config import SubspaceConfig
from .mam import mam_model
from .sizing import peft_config


def config_of(fields: Mapping[str, Any], common: Mapping[str, Any]) -> peft.PeftConfig:
    """Return the config of an adapter.

    Args:
        fields: of ``SubspaceConfig``, by name; peft's own methods take ``method`` and ``r`` alone.
        common: fields that all configs have, such as ``task_type``.

    Raises:
        SubspaceError: the method, the formula or one of the values is not known, or has no meaning with the method.
    """
    known = _hosted(fields.get("method"))
    if known is None:
        return SubspaceConfig(**common, **fields)
    unused = sorted(fields.keys() - {"method", "r"})
    if unused:
        raise SubspaceError(f"adapter.{unused[0]} has no meaning with method {known.name!r}: leave it out")
    return peft_config(known, fields.get("r", SubspaceConfig.r), common)


def with_adapter(model: nn.Module, config: peft.PeftConfig, method: str | None = None) -> peft.PeftModel:
    """Return the model with a new adapter of a method, which ``config_of`` gave the config for."""
    known = _hosted(method)
    if known is not None and known.parallel:
        return mam_model(model, config)  # type: ignore[arg-type]  # of prefix tuning
    return peft.get_peft_model(model, config)


def _hosted(method: str | None) -> Hosted | None:
    return None if method is None else methods.HOSTED.get(method)
