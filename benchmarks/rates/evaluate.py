"""Compares the learning rates that follow from formulas with the best ones of the sweeps in results/.

python benchmarks/rates/evaluate.py           # writes results/rates.md, results/rates.json and docs/rates.svg
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModel

from subspace_tuning import SubspaceConfig, methods
from subspace_tuning.files import write_json, write_text
from subspace_tuning.models.locate import locate
from subspace_tuning.provenance import provenance
from subspace_tuning.tuner.rates import Rates

HERE = Path(__file__).resolve().parent
RESULTS, PICTURE = HERE / "results", HERE.parents[1] / "docs" / "rates.svg"
FACTOR = 2.0
"""A prediction holds if it is within this factor of the best rate."""


@dataclass(frozen=True)
class Sweep:
    """A file of runs: the loss whose minimum makes a rate the best, and the scale s of the low-rank terms."""

    title: str
    file: str
    loss: str
    alpha: float


SWEEPS = (
    Sweep("A: CoLA and MRPC, 530 steps of 32 rows", "minilm_gpu.jsonl", "train", 8.0),
    Sweep("B: MRPC, 229 steps of 16 rows", "minilm_out_of_sample.jsonl", "train", 8.0),
    Sweep("C: four tasks, 200 steps of 8 rows", "sweep/runs.jsonl", "loss", 16.0),
)


@dataclass(frozen=True)
class Found:
    """The best rate of a formula in one sweep, over its tasks and seeds, beside the derived one."""

    sweep: str
    formula: str
    derived: float
    best: float
    lowest: float
    highest: float
    runs: int
    edge: bool
    constant: float | None

    @property
    def ratio(self) -> float:
        """The derived rate over the best."""
        return self.derived / self.best

    @property
    def holds(self) -> bool:
        """Whether the derived rate is within the factor of the best."""
        return 1 / FACTOR <= self.ratio <= FACTOR


def minimum(losses: Mapping[float, float]) -> tuple[float, bool]:
    """Return the rate of the least loss, by a parabola through the lowest points, and whether it is at an edge."""
    rates = sorted(losses)
    place = min(range(len(rates)), key=lambda index: losses[rates[index]])
    if place in (0, len(rates) - 1):
        return rates[place], True
    (a, b, c), (x, y, z) = zip(*((losses[rate], math.log(rate)) for rate in rates[place - 1 : place + 2]), strict=True)
    slopes = (b - a) / (y - x), (c - b) / (z - y)
    bend = (slopes[1] - slopes[0]) / (z - x)
    vertex = (x + y) / 2 - slopes[0] / (2 * bend) if bend > 0 else y
    return math.exp(min(max(vertex, x), z)), False


def found_in(sweep: Sweep, rates: Rates) -> Iterator[Found]:
    """Yield what a sweep says of each of its formulas."""
    file = RESULTS / sweep.file
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    curves: dict[str, dict[tuple[str, int], dict[float, float]]] = {}
    for line in lines:
        loss = math.inf if line[sweep.loss] is None else line[sweep.loss]
        curves.setdefault(line["method"], {}).setdefault((line["task"], line["seed"]), {})[line["rate"]] = loss
    for name, tasks in curves.items():
        whole = max(len(losses) for losses in tasks.values())
        every = [minimum(losses) for losses in tasks.values() if len(losses) == whole and whole >= 4]
        if not every:
            continue
        best = [rate for rate, _ in every]
        derived = rates.derived(config_of(name, sweep.alpha))
        constant = methods.get(name).learning_rate if methods.find(name) else None
        mean = math.exp(sum(map(math.log, best)) / len(best))
        edge = any(at_edge for _, at_edge in every)
        yield Found(sweep.title[0], name, derived, mean, min(best), max(best), len(best), edge, constant)


def config_of(name: str, alpha: float) -> SubspaceConfig:
    """Return the adapter of a sweep; full fine-tuning is the formula W + Delta."""
    if name == "full":
        return SubspaceConfig(formula="W + Delta")
    named: dict[str, Any] = {"formula": name} if " " in name else {"method": name}
    return SubspaceConfig(**named, r=8, alpha=alpha)


def table(found: Sequence[Found]) -> str:
    """Return the comparison as Markdown."""
    lines = ["# Derived and best learning rates", "", "Written by `evaluate.py`; README.md says what the columns mean."]
    for sweep in SWEEPS:
        group = [one for one in found if one.sweep == sweep.title[0]]
        if not group:
            continue
        held = sum(one.holds for one in group)
        spread = math.exp(math.sqrt(sum(math.log(one.ratio) ** 2 for one in group) / len(group)))
        lines += [
            "",
            f"## {sweep.title}, s = {sweep.alpha / 8:g}",
            "",
            f"{held} of {len(group)} within a factor of {FACTOR:g}; geometric spread {spread:.2f}.",
            "",
            "| formula | derived | best | lowest to highest | curves | derived / best | constant |",
            "|---|---|---|---|---|---|---|",
            *map(_line, sorted(group, key=lambda one: abs(math.log(one.ratio)))),
        ]
    return "\n".join(lines) + "\n"


def _line(one: Found) -> str:
    constant = "" if one.constant is None else f"{one.constant:.1e}"
    edge = ", at an edge" if one.edge else ""
    wrong = "" if one.holds else " (no)"
    return (
        f"| `{one.formula}` | {one.derived:.1e} | {one.best:.1e} | {one.lowest:.1e} to {one.highest:.1e}{edge} "
        f"| {one.runs} | {one.ratio:.2f}{wrong} | {constant} |"
    )


def draw(found: Sequence[Found]) -> None:
    """Draw the derived rates over the best ones."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"], rcParams["svg.fonttype"] = "rates", "none"
    figure = Figure(figsize=(7, 6), layout="constrained")
    axis = figure.subplots()
    ends = [min(one.lowest for one in found) / 2, max(one.highest for one in found) * 2]
    axis.fill_between(ends, [end / FACTOR for end in ends], [end * FACTOR for end in ends], color="0.9", linewidth=0)
    axis.plot(ends, ends, color="0.6", linewidth=0.8)
    for sweep, mark in zip(SWEEPS, "os^", strict=True):
        group = [one for one in found if one.sweep == sweep.title[0]]
        if group:
            best, derived = [one.best for one in group], [one.derived for one in group]
            errors = [[max(end, 0.0) for end in reached] for reached in zip(*map(_reach, group), strict=True)]
            axis.errorbar(best, derived, xerr=errors, fmt=mark, markersize=4, linewidth=0.8, label=sweep.title)
    for one in {one.formula: one for one in found}.values():
        axis.annotate(one.formula, (one.best, one.derived), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axis.set(xscale="log", yscale="log", xlabel="best rate of the sweep", ylabel="rate that follows from the formula")
    axis.legend(fontsize=7, loc="upper left")
    figure.savefig(PICTURE, format="svg", metadata={"Date": None})


def _reach(one: Found) -> tuple[float, float]:
    return one.best - one.lowest, one.highest - one.best


def main() -> None:
    """Evaluate the sweeps that are there."""
    rates = Rates(AutoModel.from_pretrained(locate("minilm")))
    found = [one for sweep in SWEEPS for one in found_in(sweep, rates)]
    write_text(RESULTS / "rates.md", table(found))
    rows = [asdict(one) | {"ratio": one.ratio, "holds": one.holds} for one in found]
    write_json(RESULTS / "rates.json", provenance() | {"found": rows})
    draw(found)
    print(table(found))


if __name__ == "__main__":
    main()
