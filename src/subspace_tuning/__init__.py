"""Subspace Tuning: a fine-tuning method is a formula phi(W) = g(f(W)) over a frozen weight W.

``import subspace_tuning`` imports peft and registers the tuner with it. The formula algebra and the methods
(``subspace_tuning.algebra``, ``subspace_tuning.methods``) themselves need torch alone.
"""

from __future__ import annotations

import importlib.metadata

from . import methods
from .errors import SubspaceError
from .methods import method
from .tuner import (
    PenaltyCallback,
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
    "PenaltyCallback",
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
