"""Subspace Tuning: a fine-tuning method is a formula phi(W) = g(f(W)) over a frozen weight W.

Write the formula down, or name a method, and adapt a model with peft:

    from peft import get_peft_model
    from subspace_tuning import SubspaceConfig

    config = SubspaceConfig(formula="D1 @ W @ D2 + s * A @ B", r=4, target_modules="all-linear")
    model = get_peft_model(model, config)

Where to look:

* ``SubspaceConfig`` has everything that can be set; ``help(SubspaceConfig)`` explains each field.
* ``methods`` is the catalogue: ``methods.every()``, ``methods.get("lora")``; ``method`` declares one of your own.
* ``calibrate`` chooses from data what a mask trains, for the methods that need it.
* ``schedule`` and ``ScheduleCallback`` act between optimiser steps; ``penalty``, ``orthogonality`` and
  ``PenaltyCallback`` are for patterns on A and B; ``parameter_groups`` makes groups for an optimiser. All of them work
  with every method, and do nothing if there is nothing to do.
* ``mam_model`` and ``load_mam`` are for peft's prefix tuning around a model with parallel adapters.
* ``hotswap`` exchanges an adapter for a saved one in place, under compiled code.
* ``SubspaceModel`` and ``SubspaceLayer`` are what peft makes of a config. ``SubspaceError`` is raised on bad input.
* ``subspace_tuning.algebra`` parses formulas; ``subspace_tuning.theory`` computes how close a formula comes to a given
  W*.

On the command line: ``subspace --help``.

``import subspace_tuning`` imports peft and registers the tuner with it. The formula algebra and the methods
(``subspace_tuning.algebra``, ``subspace_tuning.methods``) themselves only need torch.
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
    hotswap,
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
    "hotswap",
    "load_mam",
    "mam_model",
    "method",
    "methods",
    "orthogonality",
    "parameter_groups",
    "penalty",
    "schedule",
]
