"""Train a method with the stock Trainer, in one process or in several under DeepSpeed's ZeRO; run by test_zero.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from subspace_tuning import ScheduleCallback, SubspaceConfig, SubspaceError, calibrate
from subspace_tuning.tuner import loss
from subspace_tuning.tuner.scheduling import sites

STAGE3 = {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}


def deepspeed(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",  # otherwise 1, whatever max_grad_norm says
        "zero_optimization": {"stage": stage, **(STAGE3 if stage == 3 else {})},
    }


def main(base: str, folder: str, stage: str, config: str, options: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(0, 64, (8,), generator=generator) for _ in range(16)]
    data = [{"input_ids": row, "labels": row} for row in tokens]
    wanted = SubspaceConfig(task_type="CAUSAL_LM", **json.loads(config))
    if wanted.resolved.needs_calibration:  # on the whole model: once the arguments are made, weights come in parts
        batch = {"input_ids": torch.stack(tokens), "labels": torch.stack(tokens)}
        wanted = calibrate(LlamaForCausalLM.from_pretrained(base), wanted, [batch])
    arguments = TrainingArguments(
        folder,
        deepspeed=deepspeed(int(stage)) if processes > 1 else None,
        ddp_backend="gloo" if processes > 1 else None,
        per_device_train_batch_size=4 // processes,
        per_device_eval_batch_size=4 // processes,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        optim="adamw_torch",
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        **{"max_steps": 4, **json.loads(options)},
    )
    loss.PATIENCE = arguments.gradient_accumulation_steps  # warn after the first step in which no penalty acted
    model: Any = LlamaForCausalLM.from_pretrained(base)
    # Every process draws other numbers under ZeRO-3, as in training that sets no seed: they must agree all the same.
    # Under ZeRO-1 and ZeRO-2 the engine broadcasts them.
    set_seed(arguments.process_index)
    model = get_peft_model(model, wanted)
    callback = ScheduleCallback(model, scores=lambda: drawn_scores(model))
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:8], callbacks=[callback])
    trainer.train()
    trainer.save_model(f"{folder}/adapter")
    refusal = ""
    if processes > 1 and stage == "3":
        try:
            model.merge_adapter()
        except SubspaceError as error:
            refusal = str(error)
    if arguments.process_index == 0:
        history = trainer.state.log_history
        losses = [entry["loss"] for entry in history if "loss" in entry]
        losses += [entry["eval_loss"] for entry in history if "eval_loss" in entry]
        report = {"losses": losses, "refusal": refusal, "schedule": callback.schedule.report()}
        Path(folder, "losses.json").write_text(json.dumps(report))


def drawn_scores(model: nn.Module) -> dict[str, Tensor]:
    """Return other scores of every entry at every call, alike in all processes."""
    drawn_scores.calls = getattr(drawn_scores, "calls", 0) + 1  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(drawn_scores.calls)  # type: ignore[attr-defined]
    return {site.name: torch.rand(site.weight.shape, generator=generator) for site in sites(model)}


if __name__ == "__main__":
    main(*sys.argv[1:])
