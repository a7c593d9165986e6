"""The Hugging Face Trainer, made repeatable.

The Trainer keeps the random state in its checkpoints, so dropout goes on as it would have. The order of the rows,
grouped by length, it would draw anew; here it is a function of the seed and the epoch, so that a run that goes on
from a checkpoint sees the rows that it would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..errors import SubspaceError, reading
from ..tasks import Rows, Seen, Task
from ..tuner.calibration import evaluating, fisher, hardest, loss_of
from ..tuner.logging import PenaltyCallback
from ..tuner.optim import second_factors
from ..tuner.scheduling import ScheduleCallback, adapted
from .callbacks import Bars, Clock, RecentBatches, SaveWithinEpoch
from .resume import HINT, check_optimizer
from .sampler import EpochSampler
from .sections import TrainingSection

EncodedRows: TypeAlias = tuple[Rows, Dataset]
"""The rows of a split, and what the task made of them."""


class DivergedError(SubspaceError):
    """The loss or the predictions became NaN or infinite."""


class SeededTrainer(Trainer):
    """A Trainer of a task whose training rows come in `order`, and which trains `head` at a rate of its own."""

    def __init__(
        self,
        *,
        task: Task[Any],
        data: Mapping[str, EncodedRows],
        order: EpochSampler,
        head: Sequence[nn.Parameter],
        head_rate: float,
        b_ratio: float = 1.0,
        **kwargs: Any,
    ) -> None:
        evaluation = {prefix: data[split][1] for prefix, split in task.evaluation}
        super().__init__(
            train_dataset=data["train"][1],
            eval_dataset=evaluation if len(evaluation) > 1 else next(iter(evaluation.values())),
            compute_metrics=self.figures,
            **kwargs,
        )
        self.task = task
        self.data = data
        self.evaluated = data["train"]  # the split under evaluation
        self.order = order
        self.b_ratio = b_ratio
        self.recent: list[Any] = []  # the batches of this optimiser step, for schedules that look at them
        self.scheduling = ScheduleCallback(kwargs["model"], self.scores)
        self.head = {id(parameter) for parameter in head}
        self.head_rate = head_rate
        # Classification heads take the mean over the rows they see and ignore the count that the Trainer hands them;
        # told that they heed it, the Trainer would add the losses of accumulated batches up instead of averaging them.
        self.model_accepts_loss_kwargs = False

    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        # Asked for anew each time: going on from a checkpoint, the Trainer puts another clock into its place.
        return next(entry.total() for entry in self.callback_handler.callbacks if isinstance(entry, Clock))

    def load_weights(self, checkpoint: str) -> None:
        """Puts a checkpoint's weights into the model."""
        self._load_from_checkpoint(checkpoint)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimiser, with groups of their own for the head's parameters and for the factors B."""
        optimizer = super().create_optimizer(model)
        assert self.model is not None
        faster = {id(parameter) for parameter in second_factors(self.model)}
        for group in list(optimizer.param_groups):
            for chosen, rate in ((self.head, self.head_rate), (faster, group["lr"] * self.b_ratio)):
                own = [parameter for parameter in group["params"] if id(parameter) in chosen]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
                optimizer.add_param_group({**group, "params": own, "lr": rate})
        return optimizer

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's step; a schedule that looks at examples finds the batch in `recent`."""
        if self.scheduling.schedule.looks_at_examples:
            self.recent.append(self._prepare_inputs(inputs))
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's own loss if it has one, else the Trainer's."""
        if self.task.loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = self.task.loss(model, inputs)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's step; what a task generates takes the place of the outputs."""
        loss, outputs, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if self.task.generate is not None:
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self.task.generate(model, self._prepare_inputs(inputs))
        return loss, outputs, labels

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's loop, on one of the splits."""
        self.evaluated = next(part for part in self.data.values() if part[1] is dataloader.dataset)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def figures(self, prediction: EvalPrediction) -> dict[str, float]:
        """The task's figures of the split under evaluation."""
        found = prediction.predictions
        outputs = np.asarray(found[0] if isinstance(found, tuple) else found, dtype=np.float64)
        if not np.isfinite(outputs).all():
            raise DivergedError("training diverged: the model's outputs are NaN or infinite; try a lower learning rate")
        tokenizer: Any = self.processing_class
        return self.task.figures(Seen(*self.evaluated, outputs, np.asarray(prediction.label_ids), tokenizer))

    def scores(self) -> dict[str, torch.Tensor]:
        """Fisher information of every adapted W on the half of this step's examples with the largest loss."""
        model, loss = self.model, self.task.objective
        assert model is not None
        with evaluating(model):
            examples = hardest(model, self.recent, 0.5, loss)
            return fisher(adapted(model), lambda: (loss_of(model, example, loss) for example in examples))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with reading(resume_from_checkpoint, HINT):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(f"the optimiser of {checkpoint}", HINT):
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                assert self.optimizer is not None
                check_optimizer(self.optimizer)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(f"{checkpoint}: rng_state.pth", HINT):
            super()._load_rng_state(checkpoint)

    def _load_callback_state(self) -> None:
        with reading("the callbacks in trainer_state.json", HINT):
            super()._load_callback_state()

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self.order


def build(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task[Any],
    data: Mapping[str, EncodedRows],
    args: TrainingArguments,
    training: TrainingSection,
    head: Sequence[nn.Parameter],
) -> SeededTrainer:
    """A trainer of `model` on `data` by split; `head` are those of its parameters that are the head's."""
    _, train = data["train"]
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    group = training.batch_size * training.gradient_accumulation if training.group_by_length else None
    callbacks: list[TrainerCallback] = [Clock()]
    if training.save_steps:
        callbacks.append(SaveWithinEpoch(training.save_steps))
    trainer = SeededTrainer(
        task=task,
        data=data,
        order=EpochSampler(task.lengths(train), group, training.seed),
        head=head,
        head_rate=training.head_learning_rate or args.learning_rate,
        b_ratio=training.lora_plus_ratio or 1.0,
        model=model,
        args=args,
        data_collator=task.collator(tokenizer),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    for callback in (RecentBatches(trainer.recent), trainer.scheduling, PenaltyCallback(model)):
        trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    if not args.disable_tqdm:
        trainer.add_callback(Bars)
    return trainer
