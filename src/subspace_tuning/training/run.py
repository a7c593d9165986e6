"""One run from a config to a saved adapter: `run` checks everything first, then trains, then saves.

Every error in the input is reported before the output folder is made. From then on the run can be interrupted at any
moment and resumed by the same call; on a CPU the result is the same bit for bit. Under a launcher of several processes
all of them call `run`: see `processes`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, TrainerState
from transformers.training_args import OptimizerNames

from .. import tasks
from ..errors import SubspaceError
from ..files import replaced
from ..models.load import Processor, load
from ..models.meta import architecture_of
from ..models.quantise import Quantise, quantised
from ..models.vocabulary import add_tokens
from ..tasks import Rows, Task, prefixed
from ..tuner import SubspaceConfig
from ..tuner.penalties import orthogonality
from . import processes, runtime
from . import record as records
from .arguments import arguments, check_training, total_steps
from .attach import Counts, attach, trained_head
from .card import card
from .config import validate
from .folder import RunFolder
from .rate import Rate, check_rate, rate_for
from .record import history
from .resume import check_checkpoint, has_ended
from .saved import save_task
from .sections import Device, Precision, RunConfig
from .trainer import SeededTrainer, build

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
    encoded: Mapping[str, Dataset]
    cut: Mapping[str, int]
    counts: Counts
    rate: Rate


def run(config: RunConfig, *, overwrite: bool = False, progress: bool = True, predictions: bool = False) -> Outcome:
    """Start, resume, or return a finished run.

    Args:
        config: the run.
        overwrite: discard a run in the output folder, whatever its config and state.
        progress: show progress bars on stderr and the evaluations on stdout.
        predictions: also write ``predictions.json`` into the folder: the prediction for each row of the first
            evaluation split, and the row's reference.

    Raises:
        SubspaceError: the input cannot be used, the output folder holds something else, or the training diverged.
    """
    with processes.joined():
        return _run(config, overwrite, progress and processes.is_first(), predictions)


def _run(config: RunConfig, overwrite: bool, progress: bool, predictions: bool) -> Outcome:
    with processes.together():
        validate(config)
        cpu, quantise = runtime.on_cpu(config.training.device), config.quantise is not None
        precision = runtime.resolved(config.training.precision, config.training.device)
        processes.check_launcher(cpu=cpu, quantised=quantise, precision=precision)
    folder = RunFolder(config.output)
    done = processes.decided(lambda: _finished(folder, config, overwrite))
    if done is not None:
        return Outcome(done, folder.path / done["result"], repeated=True)
    with runtime.threads(config.training.threads), runtime.quiet(bars=progress):
        with processes.together():
            parts = _prepare(config)
        started: dict[str, Any] = {
            "config": config.resolved(),
            "task": parts.task.options,
            "data": {split: {"rows": len(t), "sha256": t.fingerprint()} for split, t in parts.rows.items()},
            "processes": processes.count(),
        }
        with processes.owned(folder.open(started, overwrite=overwrite)):
            with processes.together():
                folder.check_shared()
            # Another call may have finished the run while this one was loading its model.
            done = processes.decided(folder.record)
            if done is not None:
                return Outcome(done, folder.path / done["result"], repeated=True)
            return _train(parts, folder, started["data"], progress, predictions)


def _finished(folder: RunFolder, config: RunConfig, overwrite: bool) -> dict[str, Any] | None:
    """Return the record of the run if it is finished. Raises SubspaceError if the folder cannot be used."""
    folder.check(config.resolved(), overwrite=overwrite)
    return None if overwrite else folder.record()


def _prepare(config: RunConfig) -> _Parts:
    task = tasks.get(config.task.name).configured(config.task.options)
    # Quick checks come first, since data and model can take minutes to load; this one also resolves the method.
    check_rate(config.adapter, config.training.learning_rate)
    task = task.for_model(architecture_of(config.model))
    if task.writes and (by := processes.sharding()):
        raise SubspaceError(
            f"task {task.name!r} generates texts of unequal lengths, for which the processes of {by} would wait: "
            "launch without it"
        )
    task, rows = task.prepare(config.task.data, train_rows=config.task.train_rows, eval_rows=config.task.eval_rows)
    if config.task.tuning_split is not None:
        rows = tasks.for_tuning(task, rows, config.task.tuning_split)
    transformers.set_seed(config.training.seed)  # from here on the head and the factors are drawn
    settings = dict(task.model_settings)
    if config.quantise is not None:
        cpu = config.training.device is Device.cpu
        settings |= quantised(config.quantise, config.model, task.model_class, settings, config.adapter.head, cpu)
    length = config.task.max_length
    base, processor = load(config.model, task.model_class, settings, length)
    rate = rate_for(base, config.adapter, config.training.learning_rate)
    new_rows = _new_rows(base, processor, config.adapter.new_tokens)

    def sample() -> Iterator[Any]:
        seen = rows["train"].first(config.adapter.calibration_rows or CALIBRATION_ROWS)
        return task.batches(seen, processor, length, config.training.batch_size)

    tuned, counts = attach(base, config.adapter, task.task_type, sample, task.objective, new_rows)
    encoded, cut = _encoded(task, rows, processor, length)
    check_training(tuned, config.training, len(encoded["train"]))
    task = task.ready(tuned, processor, length)
    return _Parts(config, task, rows, tuned, processor, encoded, cut, counts, rate)


def _new_rows(model: PreTrainedModel, processor: Processor, tokens: list[str] | None) -> dict[str, list[int]] | None:
    """Add new tokens, and return their rows by module, as ``add_tokens`` does."""
    if not tokens:
        return None
    by = processes.sharding()
    if by and model.get_output_embeddings() is not None:  # type: ignore[no-untyped-call]
        raise SubspaceError(
            f"adapter.new_tokens adds rows to the output layer of a language model, which {by} divides: launch "
            "without it"
        )
    return add_tokens(model, processor, tokens)


def _train(parts: _Parts, folder: RunFolder, data: Mapping[str, Any], progress: bool, predictions: bool) -> Outcome:
    training = parts.config.training
    count = len(parts.encoded["train"])
    args = arguments(training, parts.task, count, parts.rate.value, str(folder.checkpoints), progress)
    if parts.config.quantise is Quantise.qlora and args.device.type == "cuda":
        args.optim = OptimizerNames.PAGED_ADAMW
    precision = runtime.resolved(training.precision, training.device).value
    chosen = f"{precision} (chosen automatically; training.precision overrides)"
    logger.info("products in %s", chosen if training.precision is Precision.auto else precision)
    head = trained_head(parts.model, parts.config.adapter)
    training = replace(training, head_learning_rate=training.head_learning_rate or parts.rate.head)
    data_of = {split: (parts.rows[split], encoded) for split, encoded in parts.encoded.items()}
    trainer = build(parts.model, parts.processor, parts.task, data_of, args, training, head, folder.logs)
    checkpoint = processes.decided(folder.last_checkpoint)
    with processes.together():
        start = None if checkpoint is None else check_checkpoint(checkpoint, trainer, total_steps(training, count))
    state = _fit(trainer, checkpoint, start)
    record = _record(parts, trainer, state, start, data)
    compared = trainer.compared() if predictions else None
    weights = trainer.whole_weights()
    path = folder.path / str(record["result"])

    def finish() -> dict[str, Any]:
        _save(parts, path, record, weights)
        folder.finish(record, compared)
        return record

    return Outcome(processes.decided(finish), path, repeated=False)


def _record(
    parts: _Parts, trainer: SeededTrainer, state: TrainerState, start: TrainerState | None, data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the record of a finished training; ``start`` is the state that it resumed from."""
    training = parts.config.training
    return records.build(
        parts.config,
        parts.task,
        parts.counts,
        parts.rate,
        history(state),
        _baseline(parts),
        {
            "precision": runtime.resolved(training.precision, training.device).value,
            "processes": processes.count(),
            "steps": state.global_step,
            "resumed_from_step": None if start is None else start.global_step,
            "seconds": round(trainer.seconds(), 2),
            "losses": trainer.losses(),
            "data": data,
            "cut": dict(parts.cut),
            "options": dict(parts.task.options),
            "result": "adapter" if isinstance(parts.model, PeftModel) else "model",
            "schedule": trainer.scheduling.schedule.report(),
            "orthogonality": {name: found._asdict() for name, found in orthogonality(parts.model).items()},
        },
    )


