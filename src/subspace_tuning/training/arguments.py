"""The Trainer's arguments for a config, and checks that the run is possible."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from ..errors import SubspaceError, nearest
from ..tasks import Task
from ..tuner import SubspaceConfig
from ..tuner.optim import parameter_groups
from ..tuner.scheduling import schedule
from . import zero
from .processes import count, sharding
from .runtime import on_cpu, resolved
from .sections import Keep, Precision, Scheduler, TrainingSection


def total_steps(training: TrainingSection, rows: int) -> int:
    """Return the optimiser steps of a run over `rows` training rows, which its processes share."""
    batches = math.ceil(math.ceil(rows / training.batch_size) / count())
    return training.max_steps or training.epochs * math.ceil(batches / training.gradient_accumulation)


def arguments(
    training: TrainingSection, task: Task[Any], rows: int, learning_rate: float, checkpoints: str, progress: bool
) -> TrainingArguments:
    """Return the Trainer's arguments for a run over `rows` training rows that evaluates and saves after each epoch."""
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
        **_precision(training),
        use_cpu=on_cpu(training.device),
        eval_strategy="epoch",
        eval_on_start=training.eval_on_start,
        save_strategy="epoch",
        logging_strategy="steps" if training.log_steps else "epoch",
        logging_steps=training.log_steps or 1,
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
        report_to=training.report_to or [],
        **task.training.settings,
    )
    # With several devices the Trainer would split each batch among them and take fewer steps than planned.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _precision(training: TrainingSection) -> dict[str, Any]:
    """Return the arguments that set the precision of the products."""
    precision = resolved(training.precision, training.device)
    lower = precision is Precision.bfloat16
    if zero.is_asked():  # the Trainer's own argument would make the weights bfloat16
        return {"deepspeed": zero.settings(bfloat16=lower), "fp16": precision is Precision.float16}
    return {"bf16": lower, "fp16": precision is Precision.float16}


def check_training(model: nn.Module, training: TrainingSection, rows: int) -> None:
    """Raise SubspaceError if a run over `rows` rows cannot be made on this machine.

    Raised if the method's schedule or the rates of factors do not fit, if a reporter is not installed, or if steps are
    to be compiled and torch cannot compile here.
    """
    resolved(training.precision, training.device)
    for name in training.report_to or ():
        check_reporter(name)
    if training.compile:
        try:
            torch.compile(torch.neg)(torch.ones(2))
        except Exception as error:  # the compiler may be missing, or fail in many ways
            reason = str(error).strip().splitlines()[0]
            raise SubspaceError(f"training.compile is true, and torch.compile fails here: {reason}") from error
    looks_at_examples = schedule(model, total_steps(training, rows), dict).looks_at_examples
    if by := sharding():
        if looks_at_examples:
            raise SubspaceError(f"the method needs gradients of W in training, and {by} divides W: launch without it")
        if isinstance(model, PeftModel) and not isinstance(model.peft_config["default"], SubspaceConfig):
            raise SubspaceError(f"peft's own methods do not run here under {by}: launch without it")
    parameter_groups(model, 1.0, training.lora_plus_ratio or 1.0, training.rates)


def check_reporter(name: str) -> None:
    """Raise SubspaceError if transformers does not know a reporter, or if it is not installed."""
    if name not in INTEGRATION_TO_CALLBACK:
        told = nearest(name, sorted(INTEGRATION_TO_CALLBACK))
        raise SubspaceError(f"training.report_to has {name!r}, which transformers does not know: {told}")
    if name not in get_available_reporting_integrations():  # type: ignore[no-untyped-call]
        raise SubspaceError(f"training.report_to has {name!r}, which is not installed: pip install {name}")
