"""The model card of a run's result: what it is, its data, its score, and the code that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import TaskType

from ..models.locate import locate
from ..tasks import Task
from ..tuner.card import TAG
from .attach import adapter_type
from .sections import Keep, RunConfig

PIPELINES: Mapping[TaskType | None, str] = {
    TaskType.SEQ_CLS: "text-classification",
    TaskType.TOKEN_CLS: "token-classification",
    TaskType.QUESTION_ANS: "question-answering",
    TaskType.CAUSAL_LM: "text-generation",
    TaskType.SEQ_2_SEQ_LM: "text2text-generation",
    TaskType.FEATURE_EXTRACTION: "feature-extraction",
    None: "image-classification",
}
"""The hub's name for what a model of each of peft's kinds does; peft has no kind for images."""


def card(config: RunConfig, task: Task[Any], record: Mapping[str, Any], formula: str | None) -> ModelCard:
    """Return the model card of a run's result.

    Args:
        config: the run.
        task: its task, with its classes.
        record: the run's record.
        formula: phi(W) of the adapter; None if the result has no formula.
    """
    adapter = record["result"] == "adapter"
    name = f"{task.name}, tuned with {record['method']}"
    pipeline = PIPELINES.get(task.task_type, "other")
    score = EvalResult(
        task_type=pipeline,
        dataset_type=task.name,
        dataset_name=_data(config),
        dataset_split=task.evaluation[0][1],
        metric_type=record["metric"],
        metric_value=round(record["score"], 6),
    )
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        tags=[TAG] if adapter else None,
        base_model=locate(config.model),
        pipeline_tag=pipeline,
        model_name=name,
        eval_results=[score],
    )
    parts = [f"---\n{data.to_yaml()}\n---\n", f"# {name}\n", *_told(config, record, formula), *_use(task, adapter)]
    return ModelCard("\n".join(parts))


def _data(config: RunConfig) -> str:
    """Return the data's name; of a path only the last part, which reveals nothing about the machine."""
    return Path(config.task.data).name or config.task.data


def _told(config: RunConfig, record: Mapping[str, Any], formula: str | None) -> list[str]:
    which = "best" if config.training.keep is Keep.best else "last"
    counts, splits = record["parameters"], record["data"]
    per_mille = f"{counts['per_mille']:.3f} per mille of the model"
    rows = ", ".join(f"{split} {known['rows']:,} rows" for split, known in splits.items())
    low, high = record["score_interval"]
    tokens = f", {counts['new_tokens']:,} in the embeddings of new tokens" if counts["new_tokens"] else ""
    return [
        *([f"* Formula: `{formula}`"] if formula is not None else []),
        f"* Trained: {counts['adapter']:,} parameters ({per_mille}){tokens}, and {counts['head']:,} in the head",
        f"* Data: {_data(config)} ({rows})",
        f"* Score: {record['metric']} {record['score']:.4f} after the {which} epoch (95 % interval over the rows: "
        f"{low:.4f} to {high:.4f}); a constant prediction has {record['baseline_score']:.4f}",
        f"* Training: {record['steps']:,} steps, learning rate {record['learning_rate']:.3g}, seed "
        f"{config.training.seed}, {record['precision']}\n",
    ]


def _use(task: Task[Any], adapter: bool) -> list[str]:
    owner, prefix = ("peft", "AutoPeftModel") if adapter and task.task_type else ("transformers", "AutoModel")
    loader = prefix + task.model_class.__name__.removeprefix("AutoModel")
    # By default peft takes the base model's own number of labels.
    outputs = task.model_settings.get("num_labels", 2)
    labels = f", num_labels={outputs}" if adapter and outputs != 2 else ""
    rows = "--text TEXT" if task.task_type else "--file IMAGES"
    lines = [f"from {owner} import {loader}\n", f"model = {loader}.from_pretrained(FOLDER{labels})"]
    if (
        adapter and adapter_type(task.task_type) is not task.task_type
    ):  # AutoPeftModel accepts the task's own type alone
        base = task.model_class.__name__
        lines = [
            f"from peft import PeftModel\nfrom transformers import {base}\n",
            f"model = PeftModel.from_pretrained({base}.from_pretrained(BASE), FOLDER)",
        ]
    return [
        "```python",
        *(["import subspace_tuning  # registers the adapter's type with peft"] if adapter else []),
        *lines,
        "```\n",
        f"`task.json` has the task and the meaning of the outputs; `subspace predict FOLDER {rows}` uses both.\n",
    ]
