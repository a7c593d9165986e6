"""The Trainer's arguments for a config, and whether the run can be made at all."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from ..errors import SubspaceError
from ..tasks import Task
from ..tuner.optim import parameter_groups
from ..tuner.scheduling import schedule
from .runtime import uses_bfloat16
from .sections import Device, Keep, Scheduler, TrainingSection


def total_steps(training: TrainingSection, rows: int) -> int:
    """The optimiser steps of a run over `rows` training rows."""
    batches = math.ceil(rows / training.batch_size)
    return training.max_steps or training.epochs * math.ceil(batches / training.gradient_accumulation)


def arguments(
    training: TrainingSection, task: Task[Any], rows: int, learning_rate: float, checkpoints: str, progress: bool
) -> TrainingArguments:
    """The Trainer's arguments for a run over `rows` training rows that evaluates and saves after each epoch."""
    constant = training.scheduler is Scheduler.constant
    args = task.training.arguments(
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
        greater_is_better=task.larger_is_better,
        load_best_model_at_end=training.keep is Keep.best,
        restore_callback_states_from_checkpoint=True,
        dataloader_pin_memory=False,
        torch_compile=training.compile,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=not progress,
        report_to=[],
        **task.training.settings,
    )
    # With several devices the Trainer would split each batch among them and take fewer steps than were planned.
    args._n_gpu = min(args.n_gpu, 1)
    return args


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
