"""A task in one file: how many words has a text? Its rows are drawn on the spot, and its loss is its own."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import TaskType
from transformers import AutoModelForSequenceClassification

from subspace_tuning.tasks import Task, Values, register

WORDS = ("ba", "de", "fi", "go", "lu", "ne")
ROWS = {"train": 48, "validation": 24}


@dataclass(frozen=True)
class Texts:
    """Texts, whose labels are their numbers of words."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> Texts:
        return Texts(self.texts[:count])

    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()

    @property
    def labels(self) -> Values:
        return np.array([len(text.split()) for text in self.texts], dtype=np.float32)


class CountingWords(Task[Texts]):
    name = "counting_words"
    primary = "within one"
    model_class = AutoModelForSequenceClassification
    model_settings = MappingProxyType({"num_labels": 1, "problem_type": "regression"})
    task_type = TaskType.SEQ_CLS

    def load(self, source: str, *, train_rows: int | None = None, eval_rows: int | None = None) -> dict[str, Texts]:
        rng = random.Random(source)
        texts = {
            split: tuple(" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(rows))
            for split, rows in ROWS.items()
        }
        return {"train": Texts(texts["train"][:train_rows]), "validation": Texts(texts["validation"][:eval_rows])}

    def encode(self, rows: Texts, tokenizer: Any, max_length: int) -> Dataset:
        tokens = tokenizer(list(rows.texts), truncation=True, max_length=max_length)
        return Dataset.from_dict({**tokens, "labels": rows.labels})

    def loss(self, model: Any, batch: Any) -> tuple[torch.Tensor, Any]:
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
        return torch.nn.functional.huber_loss(outputs.logits[:, 0], batch["labels"]), outputs

    def predict(self, outputs: Values) -> Values:
        return outputs.reshape(-1)

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        error = np.abs(predictions - labels)
        return {"within one": float((error < 1).mean()), "mean error": float(error.mean())}

    def baseline(self, train: Texts, rows: Texts) -> dict[str, float]:
        return self.score(np.full(len(rows), train.labels.mean()), rows.labels)


register(CountingWords())
