"""Whoever walks over a model meets every tensor of every adapter, whenever and whatever the adapters are doing."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.module import register_module_forward_hook

from subspace_tuning import SubspaceLayer, SubspaceModel
from subspace_tuning.methods import Method

from .registry import METHODS, method_id
from .test_layer_laws import adapted, config_of, layer_of

every_method = pytest.mark.parametrize("case", METHODS, ids=method_id)
some_methods = pytest.mark.parametrize(
    "case", [case for case in METHODS if case.name in ("lora", "svdiff", "dora", "fish_mask")], ids=method_id
)
WALKS = (
    "modules named_modules children named_children parameters named_parameters buffers named_buffers apply state_dict "
    "_named_members"
).split()


def pair(case: Method, **options: Any) -> tuple[Any, Tensor]:
    """Return a network with two adapters, and an input for it."""
    kind = "layer_norm" if case.formula.wraps_norm else "linear"
    model, _, x = adapted(case, kind, **options)
    model.add_adapter("second", config_of(case, kind, **options))
    return model, x


def told(model: nn.Module) -> dict[str, dict[str, int]]:
    """Return what the walks of torch tell of a model: by walk the names, with the identity of what they stand for."""
    walks: dict[str, Any] = {
        "modules": model.named_modules(),
        "modules, also those met before": model.named_modules(remove_duplicate=False),
        "parameters": model.named_parameters(),
        "buffers": model.named_buffers(),
        "state": model.state_dict(keep_vars=True).items(),
    }
    return {walk: {name: id(found) for name, found in walked} for walk, walked in walks.items()}


def of_adapters(seen: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return the part of it that is not of the base layer, whose weight is another one while it is merged."""
    return {
        walk: {name: found for name, found in names.items() if ".base_layer." not in name}
        for walk, names in seen.items()
    }


def owned(model: Any) -> set[int]:
    """Return the identities of all tensors that the layer has of its adapters, without any walk."""
    layer = layer_of(model)
    return {
        id(tensor)
        for name in ("default", "second")
        for held in (layer.subspace_params[name]._parameters, layer.subspace_constants[name]._buffers)
        for tensor in held.values()
    }


