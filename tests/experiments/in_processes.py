"""What each process of test_processes.py does: it trains a list of runs, and leaves what it holds of them in a folder.

The items of the list are "ddp FILE", "fsdp FILE", "zero2 FILE", "zero3 FILE" and "cli FILE": a config of a run as YAML,
or the adapter of a causal language model as JSON. Accelerate shards on accelerators only: here it is told that the CPU
is one, and all else is its own.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from subspace_cli import main as command
from subspace_tuning import ScheduleCallback, SubspaceConfig
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training.processes import joined
from subspace_tuning.training.trainer import SeededTrainer

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


LAYERS = {"bert": "BertLayer", "llama": "LlamaDecoderLayer"}
"""The units of FSDP by the type of model."""


def model_type(path: str) -> str:
    """Return the type of the model that an item trains."""
    if not path.endswith(".yaml"):
        return "llama"
    config = Path(configs.load(path).model, "config.json")
    return str(json.loads(config.read_text(encoding="utf-8"))["model_type"])


def shard_on_the_cpu(layer: str) -> None:
    """Ask for FSDP2 as `accelerate launch` does, with this class of layers as its units."""
    # Of models that do not come from a run, every process makes the whole.
    os.environ.update(FSDP, FSDP_CPU_RAM_EFFICIENT_LOADING="false", FSDP_TRANSFORMER_CLS_TO_WRAP=layer)
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    AcceleratorState._reset_state(reset_partial_state=True)  # that of a run before


def use_deepspeed(stage: int, config: Path) -> None:
    """Ask for ZeRO as `accelerate launch` does, with a config in a file."""
    options = {"stage": stage, "stage3_param_persistence_threshold": 0}  # divides small weights as well
    config.write_text(json.dumps({"zero_optimization": options}), encoding="utf-8")
    os.environ.update(
        ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_CONFIG_FILE=str(config), DS_ACCELERATOR="cpu"
    )


def kill_at(step: int) -> None:
    """Kill every process short of an optimiser step."""
    train_step = SeededTrainer.training_step

    def stop(self: SeededTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self, *args, **kwargs)

    SeededTrainer.training_step = stop  # type: ignore[method-assign]


def causal(adapter: dict[str, Any], folder: Path, processes: int) -> list[float]:
    """Train a causal language model with the stock Trainer, and return its losses."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape))
    model: Any = get_peft_model(base, SubspaceConfig(task_type="CAUSAL_LM", **adapter)).train()
    drawn = torch.Generator().manual_seed(1)
    tokens = [torch.randint(3, 50, (9,), generator=drawn) for _ in range(32)]
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4 // processes,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[ScheduleCallback(model)])
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def classify(path: Path, whole: bool) -> None:
    """Train a run, and save what this process holds of its adapter if that is the whole."""
    made: list[SeededTrainer] = []
    build = train.build

    def keep(*args: Any) -> SeededTrainer:
        made.append(build(*args))
        return made[-1]

    train.build = keep  # type: ignore[assignment]
    config = configs.load(path)
    train.run(config, progress=False)
    train.build = build
    if made and whole:
        held = get_peft_model_state_dict(made[0].model)
        held = {name: tensor.detach().clone().contiguous() for name, tensor in held.items()}
        save_file(held, f"{config.output}-{dist.get_rank()}.safetensors")


def main(rank: int, port: int, folder: str, step: int, items: Sequence[str]) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update(place, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    if step:
        kill_at(step)
    with joined():
        for item in items:
            kind, _, path = item.partition(" ")
            if kind == "fsdp":
                shard_on_the_cpu(LAYERS[model_type(path)])
            if kind.startswith("zero"):
                use_deepspeed(int(kind[-1]), Path(folder, f"{rank}.{kind}.json"))
            if kind == "cli":
                command(["train", path, "--quiet"])
            elif path.endswith(".yaml"):
                classify(Path(path), whole=kind in ("ddp", "zero2"))
            else:
                losses = causal(json.loads(Path(path).read_text()), Path(folder), dist.get_world_size())
                Path(path).with_suffix(f".{rank}.losses").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(*ARGUMENTS)  # noqa: F821  # given by runpy
