"""Subspace Tuning: a fine-tuning method is a formula phi(W) = g(f(W)) over a frozen weight W.

``import subspace_tuning`` registers the tuner with peft: at once if peft is loaded, else as soon as it is. The formula
algebra and the methods (``subspace_tuning.algebra``, ``subspace_tuning.methods``) need torch alone and load no more.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from ._registration import register_with_peft
from .errors import SubspaceError

if TYPE_CHECKING:
    from . import methods
    from .methods import method
    from .tuner import (
        ScheduleCallback,
        SubspaceConfig,
        SubspaceLayer,
        SubspaceModel,
        calibrate,
        load_mam,
        mam_model,
        orthogonality,
        parameter_groups,
        penalty,
        schedule,
    )

try:
    __version__ = importlib.metadata.version("subspace-tuning")
except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "ScheduleCallback",
    "SubspaceConfig",
    "SubspaceError",
    "SubspaceLayer",
    "SubspaceModel",
    "__version__",
    "calibrate",
    "load_mam",
    "mam_model",
    "method",
    "methods",
    "orthogonality",
    "parameter_groups",
    "penalty",
    "schedule",
]

_OWN = ("SubspaceError", "__version__")
_HOMES = {"methods": "", "method": ".methods"} | {
    name: ".tuner" for name in __all__ if name not in (*_OWN, "method", "methods")
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "methods":
        return importlib.import_module(f"{__name__}.methods")
    return getattr(importlib.import_module(f"{__name__}{_HOMES[name]}"), name)


register_with_peft()
