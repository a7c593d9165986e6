"""Names of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..algebra import Formula
from ..algebra.names import start_of
from ..errors import SubspaceError
from .calling import BASE
from .config import SubspaceConfig


def check_name(adapter_name: str, configs: Mapping[str, Any]) -> None:
    """Raise SubspaceError if an adapter cannot have this name beside the adapters of these configs, including its own.

    It must be a valid module name, and peft finds an adapter's tensors by the end of their names, so no factor may have
    the name of an adapter.
    """
    if not isinstance(adapter_name, str) or adapter_name in ("", BASE) or "." in adapter_name:
        raise SubspaceError(f"an adapter cannot be called {adapter_name!r}; choose a name without dots")
    if hasattr(nn.ModuleDict(), adapter_name):
        raise SubspaceError(f"an adapter cannot be called {adapter_name!r}, a name that torch's modules use themselves")
    formulas: dict[int, tuple[str, Formula]] = {}  # by identity: most adapters of a method share its formula
    for name, config in configs.items():
        if isinstance(config, SubspaceConfig):
            formulas.setdefault(id(config.resolved.formula), (name, config.resolved.formula))
    for name, formula in formulas.values():
        saved = {*formula.evaluated.names, *map(start_of, formula.trainable)}
        taken = saved & configs.keys()
        if taken:
            raise SubspaceError(
                f"adapter {name!r} has a factor {min(taken)}, so no adapter of the model may have that name"
            )
