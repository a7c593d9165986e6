"""Seconds for the derived learning rate of each method: in all-MiniLM-L6-v2, and for the shapes of a model of 1 B.

python benchmarks/rates/cost.py    # writes results/cost.md and results/cost.json
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig

from subspace_tuning import SubspaceConfig, methods
from subspace_tuning.errors import SubspaceError
from subspace_tuning.files import write_json, write_text
from subspace_tuning.models.locate import locate
from subspace_tuning.provenance import provenance
from subspace_tuning.tuner.rates import derived_rate

RESULTS = Path(__file__).resolve().parent / "results"
FORMULAS = ("D1 @ W @ D2 + s * A @ B", "W @ R", "W + Delta")


def billion() -> torch.nn.Module:
    """Return a model with the shapes of a Llama of 1.2 billion parameters, without weights."""
    shapes = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shapes)


def seconds(model: torch.nn.Module, config: SubspaceConfig) -> tuple[float, float] | str:
    """Return the seconds for one rate, with those of LoRA's travel, and the rate; or why there is none."""
    begun = time.process_time()
    try:
        rate = derived_rate(config, model)
    except SubspaceError as error:
        return str(error)
    return time.process_time() - begun, rate


def main() -> None:
    """Measure every method in both models."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    models = {"minilm": AutoModel.from_pretrained(locate("minilm")), "1B": billion()}
    configs = {known.name: SubspaceConfig(method=known.name) for known in methods.every()}
    configs |= {text: SubspaceConfig(formula=text) for text in FORMULAS}
    seconds(models["minilm"], configs["lora"])  # the first call plans
    rows = {
        name: {title: seconds(model, config) for title, model in models.items()} for name, config in configs.items()
    }
    lines = [
        "# The cost of a derived learning rate",
        "",
        "Written by `cost.py`: seconds of processor time on one thread, LoRA's travel included.",
        "",
    ]
    lines += ["| method | MiniLM: s | rate | 1B: s | rate |", "|---|---|---|---|---|"]
    for name, found in rows.items():
        cells = [f"{one[0]:.2f} | {one[1]:.1e}" if isinstance(one, tuple) else f"- | {one}" for one in found.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    write_text(RESULTS / "cost.md", "\n".join(lines) + "\n")
    write_json(RESULTS / "cost.json", provenance() | {"found": rows})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
