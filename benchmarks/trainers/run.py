"""Penalties under trainers: equal losses and factors at any accumulation and number of processes, and who sees them.

    python benchmarks/trainers/run.py            # writes results.json and results.md beside this file

Each line is a run of its own on tiny models with random weights, in one process or in two (gloo). A part of the lines
compares the end of a run with that of the same run at weight 0: where they differ, the penalty acts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subspace_tuning.files import write_json, write_text
from subspace_tuning.jobs.script import done, one_line_errors, parser
from subspace_tuning.jobs.units import measured
from subspace_tuning.provenance import provenance

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "sentence-transformers")
METHODS: dict[str, dict[str, Any]] = {
    "lora, MPC_o": {"method": "lora", "pattern": "orthogonal"},
    "adalora": {"method": "adalora", "schedule": {"t_init": 1, "t_final": 1, "interval": 1}},
}
WEIGHT = 0.1
ROWS, STEPS = 8, 3
"""Rows of an optimiser step, over all its micro-batches and processes; optimiser steps of a run."""


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows of unlike length: a micro-batch holds more labels than another."""

    def __init__(self, causal: bool) -> None:
        drawn = torch.Generator().manual_seed(5)
        self.tokens = torch.randint(3, 50, (ROWS * STEPS, 9), generator=drawn)
        self.lengths = torch.randint(2, 9, (ROWS * STEPS,), generator=drawn)
        self.causal = causal

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens, real = self.tokens[index], torch.arange(9) < self.lengths[index]
        labels = tokens.masked_fill(~real, -100) if self.causal else self.lengths[index] % 2
        return {"input_ids": tokens, "attention_mask": real.long(), "labels": labels}


def llama() -> Any:
    """A causal language model, whose loss is divided by the labels of the whole step."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape))


def bert() -> Any:
    """A classifier, whose loss is the mean over the rows of a micro-batch."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=50, **shape, **still))


MODELS: dict[str, Callable[[], Any]] = {"llama": llama, "bert": bert}


def adapted(model: Any, method: str, weight: float = WEIGHT) -> Any:
    """The model with the adapter, equal in every run."""
    from peft import get_peft_model

    from subspace_tuning import SubspaceConfig

    torch.manual_seed(1)
    return get_peft_model(model, SubspaceConfig(r=4, pattern_weight=weight, **METHODS[method])).train()


def norms(model: Any) -> float:
    """The joint norm of all trained parameters."""
    squares = [
        parameter.detach().double().square().sum() for parameter in model.parameters() if parameter.requires_grad
    ]
    return float(torch.stack(squares).sum().sqrt())


def arguments(folder: str, accumulation: int = 1, processes: int = 1, **options: Any) -> Any:
    """Arguments of a run in which every optimiser step sees the same rows."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=ROWS // (accumulation * processes),
        gradient_accumulation_steps=accumulation,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )


class InOrder:
    """A mixin that reads the rows in order."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(train_dataset)


def stock(model: str, method: str, accumulation: int, processes: int) -> dict[str, Any]:
    """The stock Trainer's losses and penalties of each step, and the norm of what it trained."""
    from transformers import Trainer

    from subspace_tuning import PenaltyCallback, ScheduleCallback

    tuned = adapted(MODELS[model](), method)
    ordered = type("Ordered", (InOrder, Trainer), {})
    with tempfile.TemporaryDirectory() as folder:
        trainer = ordered(
            model=tuned,
            args=arguments(folder, accumulation, processes),
            train_dataset=Rows(causal=model == "llama"),
            callbacks=[ScheduleCallback(tuned), PenaltyCallback(tuned)],
        )
        # BERT's head takes the mean over the rows it sees, whatever count of labels the Trainer hands it. Taken for one
        # that heeds the count, as the Trainer takes it, its losses would be added up over micro-batches.
        trainer.model_accepts_loss_kwargs = model == "llama"
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "losses": [entry["loss"] for entry in logs],
        "penalties": [entry["penalty"] for entry in logs],
        "norm": norms(tuned),
    }


def every(processes: int) -> list[dict[str, Any]]:
    """The runs of the stock Trainer in this process, as one of so many."""
    return [
        {"model": model, "method": method, "accumulation": accumulation, "processes": processes}
        | stock(model, method, accumulation, processes)
        for model in MODELS
        for method in METHODS
        for accumulation in (1, 4)
    ]


def in_processes(count: int) -> list[dict[str, Any]]:
    """The same in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "runs.json"
        worker = [str(Path(__file__).resolve()), "--processes", str(count), "--into", str(result)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *worker]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        found: list[dict[str, Any]] = json.loads(result.read_text(encoding="utf-8"))
    return found


# Who sees the penalty


def smoothed(folder: str, weight: float) -> float:
    """The stock Trainer with smoothed labels, which computes its loss from logits."""
    from transformers import Trainer

    model = adapted(bert(), "lora, MPC_o", weight)
    args = arguments(folder, label_smoothing_factor=0.1)
    Trainer(model=model, args=args, train_dataset=Rows(causal=False)).train()
    return norms(model)


def tuples(folder: str, weight: float) -> float:
    """The stock Trainer on a model that returns tuples."""
    from transformers import Trainer

    base = bert()
    base.config.return_dict = False
    model = adapted(base, "lora, MPC_o", weight)
    Trainer(model=model, args=arguments(folder), train_dataset=Rows(causal=False)).train()
    return norms(model)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(47))]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _texts() -> list[str]:
    return [" ".join(f"w{word}" for word in row.tolist()) for row in torch.randint(0, 47, (ROWS * STEPS, 6))]


_QUIET = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "bf16": False}


def sft(folder: str, weight: float) -> float:
    """TRL's supervised fine-tuning."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = adapted(llama(), "lora, MPC_o", weight)
    args = SFTConfig(output_dir=folder, max_steps=STEPS, learning_rate=1e-2, max_length=16, **_QUIET)
    data = Dataset.from_dict({"text": _texts()})
    SFTTrainer(model=model, args=args, train_dataset=data, processing_class=_tokenizer()).train()
    return norms(model)


