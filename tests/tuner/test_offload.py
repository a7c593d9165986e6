"""Bases that accelerate keeps in memory or on disk until a layer runs: the output is that of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from subspace_tuning import SubspaceError

from .conftest import EVERY, Variant

KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(12, 9), lambda: torch.randn(5, 12)),
    "conv1d of transformers": (lambda: Conv1D(9, 12), lambda: torch.randn(5, 12)),
    "embedding": (lambda: nn.Embedding(12, 9), lambda: torch.randint(0, 12, (2, 5))),
    "conv2d": (lambda: nn.Conv2d(3, 9, 2), lambda: torch.randn(2, 3, 4, 4)),
}


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.target = KINDS[kind][0]()
        self.other = nn.LayerNorm(9)

    def forward(self, x: Tensor) -> Tensor:
        y = self.target(x)
        return self.other(y if y.shape[-1] == 9 else y.movedim(1, -1))  # type: ignore[no-any-return]


def offloaded(model: Any, how: str, folder: Path) -> Any:
    if how == "memory":
        return cpu_offload(model, execution_device="cpu")
    if how == "disk":
        return disk_offload(model, str(folder), execution_device="cpu")
    inner = "" if isinstance(model, Net) else "base_model.model."
    device_map = {f"{inner}target": "disk", f"{inner}other": "cpu"}
    return dispatch_model(model, device_map, main_device="cpu", offload_dir=str(folder))


FEW = [Variant(name) for name in ("lora", "ssb", "svdiff", "formula")]
CASES = [
    pytest.param(variant, kind, how, id=f"{kind}-{how}-{variant}")
    for kind in KINDS
    for how in ("memory", "disk", "map")
    for variant in (EVERY if (kind, how) == ("linear", "map") else FEW)
]


@pytest.mark.parametrize("first", ["adapter", "offloading"])
@pytest.mark.parametrize(("variant", "kind", "how"), CASES)
def test_outputs_gradients_and_files_are_those_of_the_whole_model(
    variant: Variant, kind: str, how: str, first: str, tmp_path: Path
) -> None:
    x = KINDS[kind][1]()
    torch.manual_seed(1)
    whole = get_peft_model(Net(kind), config(variant)).eval()
    torch.manual_seed(1)
    model: Any = Net(kind)
    if first == "offloading":
        model = offloaded(model, how, tmp_path / "weights")
    model = get_peft_model(model, config(variant)).eval()
    if first == "adapter":
        model = offloaded(model, how, tmp_path / "weights")
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(x), whole(x), atol=1e-4, rtol=1e-4)
    for run in (model, whole):
        run.train()
        torch.manual_seed(2)
        run(x).square().sum().backward()
    own = {name: parameter.grad for name, parameter in whole.named_parameters() if parameter.requires_grad}
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    torch.testing.assert_close(found, own, atol=1e-3, rtol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(Net(kind), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(x), whole.eval()(x), atol=1e-4, rtol=1e-4)


def config(variant: Variant) -> Any:
    return variant.config(target_modules=["target"], init_weights=False)


def test_it_cannot_be_merged(variant: Variant, tmp_path: Path) -> None:
    model = get_peft_model(offloaded(Net("linear"), "disk", tmp_path), config(variant))
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(SubspaceError, match=r"^the weight is offloaded, so it cannot be merged"):
            merge()


def test_factors_that_were_offloaded_cannot_train(variant: Variant, tmp_path: Path) -> None:
    model = offloaded(get_peft_model(Net("linear"), config(variant)), "memory", tmp_path).train()
    with pytest.raises(SubspaceError, match="offload the base model before the adapter is added"):
        model(torch.randn(5, 12))


def test_several_adapters_and_a_disabled_one(tmp_path: Path) -> None:
    x = torch.randn(5, 12)
    outputs = []
    for how in (None, "memory", "disk"):
        torch.manual_seed(1)
        net: Any = Net("linear")
        model = get_peft_model(net if how is None else offloaded(net, how, tmp_path), config(Variant("ssb"))).eval()
        model.add_adapter("second", config(Variant("dora")))
        model.base_model.set_adapter(["default", "second"])
        with torch.no_grad(), model.disable_adapter():
            disabled = model(x)
        with torch.no_grad():
            outputs.append(torch.stack([model(x), disabled]))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])
