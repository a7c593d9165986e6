"""Schedules: changes of factors between optimiser steps. One file each."""

from .adalora import AdaLoRA
from .base import Context, NoSchedule, Options, Schedule, Site
from .dynamic_mask import DynamicMask
from .flexlora import FlexLoRA
from .lora_dash import LoRADash

SCHEDULES: dict[str, type[Schedule]] = {
    "adalora": AdaLoRA,
    "flexlora": FlexLoRA,
    "lora_dash": LoRADash,
    "dynamic_mask": DynamicMask,
}

__all__ = ["SCHEDULES", "Context", "NoSchedule", "Options", "Schedule", "Site"]
