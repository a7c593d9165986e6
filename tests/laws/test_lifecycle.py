"""Adding, switching, merging and deleting adapters in any order leaves what is there as it would be alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from subspace_tuning.methods import Method

from .modules import KINDS, Net, fits
from .registry import LINEAR, METHODS, method_id
from .test_layer_laws import adapted, config_of, layer_of

every_method = pytest.mark.parametrize("case", [case for case in METHODS if fits(case, "linear")], ids=method_id)
every_linear = pytest.mark.parametrize("case", [case for case in LINEAR if fits(case, "linear")], ids=method_id)


def three(case: Method, kind: str = "linear") -> tuple[Any, nn.Module, Tensor, dict[str, Tensor]]:
    """Return a model with three adapters, its base, an input, and what each adapter alone changes in the output."""
    model, base, x = adapted(case, kind, torch.float64, init_weights=False)
    for name in ("second", "third"):
        model.add_adapter(name, config_of(case, kind, init_weights=False))
    changes = {}
    for name in ("default", "second", "third"):
        model.set_adapter(name)
        changes[name] = model(x) - base(x)
    return model, base, x, changes


def trained(model: nn.Module) -> set[str]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name.split("subspace_params.")[1].split(".")[0] for name in names}


@every_method
def test_deleting_one_of_several_active_ones(case: Method) -> None:
    model, base, x, changes = three(case)
    model.base_model.set_adapter(["default", "third"])
    model.delete_adapter("default")
    assert model.active_adapters == ["third"]
    assert trained(model) == {"third"}
    torch.testing.assert_close(model(x) - base(x), changes["third"])
    model.delete_adapter("second")  # which is not active
    assert model.active_adapters == ["third"]
    assert layer_of(model).subspace_params.keys() == {"third"}


@every_method
def test_deleting_to_the_last_and_beginning_anew(case: Method) -> None:
    model, base, x, changes = three(case)
    model.base_model.set_adapter("second")
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("second")
    assert model.active_adapters == ["default"]
    assert trained(model) == {"default"}
    torch.testing.assert_close(model(x) - base(x), changes["default"])
    with pytest.warns(UserWarning, match="Setting active adapter to third"):
        model.delete_adapter("default")
    model.delete_adapter("third")
    layer = layer_of(model)
    assert model.active_adapters == [] and not model.peft_config
    for name in (*layer.adapter_layer_names, *layer.other_param_names):
        assert not len(getattr(layer, name)), name
    assert torch.equal(model.base_model(x), base(x))
    model.add_adapter("default", config_of(case, "linear", init_weights=False))
    model.set_adapter("default")
    assert trained(model) == {"default"}
    assert not torch.equal(model(x), base(x))
    with pytest.raises(ValueError, match=r"^Adapter second does not exist"):
        model.delete_adapter("second")


@every_linear
def test_what_is_merged_is_not_deleted(case: Method) -> None:
    model, _, x, _ = three(case)
    model.set_adapter("default")
    y = model(x)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"^Cannot delete adapter\(s\) \['default'\] while they are merged"):
        model.delete_adapter("default")
    model.delete_adapter("second")  # another one can go
    torch.testing.assert_close(model(x), y)
    model.unmerge_adapter()
    assert torch.equal(model(x), y)
    assert model.peft_config.keys() == {"default", "third"}


@every_method
def test_switching_while_training(case: Method) -> None:
    model, _, x, _ = three(case)
    model.set_adapter("second")
    parameters = dict(layer_of(model).subspace_params.named_parameters())
    frozen = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for active in ("second", "third", "second"):
        model.set_adapter(active)
        assert trained(model) == {active}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model.train()(x).square().mean().backward()
        optimizer.step()
        model.zero_grad()
    moved = {name.split(".")[0] for name, parameter in parameters.items() if not torch.equal(parameter, frozen[name])}
    assert moved == {"second", "third"}
    with model.disable_adapter():
        assert trained(model) == set()
    assert trained(model) == {"second"}
    model.base_model.set_adapter("third", inference_mode=True)
    assert trained(model) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_methods_of_different_kinds_in_one_model(kind: str) -> None:
    cases = [case for case in METHODS if fits(case, kind)][:3]
    base, x = Net(kind).double(), KINDS[kind][1]()
    x = x.double() if x.is_floating_point() else x
    model: PeftModel | None = None
    changes: dict[str, Tensor] = {}
    for number, case in enumerate(cases):
        config = config_of(case, kind, init_weights=False)
        if model is None:
            model = get_peft_model(copy.deepcopy(base), config, "one0").eval()
        else:
            model.add_adapter(f"one{number}", config)
        model.set_adapter(f"one{number}")
        changes[f"one{number}"] = model(x) - base(x)
    assert model is not None
    model.base_model.set_adapter(list(changes))
    torch.testing.assert_close(model(x) - base(x), sum(changes.values()))
    if len(changes) > 1:
        model.delete_adapter("one0")
        rest = sum(change for name, change in changes.items() if name != "one0")
        torch.testing.assert_close(model(x) - base(x), rest)
