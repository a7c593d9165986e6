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
from transformers.trainer_pt_utils import nested_concat

from ..errors import SubspaceError, reading
from ..jobs.folder import parts
from ..jobs.units import perform
from ..models.load import Processor, load
from ..models.quantise import quantised
from ..tasks import Rows, Seen, Task, Values
from ..tuner.loss import IGNORED
from ..tuner.mam import load_mam
from .saved import processor_in, reading_adapter, saved


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
    run = saved(path)
    folder, task = run.folder, run.task
    if options:
        if task.generate is None:
            raise SubspaceError(
                f"the run in {folder} is of task {task.name}, which does not generate text: use `subspace predict`"
            )
        task = task.configured({**task.options, **options})
    if base is not None and not run.has_adapter:
        raise SubspaceError(f"{folder} is a whole model without a base: leave --base out")
    name = (base or run.model) if run.has_adapter else str(folder)
    settings = dict(task.model_settings)
    packed = run.quantise if quantise and run.has_adapter else None
    if packed is not None:
        settings |= quantised(packed, name, task.model_class, settings, _head(folder), cpu=False)
    loaded, own = load(name, task.model_class, settings, run.max_length)
    model, processor = cast("nn.Module", loaded), own
    if run.has_adapter:
        processor = processor_in(folder, loaded, name, own)
        with reading_adapter(folder, name):
            model = _adapted(loaded, folder)
    if packed is None and torch.accelerator.is_available():  # packed weights are on their device
        model = model.to(torch.accelerator.current_accelerator())
    task = task.ready(model.eval(), processor, run.max_length)
    return Finished(task, model, processor, run.max_length, name, folder)


def _head(folder: Path) -> list[str] | None:
    """Return the modules trained whole, by the ends of their names."""
    with reading(f"the adapter in {folder}"):
        modules: list[str] | None = getattr(peft.PeftConfig.from_pretrained(str(folder)), "modules_to_save", None)
    return modules


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

    def of_batch(numbers: list[int]) -> tuple[Any, Any]:
        return see(made, [encoded[number] for number in numbers])

    if keep is None or made.task.generate is None:
        found = [of_batch(numbers) for numbers in batches.values()]
    else:
        found = _resumed(keep, _job(made, rows, batch_size), batches, of_batch)
    outputs, labels = (joined([one for one in side if one is not None], order) for side in zip(*found, strict=True))
    assert outputs is not None
    return Seen(rows, encoded, outputs, labels, made.processor)


@torch.no_grad()
def see(made: Finished, rows: Sequence[Any]) -> tuple[Values, Values | None]:
    """Return the outputs of one call of the model for encoded rows, and their labels if they have any."""
    task, device = made.task, next(made.model.parameters()).device
    batch = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in task.collator(made.processor)(list(rows)).items()
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


def joined(batches: Sequence[Any], order: Sequence[int]) -> Values | None:
    """Concatenate the outputs of batches in the order of the rows, padded if their rows have different lengths."""

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
