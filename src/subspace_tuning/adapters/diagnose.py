"""What an adapter did to a model, as a data frame with one row per matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..algebra.low_rank import rank_axis
from ..errors import SubspaceError
from ..models.checkpoint import Checkpoint
from ..theory.diagnose import Diagnosis, angles, cosine, skewness
from .adapter import Adapter, SavedLayer, layer_base
from .convert import layer_change

if TYPE_CHECKING:
    import pandas as pd


def frame(
    base: Checkpoint,
    adapter: Adapter,
    k: int = 16,
    other: Adapter | None = None,
    on_diagnosis: Callable[[str, Diagnosis], None] = lambda module, diagnosis: None,
    on_progress: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Diagnose every adapted matrix.

    Args:
        base: the adapter's base model.
        adapter: the adapter, of any method with a dense form.
        k: the number of singular directions in W's leading subspace.
        other: a second adapter of the same model to compare with.
        on_diagnosis: called with each diagnosis, for figures.
        on_progress: called after each matrix.

    Returns:
        One row per matrix. Angles are in degrees; columns that end in ``_random`` are for random subspaces.

    Raises:
        SubspaceError: the adapter does not fit the model, or a matrix, which the message names, has no dense phi(W).
    """
    import pandas as pd

    rows = []
    for module, layer in adapter.layers.items():
        try:
            diagnosis = _diagnosed(base, layer, adapter.source, k)
        except SubspaceError as error:
            raise SubspaceError(f"{module}: {error}") from None
        row = _row(module, layer, diagnosis)
        if other is not None:
            row |= _compared(diagnosis, other, base, module)
        rows.append(row)
        on_diagnosis(module, diagnosis)
        on_progress()
    return pd.DataFrame(rows)


def _diagnosed(base: Checkpoint, layer: SavedLayer, source: str, k: int) -> Diagnosis:
    weight, _ = layer_base(base, layer, source)
    if weight.dim() != 2 or 1 in weight.shape:
        raise SubspaceError("a normalisation has no matrix to diagnose")
    _, change = layer_change(layer, base, source)
    return Diagnosis(weight.double(), change, min(k, *weight.shape))


def _row(module: str, layer: SavedLayer, found: Diagnosis) -> dict[str, Any]:
    row: dict[str, Any] = {
        "module": module,
        "n": found.W.shape[0],
        "m": found.W.shape[1],
        "rank": len(found.moved.S),
        "change": found.size,
        "stable_rank": found.stable_rank,
        "effective_rank": found.effective_rank,
    }
    for side in ("left", "right"):
        row |= {f"{side}_{name}": value for name, value in dataclasses.asdict(getattr(found, side)).items()}
    inside = found.reconstruction_share
    row |= {
        "reconstruction_share": inside,
        "extension_share": 1.0 - inside,
        "reconstruction_share_random": found.reconstruction_random,
        "intruders": found.intruders(),
        "intruders_subspace": found.intruders(subspace=True),
        "task_directions": " ".join(str(index) for index, _ in found.task_directions()),
    }
    return row | _skewness(layer)


def _skewness(layer: SavedLayer) -> dict[str, float]:
    """Return the skewness of A's columns and of B's rows, by the roles of the factors in the first low-rank term."""
    found, shapes = {}, layer.method.formula.shapes
    for term in layer.method.formula.low_rank[:1]:
        for column, node in (("skewness_A", term.down), ("skewness_B", term.up)):
            for name in node.names:
                factor = layer.parameters.get(name)
                if factor is not None and factor.dim() == 2:
                    found[column] = skewness((factor.T if rank_axis(shapes[name]) == 0 else factor).double())
    return found


def _compared(found: Diagnosis, other: Adapter, base: Checkpoint, module: str) -> dict[str, Any]:
    """Compare the change of another adapter with that of the first."""
    if module not in other.layers:
        return {"other_cosine": 0.0, "other_size": 0.0}
    _, change = layer_change(other.layers[module], base, other.source)
    second = Diagnosis(found.W, change, found.k)
    return {
        "other_cosine": cosine(found.change, change),
        "other_size": len(second.moved.S) and float(second.moved.S.norm()) / float(found.before.S.norm()),
        "other_left_overlap": angles(found.moved.U[:, : found.k], second.moved.U[:, : found.k]).overlap,
        "other_right_overlap": angles(found.moved.V[:, : found.k], second.moved.V[:, : found.k]).overlap,
    }
