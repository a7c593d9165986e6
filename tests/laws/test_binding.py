"""A layer keeps what its last call looked up and computed: whatever changes between two calls, the next is right."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subspace_tuning import SubspaceLayer
from subspace_tuning.methods import Method
from subspace_tuning.tuner import evaluation

from .modules import KINDS, Net, fits
from .registry import METHODS, method_id
from .test_layer_laws import config_of

CASES = [
    pytest.param(
        case, kind, id=f"{method_id(case)}-{kind}", marks=[pytest.mark.slow] * (kind in ("embedding", "conv2d"))
    )
    for kind in ("linear", "embedding", "conv2d", "layer_norm")
    for case in METHODS
    if fits(case, kind)
]
Change = Callable[[Any, SubspaceLayer], Any]


def layer_of(model: Any) -> SubspaceLayer:
    return model.base_model.model.target  # type: ignore[no-any-return]


def factor(layer: SubspaceLayer) -> tuple[nn.Module, str, nn.Parameter]:
    """Return a factor that has entries, and where it is held."""
    held: Any = layer.subspace_params["default"]
    name = max(held.keys(), key=lambda name: held[name].numel())
    return held, name, held[name]


def moved(tensor: Tensor) -> Tensor:
    return tensor.detach() + 0.25 * torch.randn_like(tensor)


def assigned(model: Any, layer: SubspaceLayer) -> None:
    held, name, parameter = factor(layer)
    held[name] = nn.Parameter(moved(parameter))  # type: ignore[index]


def set_data(model: Any, layer: SubspaceLayer) -> None:
    parameter = factor(layer)[2]
    parameter.data = moved(parameter)


def written(model: Any, layer: SubspaceLayer) -> None:
    parameter = factor(layer)[2]
    with torch.no_grad():
        parameter.copy_(moved(parameter))


def written_past_the_version(model: Any, layer: SubspaceLayer) -> None:
    parameter = factor(layer)[2]
    parameter.data.copy_(moved(parameter))


def loaded(model: Any, layer: SubspaceLayer) -> None:
    state = {key: moved(value) for key, value in model.state_dict().items() if "subspace_params" in key}
    model.load_state_dict(state, strict=False)


def weight_assigned(model: Any, layer: SubspaceLayer) -> None:
    base: Any = layer.get_base_layer()
    base.weight = nn.Parameter(moved(base.weight), requires_grad=False)


def weight_written(model: Any, layer: SubspaceLayer) -> None:
    base: Any = layer.get_base_layer()
    base.weight.data.copy_(moved(base.weight))


def weight_set(model: Any, layer: SubspaceLayer) -> None:
    base: Any = layer.get_base_layer()
    base.weight.data = moved(base.weight)


def bias_written(model: Any, layer: SubspaceLayer) -> None:
    if isinstance(bias := getattr(layer.get_base_layer(), "bias", None), Tensor):
        bias.data.copy_(moved(bias))


def constant_written(model: Any, layer: SubspaceLayer) -> None:
    for constant in layer.subspace_constants["default"].buffers():
        if constant.is_floating_point():
            constant.mul_(1.25)


def strength(model: Any, layer: SubspaceLayer) -> None:
    layer.set_scale("default", 0.5)


def scaling(model: Any, layer: SubspaceLayer) -> None:
    layer.scaling["default"] *= 2


def disabled(model: Any, layer: SubspaceLayer) -> None:
    layer.enable_adapters(False)


def frozen(model: Any, layer: SubspaceLayer) -> None:
    model.requires_grad_(False)


def added(model: Any, layer: SubspaceLayer) -> None:
    config = copy.deepcopy(model.peft_config["default"])
    model.add_adapter("other", config)
    model.set_adapter("other")


def both(model: Any, layer: SubspaceLayer) -> None:
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    model.base_model.set_adapter(["default", "other"])


def deleted(model: Any, layer: SubspaceLayer) -> None:
    added(model, layer)
    model.delete_adapter("default")


def double(model: Any, layer: SubspaceLayer) -> None:
    model.double()


def bfloat16(model: Any, layer: SubspaceLayer) -> None:
    model.bfloat16()


def mode(model: Any, layer: SubspaceLayer) -> None:
    model.train(not model.training)


def mode_of_the_layer(model: Any, layer: SubspaceLayer) -> None:
    layer.training = not layer.training


def hooked(model: Any, layer: SubspaceLayer) -> None:
    layer.get_base_layer().register_forward_hook(lambda module, args, output: 2 * output)


def patched(model: Any, layer: SubspaceLayer) -> None:
    base: Any = layer.get_base_layer()
    forward = base.forward
    base.forward = lambda x: 3 * forward(x)


def parametrised(model: Any, layer: SubspaceLayer) -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(layer.get_base_layer(), "weight", Twice())


def copied(model: Any, layer: SubspaceLayer) -> Any:
    own = copy.deepcopy(model)
    written(own, layer_of(own))
    return own


def pickled(model: Any, layer: SubspaceLayer) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    own = torch.load(file, weights_only=False)
    written(own, layer_of(own))
    return own


CHANGES: tuple[Change, ...] = (
    assigned,
    set_data,
    written,
    written_past_the_version,
    loaded,
    weight_assigned,
    weight_written,
    weight_set,
    bias_written,
    constant_written,
    strength,
    scaling,
    disabled,
    frozen,
    added,
    both,
    deleted,
    double,
    bfloat16,
    mode,
    mode_of_the_layer,
    hooked,
    patched,
    parametrised,
    copied,
    pickled,
)


def output(model: Any, x: Tensor) -> Tensor:
    torch.manual_seed(1)  # gates are drawn in training
    weight = layer_of(model).frozen_weight
    y: Tensor = model(x.to(weight.dtype) if x.is_floating_point() else x)
    return y.detach()


def forget(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, SubspaceLayer):
            module._evaluation = None


@pytest.mark.parametrize(("case", "kind"), CASES)
@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("gradients", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_after_every_change_a_call_is_as_if_it_were_the_first(
    case: Method, kind: str, gradients: bool, training: bool
) -> None:
    torch.manual_seed(0)
    x, begun = KINDS[kind][1](), Net(kind)
    config = config_of(case, kind, init_weights=False)
    start: Any = get_peft_model(begun, config)
    with torch.set_grad_enabled(gradients):
        for change in CHANGES:
            model = copy.deepcopy(start).train(training)
            known = [output(model, x) for _ in range(3)]  # looked up, computed, kept
            assert torch.equal(known[0], known[1]) and torch.equal(known[0], known[2])
            other = change(model, layer_of(model))
            changed = model if other is None else other
            try:
                found = [output(changed, x) for _ in range(3)]
            except Exception as error:
                forget(changed)
                with pytest.raises(type(error)):  # and so it would have been without a call before
                    output(changed, x)
                continue
            forget(changed)
            wanted = output(changed, x)
            for one in found:
                torch.testing.assert_close(one, wanted, rtol=0, atol=0, equal_nan=True, msg=change.__name__)
            if other is not None:
                assert torch.equal(output(model, x), known[0]), change.__name__


@pytest.mark.parametrize("method", ["dora", "ssb", "spectral", "pissa"])
def test_what_is_kept_follows_its_factors(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above fails where a change is not seen."""
    case = next(case for case in METHODS if case.name == method)

    def check() -> None:
        torch.manual_seed(0)
        model: Any = get_peft_model(Net("linear"), config_of(case, "linear", init_weights=False)).eval()
        x = KINDS["linear"][1]()
        with torch.no_grad():
            for _ in range(3):
                output(model, x)
            written_past_the_version(model, layer_of(model))
            found = output(model, x)
            forget(model)
            assert torch.equal(output(model, x), found)

    check()
    seen = evaluation.unchanged
    monkeypatch.setattr(evaluation, "unchanged", lambda tensors, known: bool(known) or seen(tensors, known))
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize(("case", "kind"), CASES)
def test_what_is_kept_serves_every_mode_of_inference(case: Method, kind: str) -> None:
    """Kept in inference mode and used outside, kept in one precision and asked for in another."""
    torch.manual_seed(0)
    model: Any = get_peft_model(Net(kind), config_of(case, kind, init_weights=False)).eval()
    x, found = KINDS[kind][1](), []
    for _ in range(3):
        with torch.inference_mode():
            found.append(output(model, x).clone())
        with torch.no_grad():
            found.append(output(model, x))
            with torch.autocast("cpu", torch.bfloat16):
                near = output(model, x)
        found.append(output(model, x))
        torch.testing.assert_close(near.float(), found[0], rtol=0.05, atol=0.05 * float(found[0].abs().max()))
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize(("case", "kind"), CASES)
def test_nothing_is_kept_in_training_or_saved(case: Method, kind: str) -> None:
    torch.manual_seed(0)
    model: Any = get_peft_model(Net(kind), config_of(case, kind, init_weights=False)).train()
    x, layer = KINDS[kind][1](), layer_of(model)
    keys = set(model.state_dict())
    for training in (True, False, True):
        model.train(training)
        with torch.no_grad():
            for _ in range(3):
                output(model, x)
        kept = layer._evaluation._kept if layer._evaluation is not None else {}
        assert not (training and kept)
        assert set(model.state_dict()) == keys
