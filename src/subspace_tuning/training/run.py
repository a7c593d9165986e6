"""One run from a config to a saved adapter: `run` checks everything first, then trains, then saves.

Every error in the input is reported before the output folder is made. From then on the run can be interrupted at any
moment and resumed by the same call; on a CPU the result is the same bit for bit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, TrainerState
from transformers.training_args import OptimizerNames

from .. import tasks
from ..errors import SubspaceError
from ..files import replaced
from ..models.load import Processor, load
from ..models.locate import locate
from ..models.quantise import Quantise, quantised
from ..tasks import Rows, Task, prefixed
from ..tuner import SubspaceConfig
from ..tuner.penalties import orthogonality
from . import record as records
from . import runtime
from .arguments import arguments, check_training, total_steps
from .attach import Counts, attach, default_learning_rate, trained_head
from .card import card
from .config import validate
from .folder import RunFolder
from .record import history
from .resume import check_checkpoint, has_ended
from .sections import Device, Precision, RunConfig
from .trainer import SeededTrainer, build
from .use import cut_rows, save_task

logger = logging.getLogger(__name__)

CALIBRATION_ROWS = 64
"""The default number of training rows from which some methods choose what to train."""


@dataclass(frozen=True)
class Outcome:
    """The result of a call of `run`.

    Attributes:
        record: the run's record, as in its `run.json`.
        folder: the folder with the trained adapter, or with the model if no adapter was trained.
        repeated: whether the run was already finished, so that nothing was done.
    """

    record: dict[str, Any]
    folder: Path
    repeated: bool


@dataclass(frozen=True)
class _Parts:
    """Everything a run needs, checked."""

    config: RunConfig
    task: Task[Any]
    rows: Mapping[str, Rows]
    model: PreTrainedModel | PeftModel
    processor: Processor
    counts: Counts
    learning_rate: float


def run(config: RunConfig, *, overwrite: bool = False, progress: bool = True) -> Outcome:
    """Start, resume, or return a finished run.

    Args:
        config: the run.
        overwrite: discard a run in the output folder, whatever its config and state.
        progress: show progress bars on stderr and the evaluations on stdout.

    Raises:
        SubspaceError: the input cannot be used, the output folder holds something else, or the training diverged.
    """
    validate(config)
    _check_alone()
    folder = RunFolder(config.output)
    folder.check(config.resolved(), overwrite=overwrite)
    done = None if overwrite else folder.record()
    if done is not None:
        return Outcome(done, folder.path / done["result"], repeated=True)
    with runtime.threads(config.training.threads), runtime.quiet(bars=progress):
        parts = _prepare(config)
        started = {
            "config": config.resolved(),
            "task": parts.task.options,
            "data": {split: {"rows": len(t), "sha256": t.fingerprint()} for split, t in parts.rows.items()},
        }
        with folder.open(started, overwrite=overwrite):
            done = folder.record()  # another process may have finished the run while this one was loading its model
            if done is not None:
                return Outcome(done, folder.path / done["result"], repeated=True)
            return _train(parts, folder, started["data"], progress)


def _check_alone() -> None:
    """Refuse several processes, each of which would train the whole run into the same folder."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes.isdigit() and int(processes) > 1:
        raise SubspaceError(
            f"a run uses one process, but a launcher has started {processes}: call `subspace train` directly, or "
            "train with the Trainer and SubspaceConfig under the launcher"
        )


def _prepare(config: RunConfig) -> _Parts:
    task = tasks.get(config.task.name).configured(config.task.options)
    # Quick checks come first, since data and model can take minutes to load; this one also resolves the method.
    learning_rate = default_learning_rate(config.adapter)
    learning_rate = config.training.learning_rate or learning_rate
    locate(config.model)
    task, rows = task.prepare(config.task.data, train_rows=config.task.train_rows, eval_rows=config.task.eval_rows)
    transformers.set_seed(config.training.seed)  # from here on the head and the factors are drawn
    settings = dict(task.model_settings)
    if config.quantise is not None:
        cpu = config.training.device is Device.cpu
        settings |= quantised(config.quantise, config.model, task.model_class, settings, config.adapter.head, cpu)
    base, processor = load(config.model, task.model_class, settings, config.task.max_length)

    def sample() -> Iterator[Any]:
        seen = rows["train"].first(config.adapter.calibration_rows or CALIBRATION_ROWS)
        return task.batches(seen, processor, config.task.max_length, config.training.batch_size)

    tuned, counts = attach(base, config.adapter, task.task_type, sample, task.objective)
    check_training(tuned, config.training, len(rows["train"]))
    return _Parts(config, task, rows, tuned, processor, counts, learning_rate)


