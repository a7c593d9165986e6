"""Run by torchrun: the largest difference between factors trained whole and sharded by FSDP2, for each case."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard

from subspace_tuning import SubspaceConfig, schedule

CASES: dict[str, dict[str, Any]] = {
    "lora": {"pattern": "orthogonal", "pattern_weight": 0.5},
    "adalora": {"schedule": {"t_init": 1, "t_final": 1, "interval": 1}},
    "flexlora": {"schedule": {"t_init": 1, "t_final": 1, "interval": 1}},
    "lora_dash": {"schedule": {"launch": 2, "directions": 2}},
    "diff_pruning": {"gate_weight": 0.01},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.second(torch.tanh(self.first(x)))
        return {"loss": (y - labels).square().mean(), "logits": y}


def trained(method: str, sharded: bool, elsewhere: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = SubspaceConfig(method=method, r=4, target_modules=["first", "second"], **CASES[method])
    model: Any = get_peft_model(Net(), config).train()
    if sharded:
        for module in (model.get_base_model().first, model.get_base_model().second, model):
            fully_shard(module)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    plan = schedule(model, 6)
    for step in range(1, 6):
        drawn = torch.Generator().manual_seed(step)
        x, y = torch.randn(4, 10, generator=drawn), torch.randn(4, 8, generator=drawn)
        torch.manual_seed(step)
        optimizer.zero_grad()
        outputs = model(x=x, labels=y)
        ((outputs["logits"] - y).square().mean() if elsewhere else outputs["loss"]).backward()
        optimizer.step()
        plan.step(step, optimizer)
    found = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(hasattr(tensor, "full_tensor") == sharded for tensor in found.values())
    return {name: tensor.full_tensor() if sharded else tensor for name, tensor in found.items()}  # type: ignore[operator]


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != os.environ["RANK"]:  # then sets have another order in each process
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": os.environ["RANK"]})
    dist.init_process_group("gloo")
    for method in CASES:
        for elsewhere in (False, True):
            whole, sharded = (trained(method, form, elsewhere) for form in (False, True))
            difference = max(float((whole[name] - sharded[name]).abs().max()) for name in whole)
            if dist.get_rank() == 0:
                print(json.dumps({"method": method, "elsewhere": elsewhere, "difference": difference}), flush=True)
    dist.destroy_process_group()
