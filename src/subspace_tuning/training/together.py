"""Several runs in one model: their adapters side by side on one base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft

from ..errors import SubspaceError, reading
from ..models.locate import locate
from ..tasks import Task
from ..tuner import SubspaceConfig
from .saved import Saved, processor_in, reading_adapter, saved
from .use import Finished, finished

_FIRST = "default"  # peft's name for the adapter that a model is loaded with


def together(paths: Sequence[str | Path], base: str | None = None) -> dict[str, Finished]:
    """Return runs that share one model, by the names that their adapters have in it.

    Args:
        paths: the runs' folders, or the folders of their adapters.
        base: the place of the base model, if it has moved since the runs.

    Raises:
        SubspaceError: a run cannot be used, its result is not an adapter of this package's tuner, or it differs from
            the first in its base model, its task, its outputs or its tokens.
    """
    kept = [saved(path) for path in paths]
    for place, run in enumerate(kept):
        _check_adapter(run)
        if run.folder.resolve() in [other.folder.resolve() for other in kept[:place]]:
            raise SubspaceError(f"the run in {run.folder} is given twice")
        _check_alike(kept[0], run, base)
    made = finished(kept[0].folder, base)
    return {_FIRST: made} | {(name := f"run{number}"): _beside(made, run, name) for number, run in enumerate(kept[1:])}


def _check_adapter(run: Saved) -> None:
    way_out = "leave it out, or use it by itself"
    if not run.has_adapter:
        raise SubspaceError(f"the run in {run.folder} is a whole model, which shares no base: {way_out}")
    with reading(f"the adapter in {run.folder}"):
        config = peft.PeftConfig.from_pretrained(str(run.folder))
    if not isinstance(config, SubspaceConfig):
        raise SubspaceError(f"the adapter in {run.folder} is of peft's own {config.peft_type.value}: {way_out}")


def _check_alike(first: Saved, run: Saved, base: str | None) -> None:
    """Raise SubspaceError if one model cannot do what two runs need of it."""
    for what, own, other in (
        ("base model", base or locate(run.model), base or locate(first.model)),
        ("weights in", _format(run), _format(first)),
        ("task", run.task.name, first.task.name),
        ("columns", ", ".join(run.task.text_columns), ", ".join(first.task.text_columns)),
        ("outputs", _outputs(run.task), _outputs(first.task)),
        ("kind of model", run.task.model_class.__name__, first.task.model_class.__name__),
    ):
        if own != other:
            raise SubspaceError(
                f"the run in {run.folder} has {what} {own}, and that in {first.folder} {other}: one model holds runs "
                "of one base and one task"
            )


def _format(run: Saved) -> str:
    return "float32" if run.quantise is None else run.quantise.value


def _outputs(task: Task[Any]) -> str:
    """Return the names or the number of a head's outputs."""
    settings = task.model_settings
    return ", ".join(settings.get("id2label", {}).values()) or str(settings.get("num_labels", "of the base"))


def _beside(first: Finished, run: Saved, name: str) -> Finished:
    """Add the adapter of another run to the model of the first, and return that run ready for use."""
    model: Any = first.model
    processor = processor_in(run.folder, model, first.base, first.processor)
    with reading_adapter(run.folder, first.base):
        model.load_adapter(str(run.folder), name)
    model.set_adapter(name, inference_mode=True)  # `ready` looks at what the model returns
    task = run.task.ready(model.eval(), processor, run.max_length)
    if getattr(processor, "chat_template", None) != getattr(first.processor, "chat_template", None):
        raise SubspaceError(f"the run in {run.folder} has another chat template than that in {first.folder}")
    return Finished(task, model, processor, run.max_length, first.base, run.folder)
