"""Train a method with the stock Trainer; run by test_zero3.py in one process, and in two under DeepSpeed's ZeRO-3."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from subspace_tuning import SubspaceConfig, SubspaceError

ZERO3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


def main(base: str, chosen: str, folder: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    arguments = TrainingArguments(
        folder,
        deepspeed=ZERO3 if processes > 1 else None,
        ddp_backend="gloo" if processes > 1 else None,
        per_device_train_batch_size=4 // processes,
        per_device_eval_batch_size=4 // processes,
        max_steps=4,
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
    )
    model = LlamaForCausalLM.from_pretrained(base)
    named = {"formula": chosen} if "W" in chosen else {"method": chosen}
    where = ["q_proj", "v_proj"] if chosen == "bitfit" else ["q_proj", "v_proj", "down_proj"]
    config = SubspaceConfig(**named, r=4, target_modules=where, task_type="CAUSAL_LM")
    # Every process draws other numbers, as in training that sets no seed: they must agree all the same.
    set_seed(arguments.process_index)
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(0, 64, (8,), generator=generator) for _ in range(16)]
    data = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:8])  # type: ignore[arg-type]
    trainer.train()
    trainer.save_model(f"{folder}/adapter")
    refusal = ""
    if processes > 1:
        try:
            model.merge_adapter()
        except SubspaceError as error:
            refusal = str(error)
    if arguments.process_index == 0:
        history = trainer.state.log_history
        losses = [entry["loss"] for entry in history if "loss" in entry]
        losses += [entry["eval_loss"] for entry in history if "eval_loss" in entry]
        Path(folder, "losses.json").write_text(json.dumps({"losses": losses, "refusal": refusal}))


if __name__ == "__main__":
    main(*sys.argv[1:])