@contextmanager
def process_group(folder: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@every_method
def test_what_an_adapter_does_changes_nothing_of_what_is_told(case: Method) -> None:
    model, x = pair(case)
    model(x)
    expected = told(model)
    assert owned(model) <= {*expected["parameters"].values(), *expected["buffers"].values()}
    assert {name.split(".")[-2] for name in expected["parameters"] if ".subspace_params." in name} == {
        "default",
        "second",
    }

    def switched(names: list[str], **options: bool) -> None:
        model.base_model.set_adapter(names, **options)

    acts: list[Callable[[], object]] = [
        lambda: switched(["second"]),
        lambda: switched(["default", "second"]),
        lambda: switched(["default"], inference_mode=True),
        lambda: model.set_requires_grad(["second"]),
        lambda: model.train(),
        lambda: model(x),
        lambda: model.eval(),
        lambda: model(x, adapter_names=[*(len(x) - 1) * ["second"], "default"]),
        lambda: model.base_model.disable_adapter_layers(),
        lambda: model(x),
        lambda: model.base_model.enable_adapter_layers(),
    ]
    for act in acts:
        act()
        assert told(model) == expected
    if case.formula.is_linear:
        model.merge_adapter()
        assert {walk: set(names) for walk, names in told(model).items()} == {
            walk: set(names) for walk, names in expected.items()
        }
        assert of_adapters(told(model)) == of_adapters(expected)
        model.unmerge_adapter()
        assert told(model) == expected


@some_methods
def test_what_is_told_in_the_midst_of_it(case: Method, tmp_path: Path) -> None:
    """No switch, global or of a thread or a context, is set while something is done with a model."""
    model, x = pair(case)
    expected, walks = owned(model), 0

    def walk(frame: object, event: str, argument: object) -> None:
        nonlocal walks
        if event == "call":
            walks += 1
            met = {id(parameter) for parameter in model.parameters()} | {id(buffer) for buffer in model.buffers()}
            if not expected <= met:
                unmet.append(frame)

    unmet: list[object] = []
    acts: list[Callable[[], object]] = [
        lambda: model.set_adapter("second"),
        lambda: model.train()(x),
        lambda: model.eval()(x, adapter_names=len(x) * ["second"]),
        lambda: model.add_adapter("third", model.peft_config["second"]),
        lambda: model.delete_adapter("third"),
        lambda: get_peft_model_state_dict(model, adapter_name="second"),
        lambda: model.base_model.disable_adapter_layers(),
        lambda: model.base_model.enable_adapter_layers(),
        lambda: model.merge_adapter(),
        lambda: model.unmerge_adapter(),
    ]
    for act in acts:
        sys.setprofile(walk)
        try:
            act()
        finally:
            sys.setprofile(None)
    assert walks > 1000
    assert not unmet


def test_the_walks_are_those_of_torch() -> None:
    for cls in (SubspaceModel, SubspaceLayer, *SubspaceLayer.__subclasses__()):
        assert {walk for walk in WALKS if getattr(cls, walk) is not getattr(nn.Module, walk)} == set()


@every_method
def test_an_applied_function_and_a_global_hook_meet_both(case: Method) -> None:
    model, x = pair(case)
    visited: list[nn.Module] = []
    model.apply(visited.append)
    assert {id(module) for module in visited} == set(told(model)["modules"].values())
    layer = layer_of(model)
    for name in ("default", "second"):
        assert any(module is layer.subspace_params[name] for module in visited)
    met: list[set[int]] = []

    def hook(module: nn.Module, args: object, output: object) -> None:
        if module is layer:
            met.append({id(found) for walk in (module.parameters(), module.buffers()) for found in walk})  # type: ignore[attr-defined]

    for name in ("default", "second"):
        model.set_adapter(name)
        handle = register_module_forward_hook(hook)
        try:
            model(x)
        finally:
            handle.remove()
    assert len(met) == 2
    assert all(owned(model) <= found for found in met)


@every_method
def test_a_functional_call_takes_the_tensors_of_both(case: Method) -> None:
    model, x = pair(case, init_weights=False)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    changed = {name: tensor.detach() * 1.25 if ".subspace_params." in name else tensor for name, tensor in own.items()}
    before = {name: tensor.detach().clone() for name, tensor in own.items()}
    other = copy.deepcopy(model)
    other.load_state_dict({name: changed[name] for name in other.state_dict()})
    for name in ("default", "second"):
        model.set_adapter(name)
        other.set_adapter(name)
        torch.testing.assert_close(torch.func.functional_call(model, changed, (x,), strict=True), other(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.items())


@every_method
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_has_both(case: Method, copied: Callable[[Any], Any]) -> None:
    model, x = pair(case, init_weights=False)
    model.set_adapter("second")
    other = copied(model)
    assert {walk: set(names) for walk, names in told(other).items()} == {
        walk: set(names) for walk, names in told(model).items()
    }
    for walk in ("parameters", "buffers"):
        assert not set(told(other)[walk].values()) & set(told(model)[walk].values())
    for name in ("second", "default"):
        model.set_adapter(name)
        other.set_adapter(name)
        assert torch.equal(other(x), model(x))


@every_method
def test_both_are_sharded(case: Method, tmp_path: Path) -> None:
    model, x = pair(case, init_weights=False)
    names, expected = list(told(model)["parameters"]), model(x)
    scalar = any(parameter.dim() == 0 for parameter in model.parameters())
    with process_group(tmp_path):
        mesh = init_device_mesh("cpu", (1,))
        if scalar:  # which torch cannot shard, of an adapter in use or not
            with pytest.raises(ValueError, match="scalar parameters"):
                fully_shard(model, mesh=mesh)
            return
        fully_shard(model, mesh=mesh)
        sharded = dict(model.named_parameters())
        assert list(sharded) == names
        assert all(hasattr(parameter, "full_tensor") for parameter in sharded.values())
        torch.testing.assert_close(model(x), expected)


@every_method
def test_both_are_there_in_data_parallel_training(case: Method, tmp_path: Path) -> None:
    model, x = pair(case, init_weights=False)
    expected = told(model)
    with process_group(tmp_path):
        parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        assert {walk: set(names.values()) for walk, names in told(parallel.module).items()} == {
            walk: set(names.values()) for walk, names in expected.items()
        }
        parallel.train()(x).sum().backward()
        del parallel  # before its process group: outliving it, its destructor can wait for ever
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[-2] for name in trained} == {"default"}
