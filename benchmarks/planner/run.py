"""Is the planner's choice the quickest? Every way that it weighs is timed on a grid of methods, sizes and rows.

    python benchmarks/planner/run.py    # some minutes on two cores that do nothing else

A cell is one method on one matrix: its ways are timed forward and backward in turn, and the cell's figure is the time
of the way that the planner picks over that of the quickest.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from subspace_tuning import methods
from subspace_tuning.algebra import Sizes, alternatives
from subspace_tuning.bench.measure import interleaved
from subspace_tuning.files import write_json, write_text
from subspace_tuning.jobs.script import one_line_errors, parser
from subspace_tuning.jobs.units import measured
from subspace_tuning.methods import environment, initial_factors
from subspace_tuning.provenance import provenance

HERE = Path(__file__).resolve().parent
METHODS = "ssl ssb lora flora parallel_adapter pissa spectral dora lora_dash liera sam_parser svdiff".split()
MATRICES = [(384, 384), (384, 1536), (1536, 384)]
RANKS = [8, 64]
ROWS = [16, 128, 2048]
SHORT = 0.004  # seconds: what is quicker is repeated that long, so that the clock and a cold start weigh little
NEAR = 1.1  # a choice within ten percent of the quickest is a good one


def step(way: Any, x: torch.Tensor, leaves: list[torch.Tensor], env: Callable[[], dict[str, Any]]) -> None:
    """One pass forward and back, with the gradient of the rows as inside of a model."""
    y = way.expression.apply(x, env())
    torch.autograd.grad(y, [x, *leaves], torch.ones_like(y), allow_unused=True)


def timed(way: Any, x: torch.Tensor, leaves: dict[str, torch.Tensor], env: Callable[[], dict[str, Any]]) -> float:
    """Seconds of a second step."""
    for _ in range(2):
        started = time.perf_counter()
        step(way, x, list(leaves.values()), env)
    return time.perf_counter() - started


Cell = tuple[str, int, int, int, int]  # method, n, m, rank, rows


def cell(unit: Cell, rounds: int) -> dict[str, Any]:
    """Time the ways of one method on one matrix."""
    name, n, m, rank, rows = unit
    torch.manual_seed(0)
    method = methods.get(name)
    weight = torch.randn(m, n).T / n**0.5  # as a linear layer keeps it
    entries, directions = weight.numel() // 200, min(8, rank)
    factors = initial_factors(method, weight, rank, random=True, entries=entries, directions=directions)
    leaves = {key: tensor.requires_grad_() for key, tensor in factors.parameters.items()}
    x = torch.randn(rows, n, requires_grad=True)
    ways = alternatives(method.formula, Sizes(n, m, rank, entries, directions), rows)

    def env() -> dict[str, Any]:
        return dict(environment(method, weight, leaves, factors.constants, 1.0))

    repeats = max(1, round(SHORT / min(timed(way, x, leaves, env) for way in ways)))

    def repeated(way: Any) -> None:
        for _ in range(repeats):
            step(way, x, list(leaves.values()), env)

    seconds = interleaved({way.name: partial(repeated, way) for way in ways}, rounds)
    best = min(seconds, key=lambda way: statistics.median(seconds[way]))
    pairs = zip(seconds[ways[0].name], seconds[best], strict=True)
    return {
        "method": name,
        "n": n,
        "m": m,
        "rank": rank,
        "rows": rows,
        "chosen": ways[0].name,
        "best": best,
        "to_best": statistics.median(own / other for own, other in pairs),
        "milliseconds": {way.name: 1e3 * statistics.median(seconds[way.name]) / repeats for way in ways},
        "estimates": {way.name: way.cost for way in ways},
    }


def cells(names: list[str]) -> dict[str, Cell]:
    """Every cell of the grid; a method without a rank has one rank."""
    grid = itertools.product(names, MATRICES, RANKS, ROWS)
    every = ((name, n, m, rank, rows) for name, (n, m), rank, rows in grid)
    return {"-".join(map(str, one)): one for one in every if methods.get(one[0]).formula.has_rank or one[3] == RANKS[0]}


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    grid = found["cells"]
    lines = ["# The planner's choice against the quickest way", "", "Written by `run.py`.", ""]
    near = sum(one["to_best"] <= NEAR for one in grid)
    lines.append(f"{near} of {len(grid)} choices are within ten percent of the quickest way.")
    lines += ["", "| method | cells | within 10 % | median | worst | chosen |", "|---|---|---|---|---|---|"]
    for name, group in itertools.groupby(grid, key=lambda one: one["method"]):
        own = list(group)
        ratios = [one["to_best"] for one in own]
        chosen = ", ".join(sorted({one["chosen"] for one in own}))
        good = sum(ratio <= NEAR for ratio in ratios)
        lines.append(
            f"| {name} | {len(own)} | {good} | {statistics.median(ratios):.2f} | {max(ratios):.2f} | {chosen} |"
        )
    lines += ["", "Those further off:", "", "| method | n x m | rank | rows | chosen | best | ratio |"]
    lines.append("|---|---|---|---|---|---|---|")
    for one in sorted(grid, key=lambda one: -one["to_best"]):
        if one["to_best"] > NEAR:
            times = one["milliseconds"]
            lines.append(
                f"| {one['method']} | {one['n']} x {one['m']} | {one['rank']} | {one['rows']} "
                f"| {one['chosen']}, {times[one['chosen']]:.2f} ms | {one['best']}, {times[one['best']]:.2f} ms "
                f"| {one['to_best']:.2f} |"
            )
    machine = found["machine"]
    lines += [
        "",
        f"{found['date']}; {machine['cpu']}, {machine['threads']} threads, torch {found['versions']['torch']}.",
    ]
    return "\n".join([*lines, ""])


@one_line_errors()
def main() -> None:
    """Reads the command line, measures and writes the results."""
    words = parser(__doc__, HERE)
    words.add_argument("--rounds", type=int, default=9)
    words.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options = words.parse_args()
    output, job = options.results / "results.json", {"rounds": options.rounds}
    measure = partial(cell, rounds=options.rounds)

    def on_result(name: str, one: dict[str, Any]) -> None:
        print(name, one["chosen"], one["best"], f"{one['to_best']:.2f}", flush=True)

    with measured(output, job, cells(options.methods), measure, on_result) as found:
        results = {**provenance(), **job, "cells": list(found.values())}
        write_json(output, results)
    write_text(options.results / "results.md", page(results))


if __name__ == "__main__":
    main()
