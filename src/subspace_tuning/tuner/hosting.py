"""The config of a method and the adapted model, for methods that are formulas and for peft's own classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from .. import methods
from ..errors import SubspaceError, described, nearest
from ..methods import Hosted
from .config import SubspaceConfig
from .mam import mam_model
from .sizing import peft_config


def config_of(fields: Mapping[str, Any], common: Mapping[str, Any]) -> peft.PeftConfig:
    """Return the config of an adapter.

    Args:
        fields: fields of ``SubspaceConfig``; peft's own methods take only ``method`` and ``r``.
        common: fields of all configs, such as ``task_type``.

    Raises:
        SubspaceError: the method, the formula or a value is unknown, or a value has no meaning with the method.
    """
    known = _hosted(fields.get("method"))
    if known is None:
        return SubspaceConfig(**common, **fields)
    unused = sorted(fields.keys() - {"method", "r"})
    if unused:
        raise SubspaceError(f"adapter.{unused[0]} has no meaning with method {known.name!r}: leave it out")
    return peft_config(known, fields.get("r", SubspaceConfig.r), common)


def peft_config_of(values: Mapping[str, Any], common: Mapping[str, Any]) -> peft.PeftConfig:
    """Return a config of one of peft's own classes from its type and its fields.

    Args:
        values: ``peft_type``, such as "LORA", and fields of that type's class.
        common: fields of all configs, such as ``task_type``.

    Raises:
        SubspaceError: peft has no such type, or its class no such field, or refuses a value.
    """
    given = dict(values)
    name = str(given.pop("peft_type", None)).upper()
    types: Mapping[str, Any] = {str(kind): made for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    known = {kind.rpartition(".")[2]: made for kind, made in types.items() if made is not SubspaceConfig}
    if name not in known:
        raise SubspaceError(f"adapter.peft has peft_type {name!r}; {nearest(name, known)}")
    fields = [field.name for field in dataclasses.fields(known[name]) if field.init]
    for field in given:
        if field not in fields:
            raise SubspaceError(
                f"adapter.peft: {known[name].__name__} has no field {field!r}; {nearest(field, fields)}"
            )
    try:
        made: peft.PeftConfig = known[name](**{key: value for key, value in common.items() if key in fields} | given)
    except (TypeError, ValueError) as error:
        raise SubspaceError(f"adapter.peft: {described(error)}") from error
    return made


def with_adapter(model: nn.Module, config: peft.PeftConfig, method: str | None = None) -> peft.PeftModel:
    """Return the model with a new adapter, from a config made by ``config_of``.

    Raises:
        SubspaceError: one of peft's own methods is wanted, all of which are for texts, and the config has no
            ``task_type``, such as that of an image model.
    """
    known = _hosted(method)
    if known is not None and config.task_type is None:
        raise SubspaceError(
            f"method {known.name!r} adds tokens to texts, which this model does not read: choose another"
        )
    if known is not None and known.parallel:
        return mam_model(model, config)  # type: ignore[arg-type]  # of prefix tuning
    return peft.get_peft_model(model, config)


def _hosted(method: str | None) -> Hosted | None:
    return None if method is None else methods.HOSTED.get(method)
