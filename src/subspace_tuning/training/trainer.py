"""The Hugging Face Trainer, made repeatable.

The Trainer keeps the random state in its checkpoints, so dropout resumes correctly. But it would redraw the order of
rows that are grouped by length; here the order is a function of the seed and the epoch, so that a resumed run sees the
same rows as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..errors import SubspaceError, reading
from ..models.load import Processor
from ..tasks import Rows, Seen, Task, Values
from ..tuner.calibration import evaluating, fisher, hardest, loss_of
from ..tuner.logging import PenaltyCallback
from ..tuner.optim import ratios
from ..tuner.scheduling import ScheduleCallback, adapted
from . import zero
from .callbacks import (
    Clock,
    EpochOrder,
    EvaluateWithinEpoch,
    Losses,
    Pace,
    Progress,
    RecentBatches,
    SaveWithinEpoch,
)
from .processes import count, together
from .resume import HINT, check_optimizer, random_state
from .sampler import EpochSampler, VariedRows
from .sections import TrainingSection

C = TypeVar("C", bound=TrainerCallback)
EncodedRows: TypeAlias = tuple[Rows, Dataset]
"""The rows of a split, and their encoded form."""


class DivergedError(SubspaceError):
    """Raised if the loss or the predictions become NaN or infinite."""


class SeededTrainer(Trainer):
    """A Trainer for a task, with the training rows in `order` and separate rates for `head` and for single factors."""

    def __init__(
        self,
        *,
        task: Task[Any],
        data: Mapping[str, EncodedRows],
        order: EpochSampler,
        head: Sequence[nn.Parameter],
        training: TrainingSection,
        **kwargs: Any,
    ) -> None:
        train: Any = data["train"][1]
        evaluation = {prefix: data[split][1] for prefix, split in task.evaluation}
        super().__init__(
            train_dataset=train if task.varied is None else VariedRows(train, task.varied, order),
            eval_dataset=evaluation if len(evaluation) > 1 else next(iter(evaluation.values())),
            compute_metrics=self.figures,
            **kwargs,
        )
        self.task = task
        self.data = data
        self.evaluated = data["train"]  # the split under evaluation
        self.order = order
        self.head = head
        self.training = training
        self.recent: list[Any] = []  # the batches of this optimiser step, for schedules that use them
        self.pace = Pace()
        self.scheduling = ScheduleCallback(kwargs["model"], self.scores)
        # Classification heads average over their rows and ignore the count that the Trainer passes; if the Trainer
        # assumed that they use it, it would sum the losses of accumulated batches instead of averaging them.
        self.model_accepts_loss_kwargs = task.training.counts_labels

    def seconds(self) -> float:
        """Return the seconds of training so far, including those before an interruption."""
        return self._callback(Clock).total()

    def losses(self) -> list[list[Any]]:
        """Return optimiser steps with the mean training loss since the step before (see ``Losses``), for JSON."""
        return [list(point) for point in self._callback(Losses).points]

    def _callback(self, kind: type[C]) -> C:
        # Looked up each time: when it resumes from a checkpoint, the Trainer replaces callbacks that have a state.
        return next(entry for entry in self.callback_handler.callbacks if isinstance(entry, kind))

    def load_ended(self, checkpoint: str, state: TrainerState) -> None:
        """Load a checkpoint's weights, and the state in which training ended."""
        self._load_from_checkpoint(checkpoint)
        self.state = state
        self._load_callback_state()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the Trainer's optimiser, with separate groups for the head and for factors with their own rates."""
        optimizer = super().create_optimizer(model)
        assert self.model is not None
        training, rate = self.training, self.args.learning_rate
        multiples = ratios(self.model, training.lora_plus_ratio or 1.0, training.rates)
        own = {id(parameter): rate * multiple for parameter, multiple in multiples}
        own |= dict.fromkeys(map(id, self.head), training.head_learning_rate or rate)
        for group in list(optimizer.param_groups):
            for chosen in dict.fromkeys(own.values()):
                params = [parameter for parameter in group["params"] if own.get(id(parameter)) == chosen]
                group["params"] = [parameter for parameter in group["params"] if own.get(id(parameter)) != chosen]
                optimizer.add_param_group({**group, "params": params, "lr": chosen})
        return optimizer

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's step; a schedule that needs examples finds the batch in `recent`."""
        if self.scheduling.schedule.looks_at_examples:
            self.recent.append(self._prepare_inputs(inputs))
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.pace.add(loss, inputs)
        self._callback(Losses).add(loss)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the task's own loss if it has one, otherwise the Trainer's."""
        if self.task.loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = self.task.loss(model, inputs)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's step, or generate if the task does."""
        if self.task.generate is None:
            return super().prediction_step(model, inputs, *args, **kwargs)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return None, self.task.generate(model, inputs), inputs[self.task.truth]

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's loop on one of the splits."""
        self.evaluated = next(part for part in self.data.values() if part[1] is dataloader.dataset)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def figures(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the task's figures for the split under evaluation."""
        found = prediction.predictions
        outputs = np.asarray(found[0] if isinstance(found, tuple) else found, dtype=np.float64)
        with together():  # each process has the outputs of all
            if not np.isfinite(outputs).all():
                raise DivergedError(
                    "training diverged: the model's outputs are NaN or infinite; try a lower learning rate"
                )
        return self.task.figures(self._seen(outputs, prediction.label_ids))

    def compared(self) -> tuple[Any, Any]:
        """Return a prediction and a reference for each row of the first evaluation split, as ``Task.compared``."""
        _, encoded = self.data[self.task.evaluation[0][1]]
        figures, self.compute_metrics = self.compute_metrics, None
        found: Any = self.predict(encoded)
        self.compute_metrics = figures
        outputs = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
        return self.task.compared(self._seen(np.asarray(outputs, dtype=np.float64), found.label_ids))

    def _seen(self, outputs: Values, labels: Any) -> Seen[Any]:
        processor: Any = self.processing_class
        return Seen(*self.evaluated, outputs, np.asarray(labels), processor)

    def scores(self) -> dict[str, torch.Tensor]:
        """Return the Fisher information of every adapted W on the half of the step's examples with the largest loss."""
        model, loss = self.model, self.task.objective
        assert model is not None
        with evaluating(model):
            examples = hardest(model, self.recent, 0.5, loss)
            return fisher(adapted(model), lambda: (loss_of(model, example, loss) for example in examples))

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """Return the weights gathered in the first process, if the model is divided; a collective call."""
        weights: dict[str, torch.Tensor] | None = None
        engine: Any = self.deepspeed  # None if nothing was left to train
        if self.is_fsdp_enabled:
            weights = self.accelerator.get_state_dict(self.model)
        elif engine is not None and zero.stage() == 3:
            alone = isinstance(self.model, PeftModel)
            weights = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=alone)
        return weights

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with together(), reading(resume_from_checkpoint, HINT):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with together(), reading(f"the optimiser of {checkpoint}", HINT):
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                assert self.optimizer is not None
                check_optimizer(self.optimizer)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with together(), reading(f"{checkpoint}: {random_state(self.args.process_index)}", HINT):
            super()._load_rng_state(checkpoint)

    def _load_callback_state(self) -> None:
        with together(), reading("the callbacks in trainer_state.json", HINT):
            super()._load_callback_state()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The first process writes next what completes a checkpoint, which holds a file of every process.
        self.accelerator.wait_for_everyone()

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self.order


