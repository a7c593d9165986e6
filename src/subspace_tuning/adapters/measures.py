"""The report of an extraction: its row for each matrix, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_json, written
from ..theory.approximate import Approximation
from ..theory.budget import energy_rank
from .pairs import spectrum

ReportRow = dict[str, Any]


def row_of(module: str, rank: int, found: Approximation, W: Tensor, W_star: Tensor, seconds: float) -> ReportRow:
    """Return the report's row for one matrix."""
    n, m = W.shape
    change, made = W_star - W, found.matrix - W
    moved = float(torch.linalg.vector_norm(change))
    size = float(made.square().sum())
    leading = spectrum(change)
    energy = leading.square()
    optimal = found.scale * float((change * made).sum()) / size if size else None
    return {
        "module": module,
        "n": n,
        "m": m,
        "rank": rank if found.method.formula.has_rank else None,
        "parameters": sum(tensor.numel() for tensor in found.parameters.values()),
        "how": found.how,
        "relative_error": found.relative_error,
        "change_error": found.error / moved if moved else 0.0,
        "lower_bound": found.lower_bound,
        "change": moved / float(torch.linalg.vector_norm(W)),
        "scale": found.scale,
        "optimal_scale": optimal,
        "stable_rank": float(energy.sum() / energy[0]) if moved else 0.0,
        "rank_of_95_percent": energy_rank(leading, 0.95),
        "singular_values": [float(value) for value in leading[:16]],
        "seconds": round(seconds, 3),
    }


def write_report(folder: Path, rows: list[ReportRow]) -> None:
    """Write a report as data, and as a table for other programs."""
    import pandas as pd

    write_json(folder / "report.json", rows)
    with written(folder / "report.csv") as file:
        pd.DataFrame(rows).drop(columns="singular_values").to_csv(file, index=False)
