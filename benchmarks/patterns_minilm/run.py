"""Matrix pattern constraints on all-MiniLM-L6-v2: weights x seeds, the factors' orthogonality and the score.

    python benchmarks/patterns_minilm/run.py --data FOLDER   # FOLDER/cola holds train and validation files

Every run leaves a record in the results folder as soon as it is done, and the script goes on where it stopped.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from subspace_tuning.files import write_text
from subspace_tuning.jobs.script import grid, grid_parser, one_line_errors
from subspace_tuning.jobs.units import kept

HERE = Path(__file__).resolve().parent
METHOD, RANK, EPOCHS, LONGEST, TASK = "lora", 8, 2, 40, "cola"
SEEDS = (0, 1, 2)


# What is told of the pattern, by the name of the setting.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "orthogonal-0.001": {"pattern": "orthogonal", "pattern_weight": 1e-3, "pattern_reduction": "sum"},
    "diagonal-0.001": {"pattern": "diagonal", "pattern_weight": 1e-3, "pattern_reduction": "sum"},
}

Job = tuple[str, int]  # setting, seed
JOBS: dict[str, Job] = {f"{title}-{seed}": (title, seed) for seed, title in product(SEEDS, SETTINGS)}


def measure(job: Job, data: Path, runs: Path) -> dict[str, Any]:
    """Does one run and gives what the table needs of its record."""
    from subspace_tuning.training.run import run
    from subspace_tuning.training.sections import AdapterSection, RunConfig, TaskSection, TrainingSection

    setting, seed = job
    config = RunConfig(
        model="minilm",
        output=str(runs / f"{setting}-{seed}"),
        task=TaskSection(name=TASK, data=str(data / TASK), max_length=LONGEST),
        adapter=AdapterSection(method=METHOD, r=RANK, **SETTINGS[setting]),
        training=TrainingSection(learning_rate=1e-3, head_learning_rate=1e-3, epochs=EPOCHS, seed=seed, threads=1),
    )
    record = run(config, progress=False).record
    found = record.pop("orthogonality").values()
    means = {key: statistics.mean(one[key] for one in found) for key in ("A", "B", "cosine_A", "cosine_B")}
    rest = {key: record[key] for key in ("score", "metric", "seconds")}
    return {"setting": setting, "seed": seed, "orthogonality": means, **rest}


def table(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The results as Markdown: means over the seeds."""
    yield from ("# Matrix pattern constraints on all-MiniLM-L6-v2", "")
    yield from ("Written by `run.py`; what the columns mean stands in README.md.", "")
    yield "| pattern, weight | ‖AᵀA − I‖ | ‖BBᵀ − I‖ | cosine A | cosine B | score (each seed) |"
    yield "|---|---|---|---|---|---|"
    for setting in SETTINGS:
        group = [record for record in records if record["setting"] == setting]
        if group:
            mean = {
                key: statistics.mean(one["orthogonality"][key] for one in group) for key in group[0]["orthogonality"]
            }
            scores = [one["score"] for one in group]
            shown = f"{statistics.mean(scores):.4f} ({', '.join(f'{score:.3f}' for score in scores)})"
            yield (
                f"| {setting} | {mean['A']:.3f} | {mean['B']:.3f} | {mean['cosine_A']:.3f} "
                f"| {mean['cosine_B']:.3f} | {shown} |"
            )
    last = max(records, key=lambda record: str(record["date"]))
    machine, versions = last["machine"], last["versions"]
    yield from ("", f"Machine: {machine['cpu']}, {machine['cores']} cores, one thread for each of two runs at a time.")
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
    yield f"Last run: {last['date']}."


def pages(results: Path) -> None:
    """Writes the table of all records that are there."""
    if records := list(kept(results, JOBS).values()):
        write_text(results / "results.md", "\n".join(table(records)) + "\n")


@one_line_errors()
def main() -> None:
    """Reads the command line, does what is missing and writes the table."""
    words = grid_parser(__doc__, HERE / "results", workers=2)
    words.add_argument("--data", type=Path, help="the folder with a folder cola in it")
    words.add_argument("--runs", type=Path, default=Path("runs/patterns_minilm"))
    options = words.parse_args()
    if not options.table and options.data is None:
        words.error("--data is needed to train")
    grid(
        options,
        {"task": TASK, "method": METHOD, "rank": RANK, "epochs": EPOCHS, "max_length": LONGEST, "settings": SETTINGS},
        JOBS,
        partial(measure, data=options.data, runs=options.runs),
        pages,
        on_result=lambda name, one: print(f"{name}: {one['score']:.4f} {one['orthogonality']}", flush=True),
    )


if __name__ == "__main__":
    main()
