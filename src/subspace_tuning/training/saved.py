"""What a run leaves beside its model or adapter, from which it is used again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedTokenizerBase

from .. import tasks
from ..errors import SubspaceError, reading
from ..files import write_json
from ..jobs.fields import Fields, read_object
from ..models.load import Processor, processor_of
from ..models.quantise import Quantise
from ..models.vocabulary import grow
from ..tasks import Task
from .folder import RESULTS, RunFolder

TASK = "task.json"
"""The file beside a model or an adapter that describes its task."""
_ADAPTER = "adapter_config.json"
_FORMATS = (None, *(one.value for one in Quantise))
_FIELDS: Fields = {"task": str, "options": {}, "max_length": int, "model": str, "quantise": _FORMATS}


@dataclass(frozen=True)
class Saved:
    """The result of a run as its folder describes it, before any model is loaded.

    Attributes:
        folder: the folder of the adapter, or of the model.
        task: the run's task, with its classes.
        max_length: the most tokens of a row.
        model: the model's name in the config.
        quantise: the format of the base's weights; None for float32.
    """

    folder: Path
    task: Task[Any]
    max_length: int
    model: str
    quantise: Quantise | None

    @property
    def has_adapter(self) -> bool:
        """Whether the result is an adapter, not a whole model."""
        return (self.folder / _ADAPTER).is_file()


def saved(path: str | Path) -> Saved:
    """Return what a run's folder, or the folder of its adapter or model, says about its result.

    Raises:
        SubspaceError: there is no finished run, or its description is damaged.
    """
    folder = result_of(Path(path).expanduser())
    content = read_object(folder / TASK, "run it again with --overwrite", _FIELDS)
    assert content is not None
    with reading(f"the task in {folder / TASK}"):
        task = tasks.get(content["task"]).configured(content["options"])
    quantise = None if content["quantise"] is None else Quantise(content["quantise"])
    return Saved(folder, task, content["max_length"], content["model"], quantise)


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


def processor_in(folder: Path, model: Any, base: str, own: Processor) -> Processor:
    """Return the tokenizer or image processor that a run saved beside its adapter; the model grows by its new tokens.

    Args:
        folder: the adapter's folder.
        model: the base model.
        base: its name.
        own: its own tokenizer or image processor.

    Raises:
        SubspaceError: it cannot be read, or its vocabulary is not that of the base model.
    """
    with reading(f"the tokenizer or image processor in {folder}"):
        found = processor_of(model, str(folder))
    if not isinstance(found, PreTrainedTokenizerBase):
        return found
    new = _new_rows(folder)
    vocabulary = {token: row for token, row in found.get_vocab().items() if row not in new}
    if vocabulary != own.get_vocab():
        raise SubspaceError(
            f"the adapter in {folder} was trained on a vocabulary of {len(vocabulary):,} tokens, but model {base!r} "
            f"has {len(own):,}: --base names the model that it was trained on"
        )
    if new:
        grow(model, max(new) + 1)
    return found


def _new_rows(folder: Path) -> set[int]:
    """Return the rows of the embeddings that are trained, those of new tokens."""
    with reading(f"the adapter in {folder}"):
        config = PeftConfig.from_pretrained(str(folder))
    by_module: dict[str, list[int]] = getattr(config, "trainable_token_indices", None) or {}
    return {row for rows in by_module.values() for row in rows}


def reading_adapter(folder: Path, base: str) -> AbstractContextManager[None]:
    """Turn every error in loading an adapter into one line, as ``reading`` does."""
    return reading(f"the adapter in {folder} on model {base!r}", "--base names the model that it was trained on")
