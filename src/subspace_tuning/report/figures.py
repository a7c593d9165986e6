"""Figures of what an adapter did: spectra, angles, and its share within W's own subspace."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..extras import needs
from ..files import written
from ..theory.diagnose import Diagnosis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_SPECTRA = 6  # matrices whose spectra are drawn


@dataclass
class Spectra:
    """Collects the singular values of a few matrices, spread over the model."""

    count: int
    kept: list[tuple[str, Any, Any, Any]] = field(default_factory=list)
    _seen: int = 0

    def add(self, module: str, found: Diagnosis) -> None:
        """Collect the spectra of a matrix."""
        wanted = {round(index * (self.count - 1) / (_SPECTRA - 1)) for index in range(_SPECTRA)}
        if self._seen in wanted:
            self.kept.append((module, found.before.S.numpy(), found.after.S.numpy(), found.moved.S.numpy()))
        self._seen += 1


def draw(folder: Path, table: pd.DataFrame, spectra: Spectra, title: str) -> list[Path]:
    """Draw the three figures into a folder and return their paths.

    Raises:
        SubspaceError: matplotlib is not installed.
    """
    figures = {
        "spectra.png": _spectra(spectra, title),
        "angles.png": _angles(table, title),
        "projection.png": _projection(table, title),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = folder / name
        with written(path) as file:
            figure.savefig(file, format="png", dpi=150)
        paths.append(path)
    return paths


def _figure(width: float, height: float) -> Figure:
    needs("drawing", "report", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _spectra(spectra: Spectra, title: str) -> Figure:
    columns = min(3, len(spectra.kept))
    rows = math.ceil(len(spectra.kept) / columns)
    figure = _figure(4.2 * columns, 3.0 * rows + 0.6)
    axes = np.atleast_1d(figure.subplots(rows, columns)).flatten()
    for axis, (module, before, after, moved) in zip(axes, spectra.kept, strict=False):
        axis.plot(np.arange(1, len(before) + 1), before, color="0.55", linewidth=2.5, label="W")
        axis.plot(np.arange(1, len(after) + 1), after, color="tab:blue", linewidth=1, label="φ(W)")
        marker = "." if len(moved) < 64 else None
        axis.plot(np.arange(1, len(moved) + 1), moved, color="tab:orange", marker=marker, linewidth=1, label="φ(W) - W")
        axis.set(xscale="log", yscale="log", xlabel="index")
        axis.set_title(_short(module), fontsize=9)
    axes[0].set_ylabel("singular value")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    for axis in axes[len(spectra.kept) :]:
        axis.set_visible(False)
    figure.suptitle(f"{title}: spectra before and after", fontsize=11)
    return figure


def _short(module: str) -> str:
    words = module.split(".")
    return ".".join(words[-4:])


def _place(module: str) -> tuple[int, str]:
    """Return the number of the layer and the module's name within it."""
    match = _NUMBER.search(module)
    return (int(match[1]), module[match.end() :] or module) if match else (0, module)


def _angles(table: pd.DataFrame, title: str) -> Figure:
    places = [_place(module) for module in table["module"]]
    layers = sorted({layer for layer, _ in places})
    kinds = list(dict.fromkeys(kind for _, kind in places))
    figure = _figure(1.2 * len(kinds) * 2 + 3.5, 0.4 * len(layers) + 2.8)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, side in zip(axes, ("left", "right"), strict=True):
        grid = np.full((len(layers), len(kinds)), np.nan)
        for (layer, kind), overlap, chance in zip(
            places, table[f"{side}_overlap"], table[f"{side}_random"], strict=True
        ):
            grid[layers.index(layer), kinds.index(kind)] = overlap / chance
        limit = max(2.0, float(np.nanmax(grid)) if np.isfinite(grid).any() else 2.0)
        image = axis.imshow(
            np.log2(grid), cmap="coolwarm", vmin=-math.log2(limit), vmax=math.log2(limit), aspect="auto"
        )
        for (row, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8)
        axis.set_xticks(range(len(kinds)), kinds, rotation=40, ha="right", fontsize=8)
        axis.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        axis.set_title(f"{side} singular subspaces", fontsize=10)
        figure.colorbar(image, ax=axis, shrink=0.8, label="log2 of overlap over chance")
    axes[0].set_ylabel("layer")
    figure.suptitle(f"{title}: overlap of the change's leading subspace with W's, in multiples of chance", fontsize=11)
    return figure


def _projection(table: pd.DataFrame, title: str) -> Figure:
    """Return the paper's figure 1 for real data: how far a change moves within W's subspace, and how far out of it."""
    figure = _figure(6.4, 5.6)
    axis = figure.subplots()
    kinds = list(dict.fromkeys(kind for _, kind in map(_place, table["module"])))
    inside = table["change"] * np.sqrt(table["reconstruction_share"])
    outside = table["change"] * np.sqrt(table["extension_share"])
    for number, kind in enumerate(kinds):
        own = np.array([_place(module)[1] == kind for module in table["module"]])
        for x, y in zip(inside[own], outside[own], strict=True):
            axis.annotate(
                "", (x, y), (0, 0), arrowprops={"arrowstyle": "->", "color": f"C{number % 10}", "alpha": 0.35, "lw": 1}
            )
        axis.scatter(inside[own], outside[own], s=18, color=f"C{number % 10}", label=kind, zorder=3)
    across, up = (1.15 * float(part.max() or 1.0) for part in (inside, outside))
    chance = table["reconstruction_share_random"].mean()
    axis.plot([0, up * math.sqrt(chance / (1 - chance))], [0, up], "k:", lw=1, label="a random change (mean)")
    axis.set(xlim=(0, across), ylim=(0, up))  # separate scales for the axes: one share is often far smaller
    axis.set_xlabel("within W's leading subspace (reconstruction), ||P dW Q|| / ||W||")
    axis.set_ylabel("outside of it (extension), / ||W||")
    axis.legend(fontsize=8)
    figure.suptitle(f"{title}: where the change of each matrix leads", fontsize=11)
    return figure
