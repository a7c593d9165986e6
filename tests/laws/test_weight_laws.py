"""What a method computes from W belongs to the frozen W: every method, every kind, every way to another weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from subspace_tuning import SubspaceConfig
from subspace_tuning.methods import Method, computed_constants
from subspace_tuning.tuner import following, watch

from .modules import KINDS, Net, fits
from .registry import METHODS, method_id
from .test_layer_laws import adapted, config_of, layer_of


def follows(case: Method, kind: str) -> bool:
    """Whether the method computes anything from W on this kind."""
    return fits(case, kind) and bool(computed_constants(case, torch.randn(6, 9), 3, one_hot=kind == "embedding"))


SOME = ("linear", "conv1d_of_transformers", "embedding", "conv2d_in_groups")
CASES = [(case, kind) for case in METHODS for kind in SOME if follows(case, kind)]
every_case = pytest.mark.parametrize(
    ("case", "kind"), [pytest.param(case, kind, id=f"{kind}-{method_id(case)}") for case, kind in CASES]
)


def base_state(base: nn.Module, model: Any) -> dict[str, Tensor]:
    """Return the tensors of a base model under the names that they have in an adapted one."""
    return {
        key: base.state_dict()[key.removeprefix("base_model.model.").replace("base_layer.", "")]
        for key in model.state_dict()
        if "subspace_" not in key
    }


def whole_state_dict(model: Any, base: nn.Module) -> None:
    model.load_state_dict(model.state_dict() | base_state(base, model))


def loose_state_dict(model: Any, base: nn.Module) -> None:
    model.load_state_dict(base_state(base, model), strict=False)


def assigned_state_dict(model: Any, base: nn.Module) -> None:
    model.load_state_dict(copy.deepcopy(base_state(base, model)), strict=False, assign=True)


def distributed_state_dict(model: Any, base: nn.Module) -> None:
    set_model_state_dict(model, base_state(base, model), options=StateDictOptions(strict=False))


def own_state_dict(model: Any, base: nn.Module) -> None:
    layer_of(model).get_base_layer().load_state_dict(base.target.state_dict())  # type: ignore[operator,union-attr]


def state_dict_while_merged(model: Any, base: nn.Module) -> None:
    if not layer_of(model).method["default"].formula.is_linear:
        return loose_state_dict(model, base)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="the layer is unmerged first"):
        loose_state_dict(model, base)


def in_place(model: Any, base: nn.Module) -> None:
    with torch.no_grad():
        for own, other in pairs(model, base):
            own.copy_(other)


def one_entry_in_place(model: Any, base: nn.Module) -> None:
    in_place(model, base)
    model(KINDS[model.kind][1]())
    with torch.no_grad():
        for tensor in pairs(model, base)[0]:
            tensor[1, 1] += 2.0


def new_data(model: Any, base: nn.Module) -> None:
    for own, other in pairs(model, base):
        for _ in range(3):  # an allocator may give the same address again
            own.data = torch.randn_like(own)
        own.data = other.data.clone()


def into_data(model: Any, base: nn.Module) -> None:
    for own, other in pairs(model, base):
        own.data.copy_(other)


def other_parameters(model: Any, base: nn.Module) -> None:
    for name, parameter in base.target.named_parameters():  # type: ignore[union-attr]
        setattr(layer_of(model).get_base_layer(), name, nn.Parameter(parameter.detach().clone(), False))


def lora_of_peft(model: Any, base: nn.Module) -> None:
    """peft writes what it merges into ``weight.data``."""
    for own, other in pairs(model, base)[:1]:
        own.data += other.data - own.data
    into_data(model, base)


def pairs(model: Any, base: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Return the adapted model's frozen parameters, the weight first, with those of the other base model."""
    target = layer_of(model).get_base_layer()
    return [(getattr(target, name), other) for name, other in base.target.named_parameters()]  # type: ignore[union-attr]


WAYS: tuple[Callable[[Any, nn.Module], None], ...] = (
    whole_state_dict,
    loose_state_dict,
    assigned_state_dict,
    distributed_state_dict,
    own_state_dict,
    state_dict_while_merged,
    in_place,
    one_entry_in_place,
    new_data,
    into_data,
    other_parameters,
    lora_of_peft,
)


def on_another(model: Any, base: nn.Module, case: Method, kind: str) -> Any:
    """Return a fresh model of the new base with the factors of the first."""
    fresh = get_peft_model(copy.deepcopy(base), config_of(case, kind)).eval()
    factors = {key: tensor for key, tensor in model.state_dict().items() if "subspace_" in key}
    assert not fresh.load_state_dict(factors, strict=False).unexpected_keys
    return fresh


