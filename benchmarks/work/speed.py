"""Tokens per second of instruction tuning on SmolLM2-135M: LoRA here, peft's LoRA, and every weight, in turn.

    OMP_NUM_THREADS=2 python benchmarks/work/speed.py --data FOLDER --threads 2

Each round trains every arm for some steps on the same batches, with TRL's trainer as `subspace train` uses it. The
first steps of a round are not counted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import inputs
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from subspace_tuning.files import write_json, write_text
from subspace_tuning.jobs.script import done, one_line_errors, parser
from subspace_tuning.jobs.units import measured
from subspace_tuning.provenance import provenance

HERE = Path(__file__).resolve().parent
RANK, ALPHA = 8, 16
BATCH, LENGTH = 8, 192
WARM, STEPS = 1, 4
"""Steps of a round that are not counted, and those that are."""


class Seconds(TrainerCallback):
    """The seconds of every optimiser step."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self._since = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.found.append(time.perf_counter() - self._since)


def ours(base: Any) -> Any:
    from peft import get_peft_model

    from subspace_tuning import SubspaceConfig

    return get_peft_model(
        base,
        SubspaceConfig(method="lora", r=RANK, alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def pefts(base: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    )


ARMS: Mapping[str, Callable[[Any], Any]] = {"lora": ours, "peft's lora": pefts, "full": lambda base: base}


def rows_of(runs: Path, tokenizer: Any) -> tuple[Any, Any]:
    """The task, and its encoded rows: the longest first, so that batches are hardly padded."""
    from subspace_tuning import tasks

    source = str(runs / "restaurants" / "train.jsonl")
    task, rows = tasks.get("instruction").prepare(source, train_rows=400)
    encoded = task.encode(rows["train"], tokenizer, LENGTH)
    lengths = task.lengths(encoded)
    order = sorted(range(len(encoded)), key=lambda row: -lengths[row])
    return task, encoded.select(order[: BATCH * (WARM + STEPS)])


def steps(model: Any, task: Any, encoded: Any, tokenizer: Any, bfloat16: bool) -> list[float]:
    """The tokens per second of each counted step of a round."""
    clock = Seconds()
    with tempfile.TemporaryDirectory() as folder:
        args = task.training.arguments(
            output_dir=folder,
            max_steps=WARM + STEPS,
            per_device_train_batch_size=BATCH,
            train_sampling_strategy="sequential",
            learning_rate=1e-5,
            bf16=bfloat16,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            **task.training.settings,
        )
        trainer = task.training.trainer(
            model=model,
            args=args,
            train_dataset=encoded,
            data_collator=task.collator(tokenizer),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    tokens = [sum(map(len, encoded["input_ids"][step * BATCH : (step + 1) * BATCH])) for step in range(WARM + STEPS)]
    return [count / seconds for count, seconds in zip(tokens, clock.found, strict=True)][WARM:]


def measure(precision: str, runs: Path, rounds: int) -> dict[str, Any]:
    """Trains every arm in every round, and gives the rates of their steps."""
    tokenizer = AutoTokenizer.from_pretrained(runs / "smollm2")
    task, encoded = rows_of(runs, tokenizer)
    models = {}
    for name, make in ARMS.items():
        torch.manual_seed(0)
        models[name] = make(AutoModelForCausalLM.from_pretrained(runs / "smollm2", dtype=torch.float32))
    rates: dict[str, list[list[float]]] = {name: [] for name in ARMS}
    names = list(ARMS)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            rates[name].append(steps(models[name], task, encoded, tokenizer, precision == "bfloat16"))
        print(f"{precision}, round {number + 1} of {rounds}", flush=True)
    return {"rates": rates}


def table(results: Mapping[str, Any]) -> str:
    """The medians as Markdown."""
    lines = [
        "# Tokens per second of instruction tuning",
        "",
        "Written by `speed.py`; README.md says what is measured.",
        "",
        "| products in | arm | tokens/s, median | middle half of the steps | beside peft's LoRA, by rounds |",
        "|---|---|---|---|---|",
    ]
    for precision, found in results["precisions"].items():
        for name, rounds in found["rates"].items():
            every = [rate for one in rounds for rate in one]
            low, _, high = statistics.quantiles(every, n=4)
            pairs = zip(rounds, found["rates"]["peft's lora"], strict=True)
            ratio = statistics.median(statistics.median(one) / statistics.median(other) for one, other in pairs)
            middle = f"{low:.0f} to {high:.0f}"
            lines.append(f"| {precision} | {name} | {statistics.median(every):.0f} | {middle} | {ratio:.3f} |")
    machine, versions = results["machine"], results["versions"]
    lines += [
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        f"Date: {results['date']}.",
        "",
    ]
    return "\n".join(lines)


@one_line_errors()
def main() -> None:
    """Reads the command line, trains the arms in turn and writes the table."""
    words = parser(__doc__, HERE / "results")
    words.add_argument("--data", type=Path, required=True, help="the folder with the rows")
    words.add_argument("--runs", type=Path, default=Path("runs/work"), help="has the model")
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--rounds", type=int, default=8)
    words.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    options = words.parse_args()
    torch.set_num_threads(options.threads)
    inputs.make(options.data, options.runs)
    options.results.mkdir(parents=True, exist_ok=True)
    output = options.results / "speed.json"
    units = {precision: precision for precision in options.precisions}
    work = partial(measure, runs=options.runs, rounds=options.rounds)
    with measured(output, {"threads": options.threads, "rounds": options.rounds}, units, work, done) as found:
        results = {"precisions": found, **provenance()}
        write_json(output, results)
    write_text(options.results / "speed.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
