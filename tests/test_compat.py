"""What is used of torch and peft that they keep to themselves: each does what this package relies on."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, compat
from subspace_tuning.bench.device import operations
from subspace_tuning.tuner import compat as of_peft

SOURCE = Path(__file__).parents[1] / "src"  # the package may be installed beside others


@pytest.mark.parametrize(
    "path", [path for path in SOURCE.rglob("*.py") if path.name != "compat.py"], ids=lambda path: path.stem
)
def test_private_names_are_imported_in_one_place(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            private = [part for part in parts if part.startswith("_") and not part.startswith("__")]
            assert parts[0] not in ("peft", "torch", "transformers", "accelerate") or not private, private
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            whole = node.value
            assert not (isinstance(whole.value, ast.Name) and (whole.value.id, whole.attr) == ("torch", "_C"))


def test_operations_are_seen_forward_and_backward() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    names = operations(lambda: (x @ x).sum().backward())
    assert names.count("aten.mm.default") == 3
    assert "aten.sum.default" in names


def test_transforms_are_seen() -> None:
    seen: list[tuple[bool, bool]] = []

    def noted(x: Tensor) -> Tensor:
        seen.append((compat.functorch_is_active(), compat.differentiates_forward()))
        return x.square().sum()

    x = torch.ones(3)
    noted(x)
    torch.func.grad(noted)(x)
    torch.func.vmap(noted)(torch.ones(2, 3))
    with torch.autograd.forward_ad.dual_level():
        noted(x)
    assert seen == [(False, False), (True, False), (True, False), (False, True)]


def test_subclasses_are_tensors_inside() -> None:
    class Own(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError("computed with")

    own = torch.ones(2).as_subclass(Own)
    with compat.plain_tensors():
        assert own.shape == (2,)
    with pytest.raises(AssertionError, match="computed with"):
        _ = own + 1


def test_leaves_of_nested_arguments() -> None:
    assert compat.tree_leaves(((1, [2]), {"a": (3,)})) == [1, 2, 3]


def test_a_module_keeps_its_parts_in_dictionaries() -> None:
    module = nn.Linear(2, 3)
    assert list(module._parameters) == ["weight", "bias"]
    assert module.__dict__.keys() >= {"_buffers", "_modules", "_non_persistent_buffers_set", "training"}
    for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        assert not module.__dict__[kind]
    module.register_forward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda *_: None)
    module.register_full_backward_hook(lambda *_: None)
    module.register_full_backward_pre_hook(lambda *_: None)
    for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        assert module.__dict__[kind]


def test_a_tensor_counts_its_changes() -> None:
    tensor, before = torch.ones(3), []
    for change in (tensor.add_, tensor.detach().mul_, tensor[1:].copy_):
        before.append(tensor._version)
        change(torch.ones(()))
    assert tensor._version > before[-1] > before[-2] > before[-3]
    now = tensor._version
    tensor.data.add_(1)  # what `tuner/seen.py` compares entries for
    assert tensor._version == now


def test_buffers_in_a_dictionary() -> None:
    held = of_peft.BufferDict({"a": torch.ones(2)}, persistent=False)
    held.register_buffer("b", torch.ones(2), persistent=True)
    assert list(held.state_dict()) == ["b"]
    assert held["a"] is held._buffers["a"] and held.double()["a"].dtype == torch.float64


def test_a_layer_is_frozen_and_unfrozen() -> None:
    module = nn.ParameterDict({"A": torch.ones(2)})
    for flag in (False, True):
        of_peft.set_layer_requires_grad(module, flag)
        assert module["A"].requires_grad is flag


def test_all_linear_layers_are_found() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    config = SubspaceConfig(method="lora", target_modules="all-linear")
    of_peft.include_all_linear_layers(config, model)
    assert set(config.target_modules or ()) == {"0", "2"}


def test_a_merged_adapter_is_not_deleted() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(2, 2)), SubspaceConfig(method="lora", r=1, target_modules=["0"]))
    of_peft.check_adapters_not_merged(model, "default")
    model.merge_adapter()
    of_peft.check_adapters_not_merged(model, "other")
    with pytest.raises(ValueError, match="while they are merged"):
        of_peft.check_adapters_not_merged(model, "default")


def test_a_layer_of_peft_names_its_state() -> None:
    class Layer(nn.Module, BaseTunerLayer):
        adapter_layer_names = ("factors",)

        def __init__(self) -> None:
            super().__init__()
            self.factors = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})

    layer = Layer()
    layer.set_adapter(["b"])
    assert layer._active_adapter == layer.active_adapters == ["b"]
    layer.enable_adapters(False)
    assert layer._disable_adapters is layer.disable_adapters is True
