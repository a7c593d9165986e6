"""Using the result of a run: its model with its task, from its folder alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import peft
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import nested_concat

from .. import tasks
from ..errors import SubspaceError, reading
from ..files import write_json
from ..jobs.fields import Fields, read_object
from ..jobs.folder import parts
from ..jobs.units import perform
from ..models.load import Processor, load, processor_of
from ..models.quantise import Quantise, quantised
from ..models.vocabulary import grow
from ..tasks import Rows, Seen, Task, Values
from ..tuner.loss import IGNORED
from ..tuner.mam import load_mam
from .folder import RESULTS, RunFolder

TASK = "task.json"
"""The file beside a model or an adapter that describes its task."""
_ADAPTER = "adapter_config.json"
_FORMATS = (None, *(one.value for one in Quantise))
_FIELDS: Fields = {"task": str, "options": {}, "max_length": int, "model": str, "quantise": _FORMATS}


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


def finished(
    path: str | Path,
    base: str | None = None,
    *,
    quantise: bool = True,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Finished:
    """Return the result of a run.

    Args:
        path: the run's folder, or the folder of its adapter or model.
        base: the place of the base model, if it has moved since the run.
        quantise: whether to load the base's weights in the run's format instead of float32.
        options: options of the task that override the run's own.

    Raises:
        SubspaceError: there is no finished run, one of its files is damaged, or the base model is a different one.
    """
    folder = result_of(Path(path).expanduser())
    content = read_object(folder / TASK, "run it again with --overwrite", _FIELDS)
    assert content is not None
    with reading(f"the task in {folder / TASK}"):
        task = tasks.get(content["task"]).configured(content["options"])
    if options:
        if task.generate is None:
            raise SubspaceError(
                f"the run in {folder} is of task {task.name}, which does not generate text: use `subspace predict`"
            )
        task = task.configured({**content["options"], **options})
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
            rows = _new_rows(folder)
            _check_vocabulary(folder, processor, name, own, rows)
            if rows:
                grow(loaded, max(rows) + 1)
        with reading(f"the adapter in {folder} on model {name!r}", "--base names the model that it was trained on"):
            model = _adapted(loaded, folder)
    if not packed and torch.accelerator.is_available():  # packed weights are on their device
        model = model.to(torch.accelerator.current_accelerator())
    task = task.ready(model.eval(), processor, content["max_length"])
    return Finished(task, model, processor, content["max_length"], name, folder)


def _head(folder: Path) -> list[str] | None:
    """Return the modules trained whole, by the ends of their names."""
    modules: list[str] | None = _of_config(folder, "modules_to_save")
    return modules


def _new_rows(folder: Path) -> set[int]:
    """Return the rows of the embeddings that are trained, those of new tokens."""
    by_module: dict[str, list[int]] = _of_config(folder, "trainable_token_indices") or {}
    return {row for rows in by_module.values() for row in rows}


def _of_config(folder: Path, name: str) -> Any:
    """Return a field of the adapter's config, None if this kind of adapter does not have it."""
    with reading(f"the adapter in {folder}"):
        return getattr(peft.PeftConfig.from_pretrained(str(folder)), name, None)


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
    folder: Path, tokenizer: PreTrainedTokenizerBase, base: str, own: PreTrainedTokenizerBase, new: set[int]
) -> None:
    vocabulary = {token: row for token, row in tokenizer.get_vocab().items() if row not in new}
    if vocabulary != own.get_vocab():
        raise SubspaceError(
            f"the adapter in {folder} was trained on a vocabulary of {len(vocabulary):,} tokens, but model {base!r} "
            f"has {len(own):,}: --base names the model that it was trained on"
        )


def _adapted(model: Any, folder: Path) -> PeftModel:
    config = peft.PeftConfig.from_pretrained(str(folder))
    if isinstance(config, peft.PrefixTuningConfig) and (folder / "parallel_adapter.json").is_file():
        return load_mam(model, folder)
    loaded: PeftModel = PeftModel.from_pretrained(model, str(folder))
    return loaded


