"""GLUE tasks on all-MiniLM-L6-v2: methods x tasks x seeds, resumable, with a table at the end.

    python benchmarks/glue_minilm/run.py --data FOLDER   # FOLDER/mrpc and FOLDER/cola hold train and validation files

Every run leaves a record in the results folder as soon as it is done. Started again, the script goes on where it
stopped, also in the middle of a run; `--table` writes the tables from the records that are there and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

HERE = Path(__file__).resolve().parent

METHODS = ("ssb", "lora", "flora", "full", "head")
TASKS: Mapping[str, Mapping[str, int]] = {
    "mrpc": {"epochs": 3, "max_length": 96},
    "cola": {"epochs": 3, "max_length": 40},
}
SEEDS = (0, 1, 2)
RANK = 8
BATCH = 32
HEAD_RATE = 1e-3
"""The head's learning rate beside an adapter; a full fine-tuning has one rate for all."""

_TITLES = {
    "matthews_correlation": "Matthews' correlation",
    "mean": "mean of accuracy and F1",
}


@dataclass(frozen=True)
class Job:
    """One run of the benchmark."""

    task: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method}-{self.seed}"


def jobs(tasks: Iterable[str], methods: Iterable[str], seeds: Iterable[int]) -> list[Job]:
    """All runs, seed by seed, so that an unfinished benchmark has every method at least once."""
    return [Job(task, method, seed) for seed in seeds for task in tasks for method in methods]


def perform(job: Job, data: Path, runs: Path, threads: int, precision: str) -> dict[str, Any]:
    """Does one run and gives what the tables need of its record: nothing of it says where files lie."""
    from subspace_tuning.training.run import run
    from subspace_tuning.training.sections import AdapterSection, Precision, RunConfig, TaskSection, TrainingSection

    settings = TASKS[job.task]
    rank = None if job.method in ("full", "head", "ssb") else RANK
    config = RunConfig(
        model="minilm",
        output=str(runs / job.name),
        task=TaskSection(name=job.task, data=str(data / job.task), max_length=settings["max_length"]),
        adapter=AdapterSection(method=job.method, r=rank),
        training=TrainingSection(
            head_learning_rate=None if job.method == "full" else HEAD_RATE,
            epochs=settings["epochs"],
            batch_size=BATCH,
            seed=job.seed,
            threads=threads,
            precision=Precision[precision],
        ),
    )
    record = run(config, progress=False).record
    return {"seed": job.seed, **{key: value for key, value in record.items() if key not in ("config", "result")}}


def run_all(
    wanted: Sequence[Job], data: Path, results: Path, runs: Path, workers: int, threads: int, precision: str
) -> int:
    """Does the runs that have no record yet, `workers` at a time; gives how many failed."""
    results.mkdir(parents=True, exist_ok=True)
    missing = [job for job in wanted if not (results / f"{job.name}.json").is_file()]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are done", flush=True)
    failed = 0
    # Fresh processes: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(perform, job, data, runs, threads, precision): job for job in missing}
        for future in as_completed(futures):
            job = futures[future]
            try:
                record = {**future.result(), "workers": workers}
            except Exception as error:  # one failed run must not take the others' hours with it
                failed += 1
                print(f"{job.name}: {error}", file=sys.stderr, flush=True)
                continue
            _write(results / f"{job.name}.json", json.dumps(record, indent=2))
            print(f"{job.name}: {record['metric']} {record['score']:.4f}, {record['seconds']:.0f} s", flush=True)
    return failed


def read(results: Path) -> list[dict[str, Any]]:
    """The records in the results folder, in the order of `jobs`."""
    paths = [results / f"{job.name}.json" for job in jobs(TASKS, METHODS, SEEDS)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


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


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    """Reads the command line, does what is missing and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with one folder per task")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="gets the records and the tables")
    parser.add_argument("--runs", type=Path, default=Path("runs/glue_minilm"), help="gets adapters and checkpoints")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the products")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    options = parser.parse_args()
    failed = 0
    if not options.table:
        if options.data is None or not options.data.is_dir():
            parser.error(f"--data {options.data} is not a folder")
        wanted = jobs(options.tasks, options.methods, options.seeds)
        failed = run_all(
            wanted,
            options.data,
            options.results,
            options.runs,
            options.workers,
            options.threads,
            options.precision,
        )
    records = read(options.results)
    if records:
        rows = list(summarise(records))
        _write(options.results / "results.md", table(rows, records))
        summary = {"machine": records[-1]["machine"], "versions": records[-1]["versions"], "summary": rows}
        _write(options.results / "results.json", json.dumps(summary, indent=2))
        print(table(rows, records))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
