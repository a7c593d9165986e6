"""A made-up comparison: rows with true scores, rates with a best one, losses that fall."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from subspace_tuning.report.page import Page, Verdict
from subspace_tuning.report.page.contents import RUNS

ROWS = {
    "head alone": ("head", 0, 0.0),
    "ia3": ("ia3", 18_432, 0.45),
    "ssl": ("ssl", 9_216, 0.42),
    "ssb": ("ssb", 27_648, 0.55),
    "bitfit": ("bitfit", 34_176, 0.5),
    "lora": ("lora", 331_776, 0.7),
    "flora": ("flora", 332_928, 0.68),
    "dora": ("dora", 359_424, 0.72),
    "pissa": ("pissa", 331_776, 0.69),
    "my formula": ("D1 @ W @ D2 + s * A @ B", 207_360, 0.71),
    "full": ("full", 22_565_376, 0.75),
}
TASKS = {"cola": ("matthews", 0.05, 0.3), "mrpc": ("accuracy_and_f1", 0.75, 0.12), "rte": ("accuracy", 0.52, 0.2)}
VERDICTS = (
    Verdict("SSB scores above (IA)³", "supported", "+0.031 (0.012 to 0.050), p = 0.004", "arXiv:2407.05417, Table II"),
    Verdict("LoRA scores below FLoRA at a matched budget", "contradicted", "−0.006 (−0.010 to −0.002)", "Section V"),
    Verdict("SSL and (IA)³ score alike", "undecided", "margin 0.01, interval −0.004 to 0.013", "Table II"),
)


def simulated(
    rows: dict[str, tuple[str, int, float]] = ROWS,
    tasks: Sequence[str] = tuple(TASKS),
    seeds: int = 5,
    rates: int = 5,
    models: Sequence[str] = ("minilm",),
    budgets: Sequence[float | None] = (None,),
    **others: Any,
) -> Page:
    """Return the page of a grid in which each row has been tuned with two seeds and one report run has failed."""
    rng = np.random.default_rng(0)
    runs: list[dict[str, Any]] = []
    for model, budget, (row, (method, trained, level)), task in product(models, budgets, rows.items(), tasks):
        metric, base, gain = TASKS[task]
        best = 1e-3 * (1e6 / (trained + 1e4)) ** 0.5
        tuning = product(("tuning",), (100, 101), best * 2.0 ** np.arange(-(rates // 2), rates - rates // 2))
        for stage, seed, rate in [*tuning, *(("report", seed, best) for seed in range(seeds))]:
            noise, slow, large = rng.standard_normal(3)
            score = base + gain * level - 0.02 * np.log2(rate / best) ** 2 + 0.01 * noise
            name = f"{len(runs):04x}{rng.integers(2**60):x}"
            what = (name, row, method, task, model, budget, round(trained * (budget or 1)), 148_224, rate, seed, stage)
            how = ("done", metric, score, 60 + 20 * level + 2 * slow, 900 + trained / 2e4 + large)
            runs.append(dict(zip(RUNS, what + how, strict=True)))
    frame = pd.DataFrame(runs)
    frame.loc[frame.index[-1], ["state", "score"]] = ["failed", np.nan]
    by_name = frame.set_index("run")

    def config(run: str) -> dict[str, Any]:
        one = by_name.loc[run]
        adapter = {"method": one["method"], "r": 8, "target_modules": ["query", "value"]}
        training = {"learning_rate": float(one["rate"]), "seed": int(one["seed"]), "epochs": 3.0, "warmup_ratio": 0.06}
        task = {"name": one["task"], "max_length": 128}
        return {"model": one["model"], "task": task, "adapter": adapter, "training": training}

    def curve(run: str) -> list[tuple[float, float]]:
        one = by_name.loc[run]
        if one["state"] != "done":
            return []
        noise = np.random.default_rng(int(run[:4], 16)).normal(size=60)
        steps = np.arange(10, 610, 10)
        losses = 0.35 + 0.35 * np.exp(-float(one["score"]) * steps / 100) + 0.01 * noise
        return [(int(step), float(loss)) for step, loss in zip(steps, losses, strict=True)]

    return Page(frame, config, curve, **{"verdicts": VERDICTS, "intervals": differences(frame)} | others)


def differences(frame: pd.DataFrame, baseline: str = "lora") -> pd.DataFrame:
    """Return the differences of the means from a baseline, with intervals as wide as they happen to be."""
    done = frame[(frame["stage"] == "report") & (frame["state"] == "done")]
    means = done.groupby(["task", "row"], sort=False)["score"].agg(["mean", "sem"]).reset_index()
    if baseline not in set(means["row"]):
        return pd.DataFrame(columns=["task", "row", "baseline", "difference", "low", "high"])
    base = means[means["row"] == baseline].set_index("task")["mean"]
    others = means[means["row"] != baseline]
    difference = others["mean"] - others["task"].map(base)
    half = 3 * others["sem"]
    found = {"difference": difference, "low": difference - half, "high": difference + half}
    return others[["task", "row"]].assign(baseline=baseline, **found)
