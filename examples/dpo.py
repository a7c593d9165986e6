"""Preference tuning with TRL's DPOTrainer: answers that were preferred to others, and an adapter of this package.

    python examples/dpo.py [MODEL] [--data ROWS] [--output FOLDER] [--steps N]

The reference is the same model with the adapter disabled, so there is no second model in memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from subspace_tuning import PenaltyCallback, ScheduleCallback, SubspaceConfig

ROWS = Path(__file__).parent / "data" / "preferences.jsonl"


def train(model: str, rows: Dataset, output: str, steps: int) -> DPOTrainer:
    """Tune a model on preferences, save the adapter, and return the trainer.

    Args:
        model: a name on the hub or a folder, of a decoder whose tokenizer has a chat template.
        rows: of the columns prompt, chosen and rejected, each a list of messages.
        output: the folder that gets the adapter.
        steps: optimiser steps.
    """
    config = SubspaceConfig(method="lora", r=8, pattern="orthogonal", task_type="CAUSAL_LM")
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    args = DPOConfig(
        output,
        max_steps=steps,
        learning_rate=1e-3,
        beta=0.1,
        bf16=torch.cuda.is_available(),
        logging_steps=1,
        report_to=[],
    )
    trainer = DPOTrainer(
        model=policy,
        ref_model=None,  # the policy with its adapter disabled
        args=args,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[ScheduleCallback(policy), PenaltyCallback(policy)],
    )
    trainer.train()
    trainer.save_model(output)
    return trainer


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    words.add_argument("--data", default=str(ROWS))
    words.add_argument("--output", default="runs/dpo")
    words.add_argument("--steps", type=int, default=20)
    given = words.parse_args()
    train(given.model, load_dataset("json", data_files=given.data, split="train"), given.output, given.steps)
