"""Evaluation: a formula's plan for a layer's sizes, rows and device, and the kernel it may use."""

from .cost import CostModel, cost_model
from .fuse import Fused
from .plan import Alternative, Plan, Stage, alternatives, cost, drops, multiply_adds, plan
from .prepare import Prepared, prepare

__all__ = [
    "Alternative",
    "CostModel",
    "Fused",
    "Plan",
    "Prepared",
    "Stage",
    "alternatives",
    "cost",
    "cost_model",
    "drops",
    "multiply_adds",
    "plan",
    "prepare",
]