@every_case
def test_the_output_is_that_of_the_adapter_on_the_new_weight(case: Method, kind: str) -> None:
    torch.manual_seed(0)
    model, _, x = adapted(case, kind, init_weights=False)
    model.kind = kind
    for way in WAYS:
        base = Net(kind)
        base.target.weight.data[0] = 0.3  # type: ignore[union-attr,index,operator]  # not zeros for padding
        before = model(x)
        way(model, base)
        y = model(x)
        assert not torch.allclose(y, before), way.__name__
        wanted = on_another(model, base, case, kind)(x)
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5, msg=lambda text, way=way: f"{way.__name__}: {text}")


@every_case
def test_an_adapter_that_comes_while_another_is_merged_is_that_of_the_frozen_weight(case: Method, kind: str) -> None:
    torch.manual_seed(0)
    base = Net(kind)
    model = get_peft_model(
        copy.deepcopy(base), SubspaceConfig(method="lora", r=2, init_weights=False, target_modules=["target"])
    )
    model.merge_adapter()
    model.add_adapter("second", config_of(case, kind))
    model.unmerge_adapter()
    model.set_adapter("second")
    x = KINDS[kind][1]()
    torch.testing.assert_close(model.eval()(x), base(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["svdiff", "dora"])
def test_saved_constants_are_those_of_the_file(method: str) -> None:
    """A state dict that brings the constants is taken at its word, and a later weight is followed again."""
    build = lambda: get_peft_model(  # noqa: E731
        Net("linear"), SubspaceConfig(method=method, r=2, target_modules=["target"], save_constants=True)
    ).eval()
    model, other = build(), build()
    state = model.state_dict()
    changed = {key: tensor + 0.5 if "subspace_constants" in key else tensor for key, tensor in state.items()}
    other.load_state_dict(changed)
    x = torch.randn(3, 6)
    assert not torch.allclose(other(x), model(x))
    assert all(torch.equal(tensor, changed[key]) for key, tensor in other.state_dict().items())
    with torch.no_grad():
        for own, new in pairs(other, Net("linear")):
            own.copy_(new)
    assert not any(
        torch.equal(tensor, changed[key]) for key, tensor in other.state_dict().items() if "constants" in key
    )


def test_only_another_content_is_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a moved, cast or copied one, nor the same once more; one that moves in every step is soon left alone."""
    counts = {"decompositions": 0, "fingerprints": 0}
    model = get_peft_model(Net("linear"), SubspaceConfig(method="svdiff", target_modules=["target"])).eval()
    x = torch.randn(3, 6)
    counting(monkeypatch, following, "computed_constants", counts, "decompositions")
    counting(monkeypatch, watch, "fingerprint", counts, "fingerprints")
    model(x)
    assert counts == {"decompositions": 0, "fingerprints": 0}
    model.load_state_dict(model.state_dict())
    copy.deepcopy(model)(x)
    model.double()(x.double())
    model.bfloat16()(x.bfloat16())
    model.train().eval()
    assert counts["decompositions"] == 0
    counts["fingerprints"] = 0
    weight = layer_of(model).get_base_layer().weight
    kept = []  # so that no address comes again
    for _ in range(9):
        kept.append(weight.data)
        weight.data = weight.data.clone()  # type: ignore[operator]
        model(x.bfloat16())
    assert counts == {"decompositions": 0, "fingerprints": 2}
    weight.data = weight.data + 1.0  # type: ignore[operator]
    model(x.bfloat16())
    assert counts["decompositions"] == 1


def counting(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, counts: dict[str, int], key: str) -> None:
    original = getattr(module, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        counts[key] += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16], ids=str)
def test_a_fingerprint_sees_every_bit_and_its_place(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 5).to(dtype)
    own = watch.fingerprint(weight)
    assert own == watch.fingerprint(weight.T.contiguous().T)
    seen = {own, watch.fingerprint(-weight), watch.fingerprint(weight.flip(0)), watch.fingerprint(weight.roll(1))}
    for index in range(weight.numel()):
        other = weight.clone()
        other.view(-1)[index] = torch.nextafter(other.view(-1)[index], torch.tensor(9.0, dtype=dtype))
        seen.add(watch.fingerprint(other))
    assert len(seen) == 4 + weight.numel()
