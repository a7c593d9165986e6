"""Does a closer approximation score higher? Adapters extracted from fully fine-tuned models, and what each scores.

    python benchmarks/glue_minilm/run.py --data FOLDER --methods full --runs runs/full   # makes the models
    python benchmarks/extract_minilm/run.py --data FOLDER --models runs/full             # extracts and scores
    python benchmarks/extract_minilm/run.py --table                                      # only writes the tables

A job is one method at one budget from one model. Every job leaves a record; given again, the script goes on.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scipy import stats

from subspace_tuning.files import write_text
from subspace_tuning.jobs.fields import read_object
from subspace_tuning.jobs.script import grid, grid_parser, one_line_errors
from subspace_tuning.jobs.units import kept

HERE = Path(__file__).resolve().parent
TASKS: Mapping[str, int] = {"mrpc": 96, "cola": 40}  # tokens, as the models were trained
SEEDS = (0, 1, 2)
BUDGETS = (41_472, 331_776, 2_654_208)  # LoRA at ranks 1, 8 and 64
SIZED = (
    "lora",
    "pissa",
    "milora",
    "spectral",
    "liera",
    "dora",
    "lora_dash",
    "fishmask",
    "pafi",
    "D1 @ W @ D2 + s * A @ B",
)
FIXED = ("bitfit", "ssl", "ia3", "ssb", "sam_parser", "svdiff", "xattn")
REFERENCES = ("tuned", "head")  # the fine-tuned model itself; the base model with the fine-tuned head


Job = tuple[str, int, str, int | None]  # task, seed, method, budget


def jobs() -> Iterator[Job]:
    """One extraction, or one reference, each; model by model, so that an unfinished run has all methods for some."""
    for seed, task in itertools.product(SEEDS, TASKS):
        for method in (*REFERENCES, *FIXED):
            yield task, seed, method, None
        for budget, method in itertools.product(BUDGETS, SIZED):
            yield task, seed, method, budget


def file_name(job: Job) -> str:
    """A file's name for a job."""
    task, seed, method, budget = job
    words = "".join(letter if letter.isalnum() else "-" for letter in method)
    return f"{task}-{seed}-{words}-{budget or 'fixed'}"


JOBS = {file_name(job): job for job in jobs()}


def measure(job: Job, data: Path, models: Path, work: Path) -> dict[str, Any]:
    """Extract, load the adapter as anybody would, and score it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from subspace_tuning import SubspaceConfig
    from subspace_tuning.adapters.extract import Extraction, extract
    from subspace_tuning.counting.count import matched
    from subspace_tuning.models.checkpoint import Checkpoint
    from subspace_tuning.models.locate import locate
    from subspace_tuning.tuner.targets import placement

    torch.set_num_threads(1)
    task, seed, method, budget = job
    folder = models / f"{task}-full-{seed}" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    record: dict[str, Any] = {"task": task, "seed": seed, "method": method, "budget": budget}
    if method in REFERENCES:
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
        if method == "head":
            base = AutoModelForSequenceClassification.from_pretrained(locate("minilm"))
            base.classifier, base.bert.pooler = model.classifier, model.bert.pooler
            model = base
        return record | {"score": score(model, tokenizer, task, data)}
    base_files, tuned = Checkpoint("minilm"), Checkpoint(str(folder))
    named = {"method": method} if method.isidentifier() else {"formula": method}
    config = SubspaceConfig(**named)
    if method == "xattn":  # every matrix that any method adapts, whole
        config.target_modules = placement(tuned.model, SubspaceConfig(method="lora"))
    if budget is not None:
        config = matched(tuned.architecture, config, budget)
    output = work / file_name(job)
    rows = extract(base_files, tuned, Extraction(config), output, overwrite=True)
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(locate("minilm")), str(output))
    return record | {
        "rank": config.r if config.resolved.formula.has_rank else None,
        "parameters": sum(row["parameters"] for row in rows),
        "error": total_error(rows, tuned, base_files),
        "how": sorted({row["how"] for row in rows}),
        "seconds": sum(row["seconds"] for row in rows),
        "score": score(model, tokenizer, task, data),
    }


def total_error(rows: Sequence[Mapping[str, Any]], tuned: Any, base: Any) -> float:
    """||W* - phi(W)|| over ||W* - W||, over all matrices that any method adapts, also those that this one leaves."""
    from subspace_tuning.adapters.pairs import pair
    from subspace_tuning.adapters.recommend import matrices

    lost = whole = 0.0
    errors = {row["module"]: row["change_error"] for row in rows}
    for module in matrices(tuned.model):
        W, W_star = pair(base, tuned, module)
        energy = float((W_star - W).square().sum())
        whole += energy
        lost += energy * errors.get(module, 1.0) ** 2
    return float((lost / whole) ** 0.5)


def score(model: Any, tokenizer: Any, name: str, data: Path) -> float:
    """The task's primary figure on the validation split."""
    import numpy as np
    import torch

    from subspace_tuning import tasks

    task = tasks.get(name)
    rows = task.load(str(data / name))["validation"]
    logits = []
    with torch.no_grad():
        for batch in task.batches(rows, tokenizer, TASKS[name], 64):
            batch.pop("labels", None)
            logits.append(model.eval()(**batch).logits.numpy())
    return task.score(task.predict(np.concatenate(logits)), rows.labels)[task.primary]