def dpo(folder: str, weight: float) -> float:
    """TRL's direct preference optimisation: a policy, and as its reference the model with the adapter disabled."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model = adapted(llama(), "lora, MPC_o", weight)
    args = DPOConfig(output_dir=folder, max_steps=STEPS, learning_rate=1e-2, max_length=32, **_QUIET)
    data = Dataset.from_dict({"prompt": _texts(), "chosen": _texts(), "rejected": _texts()[::-1]})
    DPOTrainer(model=model, args=args, train_dataset=data, processing_class=_tokenizer()).train()
    return norms(model)


def sentences(folder: str, weight: float) -> float:
    """sentence-transformers, which computes its loss from embeddings."""
    from datasets import Dataset
    from peft import PeftModel
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import CosineSimilarityLoss
    from sentence_transformers.models import Pooling, Transformer

    base = bert().bert
    base.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    embedder = Transformer(folder)
    tuned: PeftModel = adapted(embedder.auto_model, "lora, MPC_o", weight)
    embedder.auto_model = tuned
    model = SentenceTransformer(modules=[embedder, Pooling(16)], device="cpu")
    args = SentenceTransformerTrainingArguments(output_dir=folder, max_steps=STEPS, learning_rate=1e-2, **_QUIET)
    data = Dataset.from_dict({"a": _texts(), "b": _texts(), "score": torch.rand(ROWS * STEPS).tolist()})
    SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=CosineSimilarityLoss(model)).train()
    return norms(tuned)


SEEN: dict[str, Callable[[str, float], float]] = {
    "Trainer, label_smoothing_factor": smoothed,
    "Trainer, return_dict=False": tuples,
    "TRL SFT": sft,
    "TRL DPO": dpo,
    "sentence-transformers": sentences,
}


def acts(name: str) -> dict[str, float]:
    """The norm of the factors after a run, at a weight and at 0."""
    found = {}
    for weight in (WEIGHT, 0.0):
        torch.manual_seed(2)
        with tempfile.TemporaryDirectory() as folder:
            found[f"{weight:g}"] = SEEN[name](folder, weight)
    return found


# The table


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    yield from ("# Penalties under trainers", "", "Written by `run.py`.", "")
    yield "| model, method | accumulation | processes | losses | penalties | norm of the factors |"
    yield "|---|---|---|---|---|---|"
    for run in results["stock"]:
        losses, penalties = (", ".join(f"{value:.7f}" for value in run[key]) for key in ("losses", "penalties"))
        yield (
            f"| {run['model']}, {run['method']} | {run['accumulation']} | {run['processes']} | {losses} | {penalties} "
            f"| {run['norm']:.7f} |"
        )
    yield from ("", "| trainer | norm of the factors, weight 0.1 | weight 0 |", "|---|---|---|")
    for name, found in results["acts"].items():
        yield f"| {name} | {found['0.1']:.6f} | {found['0']:.6f} |"
    yield from ("", "Versions: " + ", ".join(f"{key} {value}" for key, value in results["versions"].items()) + ".")
    yield f"Date: {results['date']}."


def measure(unit: str | int) -> dict[str, Any]:
    """The runs of the stock Trainer in so many processes, or what a trainer makes of the penalty."""
    if isinstance(unit, str):
        return acts(unit)
    return {"runs": every(1) if unit == 1 else in_processes(unit)}


@one_line_errors()
def main() -> None:
    """Reads the command line, does the runs and writes the table."""
    words = parser(__doc__, HERE)
    words.add_argument(
        "--only", nargs="+", choices=SEEN, default=list(SEEN), help="these trainers, of the second table"
    )
    words.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    words.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = words.parse_args()
    if options.into is not None:
        runs = every(options.processes)
        if os.environ["RANK"] == "0":
            options.into.write_text(json.dumps(runs), encoding="utf-8")
        return
    output, versions = options.results / "results.json", {name: metadata.version(name) for name in PACKAGES}
    units: dict[str, str | int] = {"one process": 1, "two processes": 2, **{name: name for name in options.only}}
    with measured(output, {"weight": WEIGHT, "versions": versions}, units, measure, done) as found:
        results = {
            "stock": found["one process"]["runs"] + found["two processes"]["runs"],
            "acts": {name: found[name] for name in options.only},
            "versions": versions,
            "date": provenance()["date"],
        }
        write_json(output, results)
    write_text(options.results / "results.md", "\n".join(table(results)) + "\n")


if __name__ == "__main__":
    main()
