"""Matrix pattern constraints on all-MiniLM-L6-v2: weights x seeds, the factors' orthogonality and the score.

    python benchmarks/patterns_minilm/run.py --data FOLDER   # FOLDER/cola holds train and validation files

Every run leaves a record in the results folder as soon as it is done, and the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
METHOD, RANK, EPOCHS, LONGEST, TASK = "lora", 8, 2, 40, "cola"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """A pattern with a weight; the weight 0 is none."""

    pattern: str
    weight: float

    @property
    def name(self) -> str:
        return "none" if not self.weight else f"{self.pattern}-{self.weight:g}"


SETTINGS = (
    Setting("none", 0.0),
    *(Setting(pattern, weight) for pattern in ("orthogonal", "diagonal") for weight in (1e-3,)),
)


def perform(setting: Setting, seed: int, data: Path, runs: Path) -> dict[str, Any]:
    """Does one run and gives what the table needs of its record."""
    from subspace_tuning.training.run import run
    from subspace_tuning.training.sections import AdapterSection, RunConfig, TaskSection, TrainingSection

    penalised = {"pattern": setting.pattern, "pattern_weight": setting.weight, "pattern_reduction": "sum"}
    config = RunConfig(
        model="minilm",
        output=str(runs / f"{setting.name}-{seed}"),
        task=TaskSection(name=TASK, data=str(data / TASK), max_length=LONGEST),
        adapter=AdapterSection(method=METHOD, r=RANK, **(penalised if setting.weight else {})),
        training=TrainingSection(head_learning_rate=1e-3, epochs=EPOCHS, seed=seed, threads=1),
    )
    record = run(config, progress=False).record
    found = record.pop("orthogonality").values()
    means = {key: statistics.mean(one[key] for one in found) for key in ("A", "B", "cosine_A", "cosine_B")}
    kept = {key: record[key] for key in ("score", "metric", "seconds", "date", "machine", "versions")}
    return {"setting": setting.name, "seed": seed, "orthogonality": means, **kept}


def read(results: Path) -> list[dict[str, Any]]:
    """The records that are there."""
    paths = [results / f"{setting.name}-{seed}.json" for setting in SETTINGS for seed in SEEDS]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def table(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The results as Markdown: means over the seeds."""
    yield from ("# Matrix pattern constraints on all-MiniLM-L6-v2", "")
    yield from ("Written by `run.py`; what the columns mean stands in README.md.", "")
    yield "| pattern, weight | ‖AᵀA − I‖ | ‖BBᵀ − I‖ | cosine A | cosine B | score (each seed) |"
    yield "|---|---|---|---|---|---|"
    for setting in SETTINGS:
        group = [record for record in records if record["setting"] == setting.name]
        if group:
            mean = {
                key: statistics.mean(one["orthogonality"][key] for one in group) for key in group[0]["orthogonality"]
            }
            scores = [one["score"] for one in group]
            shown = f"{statistics.mean(scores):.4f} ({', '.join(f'{score:.3f}' for score in scores)})"
            yield (
                f"| {setting.name} | {mean['A']:.3f} | {mean['B']:.3f} | {mean['cosine_A']:.3f} "
                f"| {mean['cosine_B']:.3f} | {shown} |"
            )
    last = max(records, key=lambda record: str(record["date"]))
    machine, versions = last["machine"], last["versions"]
    yield from ("", f"Machine: {machine['cpu']}, {machine['cores']} cores, one thread for each of two runs at a time.")
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
    yield f"Last run: {last['date']}."


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    """Reads the command line, does what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with a folder cola in it")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--runs", type=Path, default=Path("runs/patterns_minilm"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    wanted = [(setting, seed) for seed in SEEDS for setting in SETTINGS]
    missing = [(s, seed) for s, seed in wanted if not (options.results / f"{s.name}-{seed}.json").is_file()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(perform, s, seed, options.data, options.runs): (s, seed) for s, seed in missing}
        for future in as_completed(futures):
            setting, seed = futures[future]
            record = future.result()
            _write(options.results / f"{setting.name}-{seed}.json", json.dumps(record, indent=2))
            print(f"{setting.name}-{seed}: {record['score']:.4f} {record['orthogonality']}", flush=True)
            _write(options.results / "results.md", "\n".join(table(read(options.results))) + "\n")


if __name__ == "__main__":
    main()
