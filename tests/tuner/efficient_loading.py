"""Run by torchrun: what the second process holds of each method, having loaded garbage for its base weights."""

from __future__ import annotations

import json
from typing import Any

import torch
from peft import get_peft_model
from torch import distributed as dist
from torch import nn

from subspace_tuning import SubspaceConfig, SubspaceError, calibrate, methods
from subspace_tuning.tuner import weights

OWN = "D1 @ W @ D2 + s * (A @ B - A0 @ B0)"


def base(garbage: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12))
    if dist.get_rank():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(garbage)
    torch.manual_seed(dist.get_rank())
    return model


def differing(target: str, garbage: float, **named: Any) -> list[str]:
    """Return the tensors of the adapted layer that differ between the processes."""
    model = get_peft_model(base(garbage), SubspaceConfig(r=4, target_modules=[target], **named))
    found = []
    for name, own in [*model.named_parameters(), *model.named_buffers()]:
        first = own.detach().clone()
        dist.broadcast(first, 0)
        if f".{target}." in name and not torch.equal(first, own):
            found.append(name)
    return found


if __name__ == "__main__":
    weights._SKIPS_LOADING = True  # as transformers before 5 does
    dist.init_process_group("gloo")
    for garbage in (float("nan"), 1e30, 0.0):
        found = {}
        for method in methods.every():
            if not method.needs_calibration:
                found[method.name] = differing("1" if method.name == "pfeiffer" else "0", garbage, method=method.name)
        found["own"] = differing("0", garbage, formula=OWN)
        if dist.get_rank():
            print(json.dumps(found), flush=True)
    try:
        calibrate(base(0.0), SubspaceConfig(method="fishmask", target_modules="0"), [])
    except SubspaceError as error:
        if dist.get_rank():
            print(json.dumps(str(error)), flush=True)
    dist.destroy_process_group()
