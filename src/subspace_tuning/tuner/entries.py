"""What a formula needs of a quantised weight: only products with W, or its entries."""

from __future__ import annotations

from enum import Enum

from torch import nn

from ..algebra.names import SPECTRAL_SHAPES
from ..algebra.operators import reads_entries
from ..errors import SubspaceError
from ..methods import Method
from ..methods.starts import reads_weight
from .quantised import door_of


class Needs(Enum):
    """When a method needs the entries of W, not only products with it."""

    NOTHING = "trains without dequantising"
    START = "dequantises at the start"
    PASSES = "dequantises in every pass"
    ALWAYS = "is refused"


def need_of(method: Method) -> Needs:
    """Return when a method needs the entries of W. What it always needs would be kept, and is no smaller than W."""
    formula = method.formula
    if any("k" in SPECTRAL_SHAPES[name] for name in formula.spectral):
        return Needs.ALWAYS
    if reads_entries(formula.evaluated):
        return Needs.PASSES
    starts = any(reads_weight(start) for start in method.starts_for(False).values())
    return Needs.START if starts or formula.spectral or method.chooses_by_weight else Needs.NOTHING


def check_method(method: Method, module: nn.Module, name: str) -> None:
    """Raise SubspaceError if a module is quantised and a method would undo that."""
    door = door_of(module)
    if door is not None and need_of(method) is Needs.ALWAYS:
        raise SubspaceError(
            f"{name} is quantised ({door.library}), and {method.name!r} keeps all singular vectors of W, which take "
            "more than W itself: choose a formula with W, or with U_r and V_r, or load the model without "
            "quantization_config"
        )