def _encoded(
    task: Task[Any], rows: Mapping[str, Rows], processor: Processor, length: int
) -> tuple[dict[str, Dataset], dict[str, int]]:
    """Return the encoded rows of each split, and how many of them are truncated."""
    encoded, cut = {}, {}
    for split, part in rows.items():
        encoded[split] = task.encode(part, processor, length)
        cut[split] = task.cut(part, encoded[split], processor, length)
        if cut[split]:
            logger.warning(
                "%d of the %d %s rows are longer than task.max_length = %d tokens and are truncated",
                *(cut[split], len(part), split, length),
            )
    return encoded | {"train": task.for_training(encoded["train"], length)}, cut


def _fit(trainer: SeededTrainer, checkpoint: Path | None, state: TrainerState | None) -> TrainerState:
    """Train to the end, from the checkpoint if there is one, and leave the weights to be saved in the model."""
    if checkpoint is None or state is None:
        logger.info("training from the start")
        trainer.train()
        return trainer.state
    trainer.scheduling.checkpoint = checkpoint
    logger.info("resuming from step %d of %d", state.global_step, state.max_steps)
    if not has_ended(state):
        trainer.args.eval_on_start = False  # the checkpoint has those figures
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return trainer.state
    # Interrupted between the last step and the record: resumed from here, the Trainer would take a step too many.
    wanted = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer.load_ended(wanted or str(checkpoint), state)
    trainer.scheduling.on_train_begin(trainer.args, state, trainer.control)  # for its report
    return state


def _baseline(parts: _Parts) -> dict[str, float]:
    return {
        prefixed(prefix, name): figure
        for prefix, split in parts.task.evaluation
        for name, figure in parts.task.baseline(parts.rows["train"], parts.rows[split]).items()
    }


def _save(parts: _Parts, path: Path, record: Mapping[str, Any], weights: dict[str, Tensor] | None) -> None:
    """Write the result; `weights` are those of a divided model."""
    with replaced(path) as temporary:
        # Of embeddings that have grown, peft would save all rows.
        alone: dict[str, Any] = {"save_embedding_layers": False} if parts.config.adapter.new_tokens else {}
        parts.model.save_pretrained(str(temporary), state_dict=weights, **alone)
        parts.processor.save_pretrained(str(temporary))
        save_task(temporary, parts.task, parts.config.task.max_length, parts.config.model, parts.config.quantise)
        card(parts.config, parts.task, record, _formula(parts.model)).save(temporary / "README.md")


def _formula(model: PreTrainedModel | PeftModel) -> str | None:
    config = model.peft_config["default"] if isinstance(model, PeftModel) else None
    return str(config.resolved.formula) if isinstance(config, SubspaceConfig) else None