def _seeded(trainer: type[Trainer]) -> type[SeededTrainer]:
    """Return a subclass of `trainer` with the additions of `SeededTrainer`."""
    return SeededTrainer if trainer is Trainer else type(f"Seeded{trainer.__name__}", (SeededTrainer, trainer), {})


def build(
    model: PreTrainedModel | PeftModel,
    processor: Processor,
    task: Task[Any],
    data: Mapping[str, EncodedRows],
    args: TrainingArguments,
    training: TrainingSection,
    head: Sequence[nn.Parameter],
    logs: Path,
) -> SeededTrainer:
    """Return a trainer for a task.

    Args:
        model: the model.
        processor: its tokenizer or image processor.
        task: the task.
        data: the rows of each split, and their encoded form.
        args: the Trainer's arguments.
        training: the section of the config that they come from.
        head: the parameters of the model's head.
        logs: the folder for TensorBoard's files.
    """
    _, train = data["train"]
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    group = count() * training.batch_size * training.gradient_accumulation if training.group_by_length else None
    order = EpochSampler(task.lengths(train), group, training.seed)
    callbacks: list[TrainerCallback] = [Clock(), Losses(), EpochOrder(order)]
    if training.save_steps:
        callbacks.append(SaveWithinEpoch(training.save_steps))
    if training.eval_steps:
        callbacks.append(EvaluateWithinEpoch(training.eval_steps))
    if training.patience:
        callbacks.append(EarlyStoppingCallback(training.patience))
    trainer = _seeded(task.training.trainer)(
        task=task,
        data=data,
        order=order,
        head=head,
        training=training,
        model=model,
        args=args,
        data_collator=task.collator(processor),
        processing_class=processor,
        callbacks=callbacks,
    )
    for reporter in trainer.callback_handler.callbacks:
        if isinstance(reporter, TensorBoardCallback):
            reporter.logging_dir = reporter.logging_dir or str(logs)
    for callback in (RecentBatches(trainer.recent), trainer.scheduling, PenaltyCallback(model)):
        trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    if not args.disable_tqdm:
        trainer.add_callback(Progress(trainer.pace))
    return trainer
