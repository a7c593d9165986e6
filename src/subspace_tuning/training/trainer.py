"""The Hugging Face Trainer, made repeatable.

The Trainer keeps the random state in its checkpoints, so dropout goes on as it would have. The order of the rows,
grouped by length, it would draw anew; here it is a function of the seed and the epoch, so that a run that goes on
from a checkpoint sees the rows that it would have seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..errors import SubspaceError, reading
from ..tasks import Task
from ..tuner.calibration import evaluating, fisher, hardest, loss_of
from ..tuner.logging import PenaltyCallback
from ..tuner.optim import is_second_factor, parameter_groups
from ..tuner.scheduling import ScheduleCallback, adapted, schedule
from .config import Device, Keep, Scheduler, TrainingSection
from .resume import HINT, check_optimizer
from .runtime import uses_bfloat16

_NO_FIGURES = ("runtime", "per_second")  # what the Trainer measures of itself


class DivergedError(SubspaceError):
    """The loss or the predictions became NaN or infinite."""


def derived_seed(*parts: int) -> int:
    """A seed for torch from several numbers, unrelated to that of any other numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


class EpochSampler(Sampler[int]):
    """The order of the rows in an epoch, from the seed and the epoch's number.

    Args:
        lengths: tokens per row.
        group: None for a random order, or the rows per optimiser step to be of like length.
        seed: the run's seed.
    """

    def __init__(self, lengths: Sequence[int], group: int | None, seed: int) -> None:
        self.lengths = list(lengths)
        self.group = group
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch, the first after a resumption included."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        if self.group is None:
            order = torch.randperm(len(self.lengths), generator=generator).tolist()
        else:
            order = get_length_grouped_indices(  # type: ignore[no-untyped-call]
                self.lengths, self.group, generator=generator
            )
        return iter(order)


class SaveWithinEpoch(TrainerCallback):
    """Asks for a checkpoint every `steps` steps, but not at an epoch's end.

    There the Trainer saves after the evaluation: going on from a checkpoint taken before it would skip that evaluation.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        within = state.epoch is not None and not float(state.epoch).is_integer() and state.global_step < state.max_steps
        if within and state.global_step % self.steps == 0:
            control.should_save = True


class Clock(TrainerCallback, ExportableState):
    """Seconds of training with its evaluations, over all parts of an interrupted run up to each checkpoint."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._since: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._since = time.perf_counter()

    def total(self) -> float:
        """Seconds so far."""
        return self.seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {"seconds": self.total()}, "attributes": {}}


class RecentBatches(TrainerCallback):
    """Begins the batches of each optimiser step anew, for schedules that look at them."""

    def __init__(self, recent: list[Any]) -> None:
        self.recent = recent

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.recent.clear()


