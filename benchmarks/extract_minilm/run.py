"""Does a closer approximation score higher? Adapters extracted from fully fine-tuned models, and what each scores.

    python benchmarks/glue_minilm/run.py --data FOLDER --methods full --runs runs/full   # makes the models
    python benchmarks/extract_minilm/run.py --data FOLDER --models runs/full             # extracts and scores
    python benchmarks/extract_minilm/run.py --table                                      # only writes the tables

A job is one method at one budget from one model. Every job leaves a record; given again, the script goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from subspace_tuning.files import write_json, written
from subspace_tuning.provenance import circumstances

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


@dataclass(frozen=True)
class Job:
    """One extraction, or one reference, from one model."""

    task: str
    seed: int
    method: str
    budget: int | None

    @property
    def name(self) -> str:
        words = "".join(letter if letter.isalnum() else "-" for letter in self.method)
        return f"{self.task}-{self.seed}-{words}-{self.budget or 'fixed'}"


def jobs() -> Iterator[Job]:
    """All jobs, model by model, so that an unfinished run has all methods for some models."""
    for seed, task in itertools.product(SEEDS, TASKS):
        for method in (*REFERENCES, *FIXED):
            yield Job(task, seed, method, None)
        for budget, method in itertools.product(BUDGETS, SIZED):
            yield Job(task, seed, method, budget)


def perform(job: Job, data: Path, models: Path, work: Path) -> dict[str, Any]:
    """Extract, load the adapter as anybody would, and score it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from subspace_tuning import SubspaceConfig, SubspaceModel
    from subspace_tuning.adapters.extract import Extraction, extract
    from subspace_tuning.counting.count import matched
    from subspace_tuning.models.checkpoint import Checkpoint
    from subspace_tuning.models.locate import locate

    torch.set_num_threads(1)
    folder = models / f"{job.task}-full-{job.seed}" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    record: dict[str, Any] = {"task": job.task, "seed": job.seed, "method": job.method, "budget": job.budget}
    if job.method in REFERENCES:
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
        if job.method == "head":
            base = AutoModelForSequenceClassification.from_pretrained(locate("minilm"))
            base.classifier, base.bert.pooler = model.classifier, model.bert.pooler
            model = base
        return record | {"score": score(model, tokenizer, job.task, data)}
    base_files, tuned = Checkpoint("minilm"), Checkpoint(str(folder))
    named = {"method": job.method} if job.method.isidentifier() else {"formula": job.method}
    config = SubspaceConfig(**named)
    if job.method == "xattn":  # every matrix that any method adapts, whole
        config.target_modules = SubspaceModel.placement(tuned.model, SubspaceConfig(method="lora"))
    if job.budget is not None:
        config = matched(tuned.architecture, config, job.budget)
    output = work / job.name
    rows = extract(base_files, tuned, Extraction(config), output, overwrite=True)
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(locate("minilm")), str(output))
    return record | {
        "rank": config.r if config.resolved.formula.has_rank else None,
        "parameters": sum(row["parameters"] for row in rows),
        "error": total_error(rows, tuned, base_files),
        "how": sorted({row["how"] for row in rows}),
        "seconds": sum(row["seconds"] for row in rows),
        "score": score(model, tokenizer, job.task, data),
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


def run(data: Path, models: Path, results: Path, work: Path, workers: int) -> int:
    """Do what has no record yet; return how many jobs failed."""
    records, failed = results / "records", 0
    records.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs() if not (records / f"{job.name}.json").is_file()]
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(perform, job, data, models, work): job for job in missing}
        for future in as_completed(futures):
            job = futures[future]
            try:
                record = future.result()
            except Exception as error:  # one failed job must not take the others with it
                failed += 1
                print(f"{job.name}: {error}", file=sys.stderr, flush=True)
                continue
            write_json(records / f"{job.name}.json", record)
            print(f"{job.name}: error {record.get('error', 0):.4f}, score {record['score']:.4f}", flush=True)
    return failed


def tables_of(found: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> Iterator[str]:
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
        f"{told['date']}; {told['machine']['cpu']}; " + ", ".join(f"{k} {v}" for k, v in told["versions"].items()) + "."
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


def main() -> None:
    """Reads the command line, does the jobs and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with one folder per task")
    parser.add_argument("--models", type=Path, help="the runs folder of glue_minilm, with its full fine-tunings")
    parser.add_argument("--work", type=Path, default=Path("runs/extract_minilm"), help="gets the adapters")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--workers", type=int, default=2, help="jobs at a time, of one thread each")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    options = parser.parse_args()
    failed = 0
    if not options.table:
        if options.data is None or options.models is None:
            parser.error("--data and --models are needed to extract")
        failed = run(options.data, options.models, options.results, options.work, options.workers)
        write_json(options.results / "circumstances.json", circumstances())
    told = json.loads((options.results / "circumstances.json").read_text(encoding="utf-8"))
    records = sorted((options.results / "records").glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in records]
    with written(options.results / "results.md") as file:
        file.write_text("\n".join(tables_of(found, told)) + "\n", encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
