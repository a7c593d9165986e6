"""Is the planner's choice the quickest? Every way that it weighs is timed on a grid of methods, sizes and rows.

    python benchmarks/planner/run.py    # some minutes on two cores that do nothing else

A cell is one method on one matrix: its ways are timed forward and backward in turn, and the cell's figure is the time
of the way that the planner picks over that of the quickest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from subspace_tuning import methods
from subspace_tuning.algebra import Sizes, alternatives
from subspace_tuning.bench.measure import interleaved
from subspace_tuning.files import written
from subspace_tuning.methods import environment, initial_factors
from subspace_tuning.provenance import circumstances

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


def cell(name: str, n: int, m: int, rank: int, rows: int, rounds: int) -> dict[str, Any]:
    """Time the ways of one method on one matrix."""
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


def cells(rounds: int) -> Iterator[dict[str, Any]]:
    """Every cell of the grid; a method without a rank has one rank."""
    for name, (n, m), rank, rows in itertools.product(METHODS, MATRICES, RANKS, ROWS):
        if methods.get(name).formula.has_rank or rank == RANKS[0]:
            found = cell(name, n, m, rank, rows, rounds)
            print(name, n, m, rank, rows, found["chosen"], found["best"], f"{found['to_best']:.2f}", flush=True)
            yield found


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


def main() -> None:
    """Reads the command line, measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--results", type=Path, default=HERE)
    options = parser.parse_args()
    found = {**circumstances(), "rounds": options.rounds, "cells": list(cells(options.rounds))}
    with written(options.results / "results.json") as file:
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    with written(options.results / "results.md") as file:
        file.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
