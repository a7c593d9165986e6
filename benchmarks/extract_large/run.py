"""Extraction from checkpoints with layers of a 7B model: memory and time, beside full singular value decompositions.

    python benchmarks/extract_large/run.py --work FOLDER    # needs 8 GB of disk, 6 GB of memory

Two checkpoints of four layers of Llama-7B's shape are written in bfloat16 shards: random weights, and the same with a
change of rank 32 and noise beside it, as a fine-tune leaves it. `subspace extract` runs as a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from subspace_tuning.adapters.pairs import pair
from subspace_tuning.files import write_json, written
from subspace_tuning.models.checkpoint import Checkpoint
from subspace_tuning.provenance import circumstances

HERE = Path(__file__).resolve().parent
WIDTH, INNER, RANK = 4096, 11008, 32
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


def tensors(layer: int, tuned: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of one layer."""
    for number, (name, (rows, columns)) in enumerate(SHAPES.items()):
        generator = torch.Generator().manual_seed(100 * layer + number)
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        if tuned:
            left = torch.randn(rows, RANK, generator=generator) * torch.linspace(1, 0.2, RANK)
            right = torch.randn(RANK, columns, generator=generator)
            weight += 0.05 * left @ right / (columns * RANK) ** 0.5
            weight += 0.01 * torch.randn(rows, columns, generator=generator) / columns**0.5
        yield f"model.layers.{layer}.{name}.weight", weight.bfloat16()
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"model.layers.{layer}.{name}.weight", torch.ones(WIDTH, dtype=torch.bfloat16)


def make(folder: Path, layers: int, tuned: bool) -> None:
    """Write a checkpoint, a shard per layer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=32,
        vocab_size=1000,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    index: dict[str, str] = {}
    for layer in range(layers):
        name = f"model-{layer + 1:05}-of-{layers + 1:05}.safetensors"
        part = dict(tensors(layer, tuned))
        save_file(part, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    generator = torch.Generator().manual_seed(7)
    rest = {
        "model.embed_tokens.weight": torch.randn(1000, WIDTH, generator=generator).bfloat16(),
        "model.norm.weight": torch.ones(WIDTH, dtype=torch.bfloat16),
        "lm_head.weight": torch.randn(1000, WIDTH, generator=generator).bfloat16(),
    }
    name = f"model-{layers + 1:05}-of-{layers + 1:05}.safetensors"
    save_file(rest, folder / name, metadata={"format": "pt"})
    index |= dict.fromkeys(rest, name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def main() -> None:
    """Reads the command line, makes the checkpoints, extracts and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="gets the checkpoints")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--results", type=Path, default=HERE)
    options = parser.parse_args()
    base, tuned, output = (options.work / name for name in ("base", "tuned", "adapter"))
    for folder, changed in ((base, False), (tuned, True)):
        if not (folder / "model.safetensors.index.json").is_file():
            make(folder, options.layers, changed)
    code = "from subspace_tuning.cli import main; main()"
    words = ["extract", base, tuned, "-m", "lora", "-r", str(RANK), "-o", output, "--overwrite"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True)
    seconds = time.perf_counter() - started
    rows: list[dict[str, Any]] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    # Full decompositions of one matrix of each shape, and from them the time for all.
    full: dict[str, float] = {}
    first = Checkpoint(str(base)), Checkpoint(str(tuned))
    for row in rows:
        shape = f"{row['n']} x {row['m']}"
        if shape not in full:
            W, W_star = pair(*first, row["module"])
            begun = time.perf_counter()
            torch.linalg.svd((W_star - W).float(), full_matrices=False)
            full[shape] = time.perf_counter() - begun
    found = {
        **circumstances(),
        "layers": options.layers,
        "matrices": len(rows),
        "seconds": seconds,
        "peak_memory_mib": max(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, before) / 2**10,
        "checkpoint_mib": sum(file.stat().st_size for file in base.glob("*.safetensors")) / 2**20,
        "largest_matrix_mib_in_float64": WIDTH * INNER * 8 / 2**20,
        "full_svd_seconds": full,
        "full_svd_seconds_of_all": sum(full[f"{row['n']} x {row['m']}"] for row in rows),
        "worst_change_error": max(row["change_error"] for row in rows),
        "seconds_of_approximations": sum(row["seconds"] for row in rows),
    }
    with written(options.results / "results.json") as file:
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
