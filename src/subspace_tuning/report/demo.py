"""The demo's plot."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from ..extras import needs
from ..files import written

if TYPE_CHECKING:
    from ..training.demo import DemoResult


def plot(results: list[DemoResult], path: Path) -> None:
    """Draw accuracy over trainable parameters, with the majority class beside it.

    Raises:
        SubspaceError: matplotlib is not installed.
    """
    needs("drawing", "report", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")  # not pyplot, which would choose a backend globally
    axes = figure.subplots()
    axes.axhline(100 * results[0].majority, color="0.5", linestyle="--", linewidth=1)
    axes.annotate(
        "majority class",
        (1, 100 * results[0].majority),
        (-4, 4),
        ("axes fraction", "data"),
        "offset points",
        ha="right",
    )
    for number, (result, marker) in enumerate(zip(results, itertools.cycle("osD^v"), strict=False)):
        label = f"{result.title}:  {result.formula}  ({result.trainable:,} parameters, {100 * result.accuracy:.1f} %)"
        axes.scatter(
            result.trainable, 100 * result.accuracy, s=70, color=f"C{number}", marker=marker, label=label, zorder=3
        )
    # Below the axes: next to the points, labels of methods with similar results would overlap.
    figure.legend(loc="outside lower left", fontsize=9, frameon=False)
    axes.set(
        xscale="log", xlabel="trainable parameters (without the head)", ylabel="accuracy in percent", ylim=(40, 100)
    )
    axes.margins(x=0.35)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Unseen words: acceptable or not? all-MiniLM-L6-v2, 22.7M parameters", fontsize=10)
    with written(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