class Bars(ProgressCallback):
    """Progress bars, and a short line per evaluation instead of all that the Trainer logs."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        figures = {key.removeprefix("eval_"): value for key, value in (logs or {}).items() if key.startswith("eval_")}
        shown = [f"{key} {value:.4f}" for key, value in figures.items() if not key.endswith(_NO_FIGURES)]
        bar: Any = self.training_bar
        if shown and bar is not None:
            bar.write(f"epoch {state.epoch:g} of {state.num_train_epochs}: {', '.join(shown)}")


class SeededTrainer(Trainer):
    """A Trainer of a task whose training rows come in `order`, and which trains `head` at a rate of its own."""

    def __init__(
        self,
        *,
        task: Task[Any],
        order: EpochSampler,
        head: Sequence[nn.Parameter],
        head_rate: float,
        b_ratio: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.task = task
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
        faster = {id(parameter) for name, parameter in self.model.named_parameters() if is_second_factor(name)}
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


def total_steps(training: TrainingSection, rows: int) -> int:
    """The optimiser steps of a run over `rows` training rows."""
    batches = math.ceil(rows / training.batch_size)
    return training.max_steps or training.epochs * math.ceil(batches / training.gradient_accumulation)


def arguments(
    training: TrainingSection, task: Task[Any], rows: int, learning_rate: float, checkpoints: str, progress: bool
) -> TrainingArguments:
    """The Trainer's arguments for a run over `rows` training rows that evaluates and saves after each epoch."""
    constant = training.scheduler is Scheduler.constant
    args = TrainingArguments(
        output_dir=checkpoints,
        learning_rate=learning_rate,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        warmup_steps=math.ceil(training.warmup_ratio * total_steps(training, rows)),
        lr_scheduler_type="constant_with_warmup" if constant else training.scheduler.value,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        label_smoothing_factor=training.label_smoothing,
        seed=training.seed,
        bf16=uses_bfloat16(training.precision, training.device),
        use_cpu=training.device is Device.cpu or not torch.accelerator.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        save_total_limit=1,
        metric_for_best_model=f"eval_{task.primary_key}",
        greater_is_better=True,
        load_best_model_at_end=training.keep is Keep.best,
        restore_callback_states_from_checkpoint=True,
        dataloader_pin_memory=False,
        torch_compile=training.compile,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=not progress,
        report_to=[],
    )
    # With several devices the Trainer would split each batch among them and take fewer steps than were planned.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def build(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task[Any],
    data: dict[str, datasets.Dataset],
    args: TrainingArguments,
    training: TrainingSection,
    head: Sequence[nn.Parameter],
) -> SeededTrainer:
    """A trainer of `model` on `data`, a dataset per split; `head` are those of its parameters that are the head's."""
    train = data["train"]
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    group = training.batch_size * training.gradient_accumulation if training.group_by_length else None
    callbacks: list[TrainerCallback] = [Clock()]
    if training.save_steps:
        callbacks.append(SaveWithinEpoch(training.save_steps))
    evaluation = {prefix: data[split] for prefix, split in task.evaluation}
    trainer = SeededTrainer(
        task=task,
        order=EpochSampler(task.lengths(train), group, training.seed),
        head=head,
        head_rate=training.head_learning_rate or args.learning_rate,
        b_ratio=training.lora_plus_ratio or 1.0,
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation if len(evaluation) > 1 else next(iter(evaluation.values())),
        data_collator=task.collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=_figures(task, tokenizer),
        callbacks=callbacks,
    )
    for callback in (RecentBatches(trainer.recent), trainer.scheduling, PenaltyCallback(model)):
        trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    if not args.disable_tqdm:
        trainer.add_callback(Bars)
    return trainer


def check_training(model: nn.Module, training: TrainingSection, rows: int) -> None:
    """Raises SubspaceError if the method's schedule or the ratio of LoRA+ does not fit a run over `rows` rows.

    So it does if the steps shall be compiled and torch cannot compile here.
    """
    if training.compile:
        try:
            torch.compile(torch.neg)(torch.ones(2))
        except Exception as error:  # a compiler that is missing, or fails in one of many ways
            reason = str(error).strip().splitlines()[0]
            raise SubspaceError(f"training.compile is true, and torch.compile fails here: {reason}") from error
    schedule(model, total_steps(training, rows), dict)
    parameter_groups(model, 1.0, training.lora_plus_ratio or 1.0)


def _figures(task: Task[Any], tokenizer: PreTrainedTokenizerBase) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(prediction: EvalPrediction) -> dict[str, float]:
        found = prediction.predictions
        outputs = np.asarray(found[0] if isinstance(found, tuple) else found, dtype=np.float64)
        if not np.isfinite(outputs).all():
            raise DivergedError("training diverged: the model's outputs are NaN or infinite; try a lower learning rate")
        return task.figures(outputs, np.asarray(prediction.label_ids), tokenizer)

    return compute


def history(state: TrainerState) -> list[dict[str, float]]:
    """The evaluations of a run in order: epoch, step, loss, penalty where there is one, and the task's figures."""
    by_step: dict[int, dict[str, float]] = {}
    for entry in state.log_history:
        figures = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
        figures = {key: value for key, value in figures.items() if not key.endswith(_NO_FIGURES)}
        if figures:
            step = int(entry["step"])
            by_step.setdefault(step, {"epoch": float(entry["epoch"]), "step": step}).update(figures)
    return [by_step[step] for step in sorted(by_step)]