def outputs_of(made: Finished, rows: Rows, batch_size: int, keep: Path | None = None) -> Seen[Any]:
    """Return the outputs of a model for rows, in order and in float32. Batches hold rows of similar length.

    Args:
        made: the model with its task.
        rows: its inputs.
        batch_size: rows per batch.
        keep: the file for the final result, if any. If the task generates, each batch is saved beside it, and a call
            that was killed resumes from there.
    """
    encoded = made.task.encode(rows, made.processor, made.max_length)
    lengths = made.task.lengths(encoded)
    order = sorted(range(len(encoded)), key=lambda row: -lengths[row])
    batches = {f"{start:08}": order[start : start + batch_size] for start in range(0, len(order), batch_size)}

    def see(numbers: list[int]) -> tuple[Any, Any]:
        return _seen(made, [encoded[number] for number in numbers])

    if keep is None or made.task.generate is None:
        found = [see(numbers) for numbers in batches.values()]
    else:
        found = _resumed(keep, _job(made, rows, batch_size), batches, see)
    outputs, labels = (_joined([one for one in side if one is not None], order) for side in zip(*found, strict=True))
    assert outputs is not None
    return Seen(rows, encoded, outputs, labels, made.processor)


@torch.no_grad()
def _seen(made: Finished, rows: list[Any]) -> tuple[Any, Any]:
    """Return the outputs of a batch, and its labels if it has any."""
    task, device = made.task, next(made.model.parameters()).device
    batch = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in task.collator(made.processor)(rows).items()
    }
    labels = batch.get(task.truth)
    outputs = (task.generate or task.forward)(made.model, batch)
    return outputs.double().cpu().numpy(), None if labels is None else labels.cpu().numpy()


def _resumed(
    keep: Path, job: Mapping[str, Any], batches: Mapping[str, list[int]], see: Callable[[list[int]], tuple[Any, Any]]
) -> list[tuple[Any, Any]]:
    """Return the outputs and labels of batches, those that an earlier call has finished from its files."""

    def measure(numbers: list[int]) -> dict[str, Any]:
        outputs, labels = see(numbers)
        if not np.isfinite(outputs).all():
            raise SubspaceError("the model's outputs are NaN or infinite")
        return {"outputs": outputs.tolist(), "labels": None if labels is None else labels.tolist()}

    with parts(keep, job) as folder:
        kept = perform(folder, batches, measure)
        return [
            (np.array(one["outputs"], dtype=np.float64), None if one["labels"] is None else np.array(one["labels"]))
            for one in kept.values()
        ]


def _job(made: Finished, rows: Rows, batch_size: int) -> dict[str, Any]:
    """Return everything that the outputs for rows depend on."""
    files = sorted(file for file in made.folder.iterdir() if file.is_file())
    return {
        "files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "base": made.base,
        "task": dict(made.task.options),
        "rows": rows.fingerprint(),
        "batch_size": batch_size,
    }


def _joined(batches: Sequence[Any], order: Sequence[int]) -> Values | None:
    """Concatenate batches in the order of the rows, padded if their rows have different lengths."""

    def join(one: Any, other: Any) -> Any:
        return nested_concat(one, other, padding_index=IGNORED)  # type: ignore[no-untyped-call]

    if not batches:
        return None
    return cast("Values", reduce(join, batches)[np.argsort(order)])


def evaluate(
    made: Finished, rows: Rows, batch_size: int, keep: Path | None = None
) -> tuple[Mapping[str, float], Seen[Any]]:
    """Return the task's figures for rows with labels, and the outputs behind them; ``keep`` as for ``outputs_of``."""
    seen = outputs_of(made, rows, batch_size, keep)
    return made.task.figures(seen), seen


def cut_of(made: Finished, seen: Seen[Any]) -> int:
    """Return how many rows were truncated."""
    return made.task.cut(seen.rows, seen.encoded, made.processor, made.max_length)
