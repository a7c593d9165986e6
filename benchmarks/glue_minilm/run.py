"""GLUE tasks on all-MiniLM-L6-v2: methods x tasks x seeds, resumable, with a table at the end.

    python benchmarks/glue_minilm/run.py --data FOLDER   # FOLDER/mrpc and FOLDER/cola hold train and validation files

Every run leaves a record in the results folder as soon as it is done. Started again, the script goes on where it
stopped, also in the middle of a run; `--table` writes the tables from the records that are there and runs nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from scipy import stats

from subspace_tuning.files import write_json, write_text
from subspace_tuning.jobs.script import grid, grid_parser, one_line_errors
from subspace_tuning.jobs.units import kept

HERE = Path(__file__).resolve().parent

METHODS = ("ssb", "lora", "flora", "full", "head")
TASKS: Mapping[str, Mapping[str, int]] = {
    "mrpc": {"epochs": 3, "max_length": 96},
    "cola": {"epochs": 3, "max_length": 40},
}
SEEDS = (0, 1, 2)
RANK = 8
BATCH = 32
RATES = {"ssb": 5e-3, "lora": 1e-3, "flora": 1e-3, "full": 5e-5, "head": 1e-3}
"""The methods' default rates at the time of the recorded runs."""
HEAD_RATE = 1e-3
"""The head's learning rate beside an adapter; a full fine-tuning has one rate for all."""

_TITLES = {
    "matthews_correlation": "Matthews' correlation",
    "mean": "mean of accuracy and F1",
}


Job = tuple[str, str, int]  # task, method, seed


def named(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> dict[str, Job]:
    """Runs by name, seed by seed, so that an unfinished benchmark has every method at least once."""
    jobs = ((task, method, seed) for seed, task, method in product(seeds, tasks, methods))
    return {f"{task}-{method}-{seed}": (task, method, seed) for task, method, seed in jobs}


def measure(job: Job, data: Path, runs: Path, workers: int, threads: int, precision: str) -> dict[str, Any]:
    """Does one run and gives what the tables need of its record: nothing of it says where files lie."""
    from subspace_tuning.training.run import run
    from subspace_tuning.training.sections import AdapterSection, Precision, RunConfig, TaskSection, TrainingSection

    task, method, seed = job
    config = RunConfig(
        model="minilm",
        output=str(runs / "-".join(map(str, job))),
        task=TaskSection(name=task, data=str(data / task), max_length=TASKS[task]["max_length"]),
        adapter=AdapterSection(method=method, r=None if method in ("full", "head", "ssb") else RANK),
        training=TrainingSection(
            learning_rate=RATES[method],
            head_learning_rate=None if method == "full" else HEAD_RATE,
            epochs=TASKS[task]["epochs"],
            batch_size=BATCH,
            seed=seed,
            threads=threads,
            precision=Precision[precision],
        ),
    )
    record = run(config, progress=False).record
    rest = {key: value for key, value in record.items() if key not in ("config", "result")}
    return {"seed": seed, **rest, "workers": workers}


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % t-interval of the mean; None for a single value, which has none."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


def summarise(records: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per task and method over its seeds."""
    for task in TASKS:
        for method in METHODS:
            group = [record for record in records if (record["task"], record["method"]) == (task, method)]
            if not group:
                continue
            scores = [record["score"] for record in group]
            yield {
                "task": task,
                "method": method,
                "metric": group[0]["metric"],
                "runs": len(group),
                "mean": statistics.mean(scores),
                "interval_95": interval(scores),
                "scores": scores,
                "baseline": group[0]["baseline_score"],
                "adapter": group[0]["parameters"]["adapter"],
                "per_mille": group[0]["parameters"]["per_mille"],
                "head": group[0]["parameters"]["head"],
                "learning_rate": group[0]["learning_rate"],
                "seconds": statistics.mean(record["seconds"] for record in group),
            }


def table(rows: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> str:
    """The summary as Markdown."""
    lines = ["# GLUE on all-MiniLM-L6-v2", "", "Written by `run.py`; what the columns mean stands in README.md.", ""]
    for task, settings in TASKS.items():
        group = [row for row in rows if row["task"] == task]
        if not group:
            continue
        epochs, longest, metric = settings["epochs"], settings["max_length"], group[0]["metric"]
        lines += [
            f"## {task}: {_TITLES.get(metric, metric)}",
            "",
            f"{epochs} epochs, batch {BATCH}, up to {longest} tokens. Constant prediction: {group[0]['baseline']:.4f}.",
            "",
            "| method | score, 95 % interval | seeds | adapter parameters | per mille | learning rate | seconds |",
            "|---|---|---|---|---|---|---|",
            *(_line(row) for row in group),
            "",
        ]
    last = max(records, key=lambda record: str(record["date"]))
    machine, versions = last["machine"], last["versions"]
    lines += [
        f"The head (pooler and classifier), trained in every run, has {rows[0]['head']:,} parameters.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores; runs at a time: {last['workers']}, "
        f"threads of each: {machine['threads']}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        f"Last run: {last['date']}.",
        "",
    ]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    half = "" if row["interval_95"] is None else f" ± {row['interval_95']:.4f}"
    return (
        f"| {row['method']} | {row['mean']:.4f}{half} | {row['runs']} | {row['adapter']:,} | {row['per_mille']:.3f} "
        f"| {row['learning_rate']:g} | {row['seconds']:.0f} |"
    )


def pages(results: Path) -> None:
    """Writes the tables of all records that are there."""
    records = list(kept(results, named(list(TASKS), METHODS, SEEDS)).values())
    if records:
        rows = list(summarise(records))
        write_text(results / "results.md", table(rows, records))
        summary = {"machine": records[-1]["machine"], "versions": records[-1]["versions"], "summary": rows}
        write_json(results / "results.json", summary)
        print(table(rows, records))


@one_line_errors()
def main() -> None:
    """Reads the command line, does what is missing and writes the tables."""
    words = grid_parser(__doc__, HERE / "results", workers=2)
    words.add_argument("--data", type=Path, help="the folder with one folder per task")
    words.add_argument("--runs", type=Path, default=Path("runs/glue_minilm"), help="gets adapters and checkpoints")
    words.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    words.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    words.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    words.add_argument("--threads", type=int, default=1, help="threads per run")
    words.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the products")
    options = words.parse_args()
    if not (options.table or (options.data and options.data.is_dir())):
        words.error(f"--data {options.data} is not a folder")
    grid(
        options,
        {"rank": RANK, "batch": BATCH, "head_rate": HEAD_RATE, "tasks": TASKS, "precision": options.precision},
        named(options.tasks, options.methods, options.seeds),
        partial(
            measure,
            data=options.data,
            runs=options.runs,
            workers=options.workers,
            threads=options.threads,
            precision=options.precision,
        ),
        pages,
        on_result=lambda name, one: print(
            f"{name}: {one['metric']} {one['score']:.4f}, {one['seconds']:.0f} s", flush=True
        ),
    )


if __name__ == "__main__":
    main()
