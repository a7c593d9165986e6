"""Sweeps of the learning rate on all-MiniLM-L6-v2: formulas x rates x four GLUE tasks x seeds.

    python benchmarks/rates/run.py --data FOLDER   # FOLDER/cola, mrpc, rte and stsb hold train and validation files

Every run adds one line to results/sweep/runs.jsonl as soon as it is done; the same call goes on where it stopped.
``evaluate.py`` compares the rates with those that follow from the formulas.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from subspace_tuning.errors import SubspaceError
from subspace_tuning.jobs.folder import owned
from subspace_tuning.jobs.script import one_line_errors, parser
from subspace_tuning.provenance import provenance

HERE = Path(__file__).resolve().parent

CENTRES: Mapping[str, float] = {
    "lora": 1.0e-3,
    "ssb": 1.5e-2,
    "pissa": 3.1e-4,
    "liera": 6.0e-3,
    "ssl": 5.1e-2,
    "adalora": 3.8e-3,
    "pafi": 8.0e-3,
    "hra": 4.3e-4,
    "lokr": 4.6e-3,
    "parallel_adapter": 1.7e-3,
    "D1 @ W @ D2 + s * A @ B": 1.0e-3,
    "fishmask": 2.0e-3,
}
"""The rate in the middle of each sweep: the derived one, except for fishmask, for which none follows."""
STEP, OFFSETS = 2.5, (0, 1, -1, 2, -2)
TASKS, SEEDS = ("mrpc", "cola", "rte", "stsb"), (0, 1, 2)
RANK, ALPHA = 8, 16.0
STEPS, BATCH, LENGTH, HEAD_RATE = 200, 8, 56, 1e-3
EVALUATED = 400  # rows of the validation split

Run = tuple[str, str, int, float]  # formula, task, seed, rate


def runs() -> Iterator[Run]:
    """Yield all runs, such that an unfinished sweep has every formula at the middle rates first."""
    for seed, task, offset, name in product(SEEDS, TASKS, OFFSETS, CENTRES):
        yield name, task, seed, float(f"{CENTRES[name] * STEP**offset:.3g}")


def measure(one: Run, data: Path) -> dict[str, Any]:
    """Do one run and return its line. A run that diverges has no loss."""
    from subspace_tuning.training.run import run
    from subspace_tuning.training.sections import AdapterSection, Precision, RunConfig, TaskSection, TrainingSection

    name, task, seed, rate = one
    named = {"formula": name} if " " in name else {"method": name}
    given = {"method": name, "task": task, "seed": seed, "rate": rate}
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            model="minilm",
            output=folder,
            task=TaskSection(name=task, data=str(data / task), max_length=LENGTH, eval_rows=EVALUATED),
            adapter=AdapterSection(**named, r=RANK, alpha=ALPHA),
            training=TrainingSection(
                learning_rate=rate,
                head_learning_rate=HEAD_RATE,
                max_steps=STEPS,
                batch_size=BATCH,
                seed=seed,
                threads=1,
                precision=Precision.float32,
            ),
        )
        try:
            record = run(config, progress=False).record
        except SubspaceError as error:
            if "diverged" not in str(error):
                raise
            return given | {"loss": None, "score": None} | provenance()
    final = record["final"]
    return (
        given
        | {"loss": final["loss"], "score": record["score"], "metric": record["metric"], "steps": record["steps"]}
        | {"seconds": record["seconds"], "derived": record["derived_learning_rate"]}
        | {key: record[key] for key in ("date", "machine", "versions")}
    )


def done(file: Path) -> set[Run]:
    """Return the runs in a file of lines, and cut off a line that was not finished."""
    if not file.exists():
        return set()
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    lines = map(json.loads, whole.splitlines())
    return {(line["method"], line["task"], line["seed"], line["rate"]) for line in lines}


@one_line_errors()
def main() -> None:
    """Read the command line, and do what is missing."""
    words = parser(__doc__, HERE / "results" / "sweep")
    words.add_argument("--data", type=Path, required=True, help="the folder with one folder per task")
    options = words.parse_args()
    if not options.data.is_dir():
        words.error(f"--data {options.data} is not a folder")
    settings = {"steps": STEPS, "batch": BATCH, "length": LENGTH, "rank": RANK, "alpha": ALPHA, "head": HEAD_RATE}
    with owned(options.results, settings | {"rows": EVALUATED}):
        file = options.results / "runs.jsonl"
        found, every = done(file), list(runs())
        for number, one in enumerate(every):
            if one in found:
                continue
            line = measure(one, options.data)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                os.fsync(lines.fileno())
            loss = "diverged" if line["loss"] is None else f"loss {line['loss']:.4f}"
            print(f"{number + 1} of {len(every)}: {one[0]} on {one[1]}, seed {one[2]}, {one[3]:g}: {loss}", flush=True)


if __name__ == "__main__":
    main()
