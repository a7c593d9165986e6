"""An encoder in Lightning: an adapter with a penalty, a schedule, and checkpoints of the adapter alone.

    pip install lightning
    python examples/lightning_encoder.py [MODEL] [--data ROWS] [--output FOLDER] [--epochs N]

The same call again resumes from the last finished epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from subspace_tuning import SubspaceConfig, parameter_groups, penalty, schedule

ROWS = Path(__file__).parent / "data" / "news.csv"
LAST = "last.ckpt"


class Classifier(LightningModule):
    """An encoder with an adapter, and a head for classes."""

    def __init__(self, model: str, classes: int) -> None:
        super().__init__()
        base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=classes)
        # AdaLoRA moves ranks during training, and has a penalty by itself: see `pattern` for other methods.
        config = SubspaceConfig(method="adalora", r=8, task_type="SEQ_CLS")
        self.model = get_peft_model(base, config).train()  # Lightning leaves the mode as it is

    def setup(self, stage: str) -> None:
        self.schedule = schedule(self.model, int(self.trainer.estimated_stepping_batches))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(self.model, 2e-3, b_ratio=2.0), weight_decay=0.0)

    def training_step(self, batch: Mapping[str, Any], index: int) -> torch.Tensor:
        loss = self.model(**batch).loss  # with the penalty
        self.log_dict({"loss": loss, "penalty": penalty(self.model).detach()}, prog_bar=True)
        return loss

    def optimizer_step(self, epoch: int, index: int, optimizer: Any, closure: Any = None) -> None:
        super().optimizer_step(epoch, index, optimizer, closure)
        # Lightning counts this step later.
        self.schedule.step(self.trainer.global_step + 1, optimizer)

    # A checkpoint has the adapter and the head; the base model is read from its own files.

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return get_peft_model_state_dict(self.model)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return set_peft_model_state_dict(self.model, dict(state_dict))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schedule"] = self.schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.schedule.load_state_dict(checkpoint["schedule"])


def train(model: str, rows: Dataset, output: str, epochs: int, **options: Any) -> Classifier:
    """Tune a model on rows, save the adapter, and return the module.

    Args:
        model: a name on the hub or a folder, of an encoder.
        rows: of the columns text and category.
        output: the folder for the checkpoint and the adapter.
        epochs: passes over the rows.
        options: further arguments of Lightning's Trainer.
    """
    seed_everything(0)
    tokenizer, rows = AutoTokenizer.from_pretrained(model), rows.class_encode_column("category")

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        tokens = tokenizer([row["text"] for row in batch], padding=True, truncation=True, return_tensors="pt")
        return {**tokens, "labels": torch.tensor([row["category"] for row in batch])}

    module = Classifier(model, rows.features["category"].num_classes)
    keep = ModelCheckpoint(output, LAST.removesuffix(".ckpt"), enable_version_counter=False)
    trainer = Trainer(max_epochs=epochs, logger=False, callbacks=[keep, *options.pop("callbacks", ())], **options)
    last = Path(output) / LAST
    loader = DataLoader(rows.shuffle(seed=0), batch_size=8, collate_fn=collate)
    trainer.fit(module, loader, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    module.model.save_pretrained(output)
    return module


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("model", nargs="?", default="sentence-transformers/all-MiniLM-L6-v2")
    words.add_argument("--data", default=str(ROWS))
    words.add_argument("--output", default="runs/lightning")
    words.add_argument("--epochs", type=int, default=3)
    given = words.parse_args()
    train(given.model, load_dataset("csv", data_files=given.data, split="train"), given.output, given.epochs)
