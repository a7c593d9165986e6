"""DeepSpeed's ZeRO, if the launcher asks for it: its config, with the run's own values.

Every process loads the whole model, since factors and constants start from W. ZeRO-3 divides the weights when training
starts.
"""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from typing import Any

from accelerate.utils import DeepSpeedPlugin
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ..errors import SubspaceError, reading
from .sections import Precision

_CHOSEN = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
_REFUSED = {
    "optimizer": "a run has its own",
    "scheduler": "training.scheduler names it",
    "fp16": "training.precision sets it",
    "bf16": "training.precision sets it",
    "amp": "training.precision sets it",
}


def is_asked() -> bool:
    """Return whether the launcher asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def stage() -> int:
    """Return the stage of ZeRO for which the launcher asks; 0 for none."""
    return int(_given()["zero_optimization"].get("stage", 0)) if is_asked() else 0


def check(precision: Precision) -> None:
    """Check what the launcher asks for, before the model is loaded.

    Args:
        precision: that of the run's products.

    Raises:
        SubspaceError: DeepSpeed is missing, its config sets what a run sets, or it cannot have the precision.
    """
    if find_spec("deepspeed") is None:
        raise SubspaceError("the launcher asks for DeepSpeed, which is not installed: pip install deepspeed")
    given = _given()
    for name, why in _REFUSED.items():
        part = given.get(name)
        if part is not None and (name in ("optimizer", "scheduler") or part.get("enabled") not in (False, "auto")):
            raise SubspaceError(f"the DeepSpeed config has {name!r}, and {why}: remove it")
    # With DeepSpeed 0.19.8 and bfloat16, factors move under ZeRO-3 as in one process, and otherwise under ZeRO-2.
    fits = (Precision.float32, Precision.bfloat16) if stage() == 3 else (Precision.float32,)
    if precision not in fits:
        raise SubspaceError(
            f"ZeRO-{stage()} does not train with products in {precision.value} here: set training.precision=float32"
        )
    # By the config of an earlier run in this process, transformers would divide the weights while it loads them.
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def settings(*, bfloat16: bool) -> dict[str, Any]:
    """Return DeepSpeed's config for a run, whose own values replace those of the launcher.

    Args:
        bfloat16: whether products are in bfloat16, with weights in float32.
    """
    given = {name: value for name, value in _given().items() if name not in _REFUSED}
    given["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True  # checkpoints hold whole weights
    autocast = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}} if bfloat16 else {}
    return given | dict.fromkeys(_CHOSEN, "auto") | autocast


def _given() -> dict[str, Any]:
    """Return the config that the launcher gives, by a file or by options."""
    with reading("the DeepSpeed config of the launcher", "see the documentation of accelerate"):
        given: dict[str, Any] = copy.deepcopy(DeepSpeedPlugin().hf_ds_config.config)
        if not isinstance(given["zero_optimization"], dict):
            raise ValueError("zero_optimization is not an object")
    return given
