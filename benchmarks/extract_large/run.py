"""Extraction from checkpoints with layers of a 7B model: memory and time, beside full singular value decompositions.

    python benchmarks/extract_large/run.py --work FOLDER    # needs 8 GB of disk, 6 GB of memory

Two checkpoints of four layers of Llama-7B's shape are written in bfloat16 shards: random weights, and the same with a
change of rank 32 and noise beside it, as a fine-tune leaves it. `subspace extract` runs as a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from subspace_tuning.adapters.pairs import pair
from subspace_tuning.files import write_json
from subspace_tuning.jobs.script import done, one_line_errors, parser
from subspace_tuning.jobs.units import measured
from subspace_tuning.models.checkpoint import Checkpoint
from subspace_tuning.provenance import provenance

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


def extraction(base: Path, tuned: Path, output: Path) -> dict[str, Any]:
    """`subspace extract` in a process of its own: its time, the most memory that it held, and its report."""
    code = "from subspace_cli import main; main()"
    words = ["extract", base, tuned, "-m", "lora", "-r", str(RANK), "-o", output, "--overwrite"]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True)
    return {
        "seconds": time.perf_counter() - started,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10,
        "rows": json.loads((output / "report.json").read_text(encoding="utf-8")),
    }


def decomposition(base: Path, tuned: Path, module: str) -> dict[str, Any]:
    """The time of a full singular value decomposition of one change."""
    W, W_star = pair(Checkpoint(str(base)), Checkpoint(str(tuned)), module)
    started = time.perf_counter()
    torch.linalg.svd((W_star - W).float(), full_matrices=False)
    return {"seconds": time.perf_counter() - started}


@one_line_errors()
def main() -> None:
    """Reads the command line, makes the checkpoints, extracts and writes the results."""
    words = parser(__doc__, HERE / "results.json")
    words.add_argument("--work", type=Path, required=True, help="gets the checkpoints")
    words.add_argument("--layers", type=int, default=4)
    options = words.parse_args()
    base, tuned, adapter = (options.work / name for name in ("base", "tuned", "adapter"))
    for folder, changed in ((base, False), (tuned, True)):
        if not (folder / "model.safetensors.index.json").is_file():
            make(folder, options.layers, changed)
    # One matrix of each shape is decomposed, and stands for all of its shape.
    units = {"extraction": partial(extraction, base, tuned, adapter)}
    for name, (m, n) in SHAPES.items():
        units[f"{n} x {m}"] = partial(decomposition, base, tuned, f"model.layers.0.{name}")
    with measured(options.results, {"layers": options.layers}, units, lambda unit: unit(), done) as parts:
        one = parts.pop("extraction")
        rows, full = one.pop("rows"), {shape: part["seconds"] for shape, part in parts.items()}
        found = {
            **provenance(),
            "layers": options.layers,
            "matrices": len(rows),
            **one,
            "checkpoint_mib": sum(file.stat().st_size for file in base.glob("*.safetensors")) / 2**20,
            "largest_matrix_mib_in_float64": WIDTH * INNER * 8 / 2**20,
            "full_svd_seconds": full,
            "full_svd_seconds_of_all": sum(full[f"{row['n']} x {row['m']}"] for row in rows),
            "worst_change_error": max(row["change_error"] for row in rows),
            "seconds_of_approximations": sum(row["seconds"] for row in rows),
        }
        write_json(options.results, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
