"""The strength t of an adapter: W + t (phi(W) - W), however it is set, merged or not, alone or with others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from subspace_tuning.methods import Method

from .modules import fits
from .registry import METHODS, method_id
from .test_layer_laws import adapted, config_of, layer_of

SOME_KINDS = ("linear", "embedding", "conv2d_in_groups", "layer_norm")
CASES = [
    (case, kind)
    for kind in SOME_KINDS
    for case in METHODS
    if fits(case, kind) and (kind != "conv2d_in_groups" or case.name in ("ssb", "lora", "dora"))
]
every_case = pytest.mark.parametrize(("case", "kind"), CASES, ids=[f"{kind}-{method_id(case)}" for case, kind in CASES])


@every_case
def test_the_output_goes_in_a_line_from_the_frozen_to_the_adapted_one(case: Method, kind: str) -> None:
    model, base, x = adapted(case, kind, torch.float64, init_weights=False)
    layer, frozen, full = layer_of(model), base(x), model(x)
    for strength in (0.0, 0.5, -2.0):
        layer.set_scale("default", strength)
        wanted = frozen + strength * (full - frozen)
        torch.testing.assert_close(model(x), wanted)
        torch.testing.assert_close(model.eval()(x, adapter_names=["default"] * len(x)), wanted)
        if case.formula.is_linear and not (case.formula.names_bias and layer.bias is None):
            model.merge_adapter()
            torch.testing.assert_close(model(x), wanted)
            model.unmerge_adapter()
    layer.set_scale("default", 1.0)
    assert torch.equal(model(x), full)


@pytest.mark.parametrize("name", ["ssb", "lora", "dora", "svdiff"])
def test_scaling_and_unscaling_acts_on_what_is_active(name: str) -> None:
    case = next(case for case in METHODS if case.name == name)
    model, base, x = adapted(case, "linear", torch.float64, init_weights=False)
    model.add_adapter("other", config_of(case, "linear", init_weights=False))
    layer, frozen = layer_of(model), base(x)

    def change(active: list[str]) -> Any:
        model.base_model.set_adapter(active)
        return model(x) - frozen

    one, other = change(["default"]), change(["other"])
    layer.scale_layer(0.5)  # "other" is active
    layer.scale_layer(0.5)
    torch.testing.assert_close(change(["default", "other"]), one + 0.25 * other)
    layer.scale_layer(2.0)
    torch.testing.assert_close(change(["default", "other"]), 2 * one + 0.5 * other)
    layer.unscale_layer(2.0)
    torch.testing.assert_close(model(x) - frozen, one + 0.25 * other)
    layer.unscale_layer()
    torch.testing.assert_close(model(x) - frozen, one + other)
    layer.set_scale("unknown", 3.0)  # as peft: nobody's
    model.delete_adapter("other")
    assert set(layer.adapters) == {"default"}
    torch.testing.assert_close(model(x) - frozen, one)


def test_the_strength_scales_gradients_and_is_not_saved(tmp_path: Any) -> None:
    case = next(case for case in METHODS if case.name == "lora")
    model, base, x = adapted(case, "linear", torch.float64, init_weights=False)
    factor = layer_of(model).subspace_params["default"]["B"]
    (full,) = torch.autograd.grad(model(x).sum(), factor)
    layer_of(model).set_scale("default", 0.25)
    (scaled,) = torch.autograd.grad(model(x).sum(), factor)
    torch.testing.assert_close(scaled, 0.25 * full)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(base, tmp_path)
    assert layer_of(loaded).adapters["default"].strength == 1.0
