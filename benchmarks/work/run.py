"""The work people do, by the command `subspace train`: the score before and after each run, with intervals.

    python benchmarks/work/run.py --data FOLDER              # goes on where it stopped when given again
    python benchmarks/work/run.py --data FOLDER --only cola qa --rows 32 --results R --runs S   # a quick trial

README.md says what FOLDER holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import inputs

from subspace_tuning.errors import SubspaceError
from subspace_tuning.files import write_text
from subspace_tuning.jobs.script import grid, grid_parser, one_line_errors
from subspace_tuning.jobs.units import kept

HERE = Path(__file__).resolve().parent

LORA = {"adapter.method": "lora", "adapter.r": 8, "adapter.alpha": 16}
COMMON = {"training.eval_on_start": True, "training.seed": 0}
ENCODER = {"model": "minilm", **LORA, "training.batch_size": 32, "training.head_learning_rate": 1e-3}
DECODER = {
    "model": "RUNS/smollm2",
    **LORA,
    "adapter.target_modules": "all-linear",
    "training.learning_rate": 1e-3,
    "training.epochs": 1,
    "training.batch_size": 8,
    "training.eval_batch_size": 8,
    "training.save_steps": 20,
}
RESTAURANTS = {
    "task.data": "RUNS/restaurants/train.jsonl",
    "task.validation": "RUNS/restaurants/validation.jsonl",
    "task.max_length": 192,
}
CHOICES = {"task.name": "commonsense", "task.max_length": 256}
MIXTURE = {
    "task.name": "instruction",
    **RESTAURANTS,
    "task.eval_rows": 200,
    "training.batch_size": 16,
    "training.eval_batch_size": 16,
}

Words = Mapping[str, Any]
RUNS: dict[str, Words] = {
    "cola": {**ENCODER, "task.name": "cola", "task.data": "DATA/glue/cola", "task.max_length": 40},
    "instruction": {
        **DECODER,
        **RESTAURANTS,
        "task.name": "instruction",
        "task.train_rows": 600,
        "task.eval_rows": 200,
    },
    "instruction-nf4": {
        **DECODER,
        **RESTAURANTS,
        "task.name": "instruction",
        "task.train_rows": 600,
        "task.eval_rows": 200,
        "quantise": "nf4",
    },
    "mixture-pretrained": {
        **MIXTURE,
        "model": "RUNS/mixture",
        "adapter.method": "full",
        "training.learning_rate": 1e-3,
        "training.epochs": 3,
        "task.train_rows": 2000,
    },
    "mixture-formula": {
        **MIXTURE,
        "model": "RUNS/mixture-pretrained/model",
        "adapter.formula": "D1 @ W @ D2 + s * A @ B",
        "adapter.r": 4,
        "adapter.target_parameters": "[experts.gate_up_proj,experts.down_proj]",
        "training.learning_rate": 2e-3,
        "training.epochs": 1,
        "task.train_rows": 4672,
    },
    "generation": {
        **DECODER,
        **RESTAURANTS,
        "task.name": "generation",
        "task.text": "prompt",
        "task.label": "answer",
        "task.train_rows": 600,
        "task.eval_rows": 64,
    },
    "mrpc": {**ENCODER, "task.name": "mrpc", "task.data": "DATA/glue/mrpc", "task.max_length": 96},
    "rte": {**ENCODER, "task.name": "rte", "task.data": "DATA/glue/rte", "task.max_length": 160},
    "stsb": {**ENCODER, "task.name": "stsb", "task.data": "DATA/glue/stsb", "task.max_length": 64},
    "sst2": {
        **ENCODER,
        "task.name": "sst2",
        "task.data": "DATA/glue/sst2",
        "task.max_length": 64,
        "task.train_rows": 10000,
    },
    "qa": {
        **ENCODER,
        "task.name": "question_answering",
        "task.data": "DATA/qa/squad_subset_train.jsonl",
        "task.validation": "DATA/qa/xquad_en_validation.jsonl",
        "task.max_length": 256,
        "task.train_rows": 2500,
        "task.eval_rows": 500,
        "training.epochs": 2,
    },
    "boolq": {
        **DECODER,
        **CHOICES,
        "task.data": "DATA/reasoning/boolq/train.json",
        "task.validation": "DATA/reasoning/boolq/test.json",
        "task.train_rows": 600,
        "task.eval_rows": 300,
    },
    "arc-easy": {
        **DECODER,
        **CHOICES,
        "task.data": "DATA/reasoning/ARC-Easy/train.json",
        "task.validation": "DATA/reasoning/ARC-Easy/test.json",
        "task.train_rows": 600,
        "task.eval_rows": 300,
    },
    "gsm8k": {
        **DECODER,
        "task.name": "maths",
        "task.data": "DATA/reasoning/gsm8k_openai/train.jsonl",
        "task.validation": "DATA/reasoning/gsm8k_openai/test.jsonl",
        "task.max_length": 320,
        "task.max_new_tokens": 160,
        "task.train_rows": 400,
        "task.eval_rows": 64,
    },
}
"""The runs in their order: a run may start from the result of an earlier one."""

KEPT = (
    *("task", "method", "metric", "score", "score_interval", "before", "baseline_score", "final", "parameters"),
    *("learning_rate", "precision", "steps", "seconds", "resumed_from_step", "peak_memory_mib", "cut"),
)


def measure(words: Words, name: str, data: Path, runs: Path, threads: int) -> dict[str, Any]:
    """Does one run and gives what the table needs of its record, and the words that made it."""
    places = {"DATA": str(data.resolve()), "RUNS": str(runs.resolve())}
    given = [f"{key}={value}" for key, value in words.items()]
    for place, folder in places.items():
        given = [word.replace(f"{place}/", f"{folder}/") for word in given]
    output = runs.resolve() / name
    command = [sys.executable, "-m", "subspace_cli", "train", *given, f"output={output}", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SubspaceError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    rows = {split: part["rows"] for split, part in record["data"].items()}
    return {"words": dict(words), "rows": rows, "threads": threads, **{key: record[key] for key in KEPT}}


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores as Markdown."""
    lines = [
        "# The work people do",
        "",
        "Written by `run.py`; README.md says what the columns mean.",
        "",
        "| run | figure | before | after | constant | rows: train, scored | steps | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in records.items():
        figure, (low, high), before = one["metric"], one["score_interval"], one["before"]
        train, scored = one["rows"]["train"], one["rows"]["validation"]
        start = f"{before[figure]:.3f} ({before[f'{figure}_low']:.3f} to {before[f'{figure}_high']:.3f})"
        lines.append(
            f"| {name} | {figure} | {start} | {one['score']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {one['baseline_score']:.3f} | {train:,}, {scored:,} | {one['steps']:,} | {one['seconds'] / 60:.0f} |"
        )
    last = max(records.values(), key=lambda record: str(record["date"]))
    versions = ", ".join(f"{key} {value}" for key, value in last["versions"].items())
    lines += [
        "",
        f"Machine: {last['machine']['cpu']}, {last['machine']['cores']} cores, {last['threads']} thread per run, "
        f"products in {last['precision']}; other work ran beside it, so minutes are no measure of speed.",
        f"Versions: {versions}. Last run: {last['date']}.",
        "",
    ]
    return "\n".join(lines)


def pages(results: Path) -> None:
    """Writes the table of all records that are there."""
    found = kept(results, RUNS)
    if found:
        write_text(results / "results.md", table({name: found[name] for name in RUNS if name in found}))


@one_line_errors()
def main() -> None:
    """Reads the command line, does what is missing and writes the table."""
    words = grid_parser(__doc__, HERE / "results")
    words.add_argument("--data", type=Path, help="the folder with the rows")
    words.add_argument("--runs", type=Path, default=Path("runs/work"), help="gets models, adapters and checkpoints")
    words.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    words.add_argument("--threads", type=int, default=1, help="threads per run")
    words.add_argument("--rows", type=int, help="at most this many rows of each split, for a trial")
    options = words.parse_args()
    if not (options.table or (options.data and options.data.is_dir())):
        words.error(f"--data {options.data} is not a folder")
    if not options.table:
        inputs.make(options.data, options.runs)
    few = {} if options.rows is None else {"task.train_rows": options.rows, "task.eval_rows": options.rows}
    runs = {name: {**COMMON, **RUNS[name], **few} for name in RUNS if name in options.only}
    work = partial(measure, data=options.data, runs=options.runs, threads=options.threads)
    grid(
        options,
        {"threads": options.threads, "rows": options.rows},
        {name: (words, name) for name, words in runs.items()},
        lambda unit: work(*unit),
        pages,
        on_result=lambda name, one: print(
            f"{name}: {one['metric']} {one['before'][one['metric']]:.3f} -> {one['score']:.3f}, {one['seconds']:.0f} s",
            flush=True,
        ),
    )


if __name__ == "__main__":
    main()
