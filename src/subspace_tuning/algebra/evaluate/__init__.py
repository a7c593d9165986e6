"""Evaluation: a formula's plan for the sizes, the rows and the device of a layer, and the kernel that it may use."""

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
