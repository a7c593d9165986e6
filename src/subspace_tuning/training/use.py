"""Using the result of a run: its model with its task, from its folder alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, cast

import peft
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import nested_concat

from .. import tasks
from ..errors import SubspaceError, reading
from ..files import write_json
from ..jobs.fields import Fields, read_object
from ..models.load import Processor, load, processor_of
from ..models.quantise import Quantise, quantised
from ..tasks import Rows, Task, Values
from ..tuner.mam import load_mam
from .folder import RESULTS, RunFolder

TASK = "task.json"
"""The file beside a model or an adapter that describes its task."""
_ADAPTER = "adapter_config.json"
_FORMATS = (None, *(one.value for one in Quantise))
_FIELDS: Fields = {"task": str, "options": {}, "max_length": int, "model": str, "quantise": _FORMATS}
_IGNORED = -100  # pads outputs of rows of different lengths, as the Trainer does


@dataclass(frozen=True)
class Finished:
    """The result of a run, ready for use.

    Attributes:
        task: the run's task, with its classes.
        model: the model in evaluation mode, with its adapter if it has one.
        processor: the model's tokenizer or image processor.
        max_length: the most tokens of a row; longer rows are truncated.
        base: the model's name in the config.
        folder: the folder from which it was read.
    """

    task: Task[Any]
    model: nn.Module
    processor: Processor
    max_length: int
    base: str
    folder: Path


def save_task(folder: Path, task: Task[Any], max_length: int, model: str, quantise: Quantise | None = None) -> None:
    """Write the file that ``finished`` reads beside a model or an adapter.

    It includes the class names, since peft saves nothing of a model's config.
    """
    content = {
        "task": task.name,
        "options": dict(task.options),
        "max_length": max_length,
        "model": model,
        "quantise": None if quantise is None else quantise.value,
    }
    write_json(folder / TASK, content)


def finished(path: str | Path, base: str | None = None, *, quantise: bool = True) -> Finished:
    """Return the result of a run.

    Args:
        path: the run's folder, or the folder of its adapter or model.
        base: the place of the base model, if it has moved since the run.
        quantise: whether to load the base's weights in the run's format instead of float32.

    Raises:
        SubspaceError: there is no finished run, one of its files is damaged, or the base model is a different one.
    """
    folder = result_of(Path(path).expanduser())
    content = read_object(folder / TASK, "run it again with --overwrite", _FIELDS)
    assert content is not None
    with reading(f"the task in {folder / TASK}"):
        task = tasks.get(content["task"]).configured(content["options"])
    has_adapter = (folder / _ADAPTER).is_file()
    if base is not None and not has_adapter:
        raise SubspaceError(f"{folder} is a whole model without a base: leave --base out")
    name = (base or content["model"]) if has_adapter else str(folder)
    settings = dict(task.model_settings)
    packed = quantise and has_adapter and content["quantise"] is not None
    if packed:
        settings |= quantised(Quantise(content["quantise"]), name, task.model_class, settings, _head(folder), cpu=False)
    loaded, own = load(name, task.model_class, settings, content["max_length"])
    model, processor = cast("nn.Module", loaded), own
    if has_adapter:
        with reading(f"the tokenizer or image processor in {folder}"):
            processor = processor_of(loaded, str(folder))
        if isinstance(processor, PreTrainedTokenizerBase):
            _check_vocabulary(folder, processor, name, own)
        with reading(f"the adapter in {folder} on model {name!r}", "--base names the model that it was trained on"):
            model = _adapted(loaded, folder)
    if not packed and torch.accelerator.is_available():  # packed weights are on their device
        model = model.to(torch.accelerator.current_accelerator())
    return Finished(task, model.eval(), processor, content["max_length"], name, folder)


def _head(folder: Path) -> list[str] | None:
    """Return the modules trained whole, by the ends of their names."""
    with reading(f"the adapter in {folder}"):
        modules: list[str] | None = getattr(peft.PeftConfig.from_pretrained(str(folder)), "modules_to_save", None)
    return modules


def result_of(path: Path) -> Path:
    """Return the folder of a run's result, by the run's folder or its own. Raises SubspaceError if there is none."""
    if (path / TASK).is_file():
        return path
    if not path.is_dir():
        raise SubspaceError(f"run {str(path)!r} does not exist: give the folder that `subspace train` wrote")
    record = RunFolder(path).record()
    if record is None:
        made = next((name for name in RESULTS if (path / name).is_dir()), None)
        why = "is not finished: run the command that started it again" if made is None else "has no record"
        started = (path / "started.json").is_file()
        raise SubspaceError(f"the run in {path} {why}" if started else f"{path} has no run")
    folder = path / str(record["result"])
    if not (folder / TASK).is_file():
        raise SubspaceError(f"{folder} has no {TASK}, which is needed to use a run: run it again with --overwrite")
    return folder


def _check_vocabulary(
    folder: Path, tokenizer: PreTrainedTokenizerBase, base: str, own: PreTrainedTokenizerBase
) -> None:
    if tokenizer.get_vocab() != own.get_vocab():
        raise SubspaceError(
            f"the adapter in {folder} was trained on a vocabulary of {len(tokenizer):,} tokens, but model {base!r} has "
            f"{len(own):,}: --base names the model that it was trained on"
        )


def _adapted(model: Any, folder: Path) -> PeftModel:
    config = peft.PeftConfig.from_pretrained(str(folder))
    if isinstance(config, peft.PrefixTuningConfig) and (folder / "parallel_adapter.json").is_file():
        return load_mam(model, folder)
    loaded: PeftModel = PeftModel.from_pretrained(model, str(folder))
    return loaded


@dataclass(frozen=True)
class Seen:
    """A model's outputs for rows.

    Attributes:
        encoded: the encoded rows.
        outputs: an entry for each row.
        labels: the labels, if the rows have them.
        cut: the number of truncated rows.
    """

    encoded: Dataset
    outputs: Values
    labels: Values | None
    cut: int


@torch.no_grad()
def outputs_of(made: Finished, rows: Rows, batch_size: int) -> Seen:
    """Return the outputs of a model for rows, in order and in float32."""
    task = made.task
    encoded = task.encode(rows, made.processor, made.max_length)
    device = next(made.model.parameters()).device
    collate = task.collator(made.processor)
    outputs: list[Any] = []
    labels: list[Any] = []
    for start in range(0, len(encoded), batch_size):
        batch = collate([encoded[i] for i in range(start, min(start + batch_size, len(encoded)))])
        known = batch.pop("labels", None)
        batch = {name: value.to(device) for name, value in batch.items()}
        found = made.model(**batch).logits if task.generate is None else task.generate(made.model, batch)
        outputs.append(found.double().cpu().numpy())
        if known is not None:
            labels.append(known.numpy())
    cut = cut_rows(task, rows, encoded, made.processor, made.max_length)
    return Seen(encoded, _joined(outputs), _joined(labels) if labels else None, cut)


def _joined(parts: Sequence[Any]) -> Values:
    """Concatenate batches, padded if their rows have different lengths."""

    def join(one: Any, other: Any) -> Any:
        return nested_concat(one, other, padding_index=_IGNORED)  # type: ignore[no-untyped-call]

    return cast("Values", reduce(join, parts))


def evaluate(made: Finished, rows: Rows, batch_size: int) -> tuple[Mapping[str, float], Seen]:
    """Return the task's figures for rows with labels."""
    seen = outputs_of(made, rows, batch_size)
    assert seen.labels is not None
    return made.task.figures(seen.outputs, seen.labels, made.processor), seen


def cut_rows(task: Task[Any], rows: Rows, encoded: Dataset, processor: Processor, max_length: int) -> int:
    """Return how many of the encoded rows were truncated to ``max_length`` tokens."""
    if max(task.lengths(encoded), default=0) < max_length:
        return 0
    return sum(length > max_length for length in task.lengths(task.encode(rows, processor, max_length + 1)))
