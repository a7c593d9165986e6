"""A model of 20,000 parameters and a made-up task, small enough to train in a second."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [f"{stem}{end}" for stem in ("ba", "de", "fi", "go", "lu", "ne") for end in ("", "k", "l", "m", "n")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# What would differ from machine to machine.
FIXED = {"threads": 1, "device": "cpu", "precision": "float32"}

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer BERT over thirty words, with dropout, as any pretrained encoder has it."""
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lively(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger weights: its outputs differ between rows by more than the order of a batch does."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("lively") / "model"))
    model = transformers.BertModel.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data *= 10 if parameter.ndim > 1 else 1
    model.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int) -> Rows:
    """CoLA's columns: a sentence is acceptable if its first word ends in k."""
    rng = random.Random(seed)
    drawn = [rng.choices(WORDS, k=rng.randint(3, 12)) for _ in range(count)]
    return [
        {"sentence": " ".join(words), "label": int(words[0].endswith("k")), "idx": number}
        for number, words in enumerate(drawn)
    ]


def pairs(count: int, seed: int, label: Callable[[int], Any], first: str, second: str) -> Rows:
    """A pair task's columns; `label` makes a row's label from the number of words the two sentences share."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        one, two = (rng.choices(WORDS, k=rng.randint(3, 8)) for _ in range(2))
        rows.append({first: " ".join(one), second: " ".join(two), "label": label(len({*one} & {*two})), "idx": number})
    return rows


def write_split(folder: Path, split: str, rows: Rows) -> None:
    """One split as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of 48 training and 24 validation rows in CoLA's form."""
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "train", sentences(48, seed=0))
    write_split(folder, "validation", sentences(24, seed=1))
    return folder


@pytest.fixture
def settings(tiny_model: Path, data: Path, tmp_path: Path) -> dict[str, Any]:
    """A run of six steps, as a config file would have it."""
    return {
        "model": str(tiny_model),
        "output": str(tmp_path / "run"),
        "task": {"name": "cola", "data": str(data), "max_length": 16},
        "adapter": {"method": "ssb"},
        "training": {
            "epochs": 2,
            "batch_size": 16,
            "threads": 1,
            "device": "cpu",
            "precision": "float32",
            "learning_rate": 0.01,
        },
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    """Writes settings into a config file."""

    def write_config(settings: Mapping[str, Any]) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
        return path

    return write_config