def _train(parts: _Parts, folder: RunFolder, data: Mapping[str, Any], progress: bool) -> Outcome:
    training = parts.config.training
    encoded, cut = _encoded(parts)
    count = len(encoded["train"])
    args = arguments(training, parts.task, count, parts.learning_rate, str(folder.checkpoints), progress)
    if parts.config.quantise is Quantise.qlora and args.device.type == "cuda":
        args.optim = OptimizerNames.PAGED_ADAMW
    precision = runtime.resolved(training.precision, training.device).value
    chosen = f"{precision} (chosen automatically; training.precision overrides)"
    logger.info("products in %s", chosen if training.precision is Precision.auto else precision)
    head = trained_head(parts.model, parts.config.adapter)
    trainer = build(parts.model, parts.processor, parts.task, encoded, args, training, head, folder.logs)
    checkpoint = folder.last_checkpoint()
    start = None if checkpoint is None else check_checkpoint(checkpoint, trainer, total_steps(training, count))
    state = _fit(trainer, checkpoint, start)
    result = "adapter" if isinstance(parts.model, PeftModel) else "model"
    record = records.build(
        parts.config,
        parts.task,
        parts.counts,
        parts.learning_rate,
        history(state),
        _baseline(parts),
        {
            "precision": precision,
            "steps": state.global_step,
            "resumed_from_step": None if start is None else start.global_step,
            "seconds": round(trainer.seconds(), 2),
            "data": data,
            "cut": cut,
            "options": dict(parts.task.options),
            "result": result,
            "schedule": trainer.scheduling.schedule.report(),
            "orthogonality": {name: found._asdict() for name, found in orthogonality(parts.model).items()},
        },
    )
    _save(parts, folder.path / result, record)
    folder.finish(record)
    return Outcome(record, folder.path / result, repeated=False)


def _encoded(parts: _Parts) -> tuple[dict[str, Dataset], dict[str, int]]:
    """Return the encoded rows of each split, and how many of them are truncated."""
    length, encoded, cut = parts.config.task.max_length, {}, {}
    for split, rows in parts.rows.items():
        encoded[split] = parts.task.encode(rows, parts.processor, length)
        cut[split] = cut_rows(parts.task, rows, encoded[split], parts.processor, length)
        if cut[split]:
            logger.warning(
                "%d of the %d %s rows are longer than task.max_length = %d tokens and are truncated",
                *(cut[split], len(rows), split, length),
            )
    return encoded, cut


def _fit(trainer: SeededTrainer, checkpoint: Path | None, state: TrainerState | None) -> TrainerState:
    """Train to the end, from the checkpoint if there is one, and leave the weights to be saved in the model."""
    if checkpoint is None or state is None:
        logger.info("training from the start")
        trainer.train()
        return trainer.state
    trainer.scheduling.checkpoint = checkpoint
    logger.info("resuming from step %d of %d", state.global_step, state.max_steps)
    if not has_ended(state):
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return trainer.state
    # Interrupted between the last step and the record: resumed from here, the Trainer would take a step too many.
    wanted = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer.load_weights(wanted or str(checkpoint))
    trainer.scheduling.on_train_begin(trainer.args, state, trainer.control)  # for its report
    return state


def _baseline(parts: _Parts) -> dict[str, float]:
    return {
        prefixed(prefix, name): figure
        for prefix, split in parts.task.evaluation
        for name, figure in parts.task.baseline(parts.rows["train"], parts.rows[split]).items()
    }


def _save(parts: _Parts, path: Path, record: Mapping[str, Any]) -> None:
    with replaced(path) as temporary:
        parts.model.save_pretrained(str(temporary))
        parts.processor.save_pretrained(str(temporary))
        save_task(temporary, parts.task, parts.config.task.max_length, parts.config.model, parts.config.quantise)
        card(parts.config, parts.task, record, _formula(parts.model)).save(temporary / "README.md")


def _formula(model: PreTrainedModel | PeftModel) -> str | None:
    config = model.peft_config["default"] if isinstance(model, PeftModel) else None
    return str(config.resolved.formula) if isinstance(config, SubspaceConfig) else None