def tables_of(found: Sequence[Mapping[str, Any]], stamp: Mapping[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    yield "# Adapters extracted from fully fine-tuned models\n"
    yield "Written by `run.py`; README.md says what the columns mean.\n"
    for task in TASKS:
        own = [record for record in found if record["task"] == task]
        if not own:
            continue
        seeds = sorted({record["seed"] for record in own})
        yield f"## {task}, models of seeds {', '.join(map(str, seeds))}\n"
        for name in REFERENCES:
            scores = [record["score"] for record in own if record["method"] == name]
            if scores:
                words = "The fine-tuned model" if name == "tuned" else "The base model with the fine-tuned head"
                yield f"{words}: {spread(scores)}.  "
        yield "\n| method | budget | parameters | error of the change | score | found |\n|---|---|---|---|---|---|"
        groups = itertools.groupby(sorted(own, key=key), key=key)
        for (budget, method), group in groups:
            records = list(group)
            if method in REFERENCES:
                continue
            errors = [record["error"] for record in records]
            yield (
                f"| `{method}` | {f'{budget:,}' if budget else 'its own'} | {records[0]['parameters']:,} "
                f"| {statistics.mean(errors):.4f} | {spread([record['score'] for record in records])} "
                f"| {', '.join(records[0]['how'])} |"
            )
        yield ""
        for seed in seeds:
            pairs = [(r["error"], r["score"]) for r in own if r["seed"] == seed and r["method"] not in REFERENCES]
            if len(pairs) > 4:
                result = stats.spearmanr(*zip(*pairs, strict=True))
                yield (
                    f"Seed {seed}: Spearman's correlation of error and score over {len(pairs)} adapters "
                    f"{result.statistic:.3f} (p = {result.pvalue:.1g}).  "
                )
        yield ""
    yield (
        f"{stamp['date']}; {stamp['machine']['cpu']}; "
        + ", ".join(f"{k} {v}" for k, v in stamp["versions"].items())
        + "."
    )


def key(record: Mapping[str, Any]) -> tuple[int, str]:
    """By which records are put together."""
    return record["budget"] or 0, record["method"]


def spread(values: Sequence[float]) -> str:
    """The mean with half the width of its 95 percent t-interval."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


def pages(results: Path) -> None:
    """Writes the tables of all records that are there."""
    found = list(kept(results / "records", JOBS).values())
    dated = [record for record in found if "date" in record]  # the oldest have one date for all, in a file of its own
    stamp = max(dated, key=lambda one: str(one["date"])) if dated else read_object(results / "provenance.json", "")
    if stamp:
        write_text(results / "results.md", "\n".join(tables_of(found, stamp)) + "\n")


@one_line_errors()
def main() -> None:
    """Reads the command line, does the jobs and writes the tables."""
    words = grid_parser(__doc__, HERE / "results", workers=2)
    words.add_argument("--data", type=Path, help="the folder with one folder per task")
    words.add_argument("--models", type=Path, help="the runs folder of glue_minilm, with its full fine-tunings")
    words.add_argument("--work", type=Path, default=Path("runs/extract_minilm"), help="gets the adapters")
    words.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME", help="some jobs alone")
    options = words.parse_args()
    if not options.table and None in (options.data, options.models):
        words.error("--data and --models are needed to extract")
    grid(
        options,
        {"tokens": TASKS},
        {name: JOBS[name] for name in options.jobs},
        partial(measure, data=options.data, models=options.models, work=options.work),
        pages,
        records="records",
        on_result=lambda name, one: print(
            f"{name}: error {one.get('error', 0):.4f}, score {one['score']:.4f}", flush=True
        ),
    )


if __name__ == "__main__":
    main()
