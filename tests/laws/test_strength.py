"""The strength t of an adapter: W + t (phi(W) - W), however it is set, merged or not, alone or with others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError
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


TWO = {"default": 0.5, "other": -2.0}


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(case, kind, id=f"{kind}-{method_id(case)}")
        for case, kind in CASES
        if kind == "linear" or case.name in ("ssb", "lora", "dora", "bitfit")
    ],
)
def test_several_adapters_with_strengths_add_up_merged_or_not(case: Method, kind: str) -> None:
    model, base, x = adapted(case, kind, torch.float64, init_weights=False)
    model.add_adapter(
        "other", config_of(case, kind, model.base_model.model.target.get_base_layer(), init_weights=False)
    )
    model.eval()
    layer, frozen = layer_of(model), base(x)
    full = {}
    for name in TWO:
        model.set_adapter(name)
        full[name] = model(x)
    wanted = frozen + sum(t * (full[name] - frozen) for name, t in TWO.items())
    model.set_adapters(list(TWO), list(TWO.values()))
    torch.testing.assert_close(model(x), wanted)
    dense = case.formula.is_linear and not (case.formula.names_bias and layer.bias is None)
    if dense:
        model.merge_adapter()
        torch.testing.assert_close(model(x), wanted)
        model.unmerge_adapter()
    model.set_adapters(list(TWO), 0.0)
    assert torch.equal(model(x), layer._plain(x))
    if dense:
        before = layer.frozen_weight.clone()
        model.merge_adapter()
        assert torch.equal(layer.get_base_layer().weight, before)
        model.unmerge_adapter()
    model.set_adapters("other")
    assert torch.equal(model(x), full["other"])


def test_what_strengths_refuse() -> None:
    case = next(case for case in METHODS if case.name == "ssb")
    model, _, x = adapted(case, "linear", torch.float64, init_weights=False)
    layer, before = layer_of(model), model(x)
    for call, message in (
        (lambda: model.set_adapters(["default", "default"], [1.0]), "2 adapters and 1 weights"),
        (lambda: model.set_adapters(["defualt"]), "there is no adapter 'defualt'; did you mean default"),
        (lambda: model.set_adapters("default", float("nan")), "a finite number, got nan"),
        (lambda: layer.set_scale("default", {"block": 1.0}), "a finite number, got {'block': 1.0}"),  # type: ignore[arg-type]
        (lambda: layer.scale_layer(float("inf")), "a finite number, got inf"),
        (lambda: layer.unscale_layer(0.0), "cannot be divided by 0; unscale_layer\\(\\) resets it"),
    ):
        with pytest.raises(SubspaceError, match=message):
            call()
    assert torch.equal(model(x), before)


def test_the_adapters_of_diffusers_have_weights() -> None:
    """Its ``set_adapters`` with one number for each adapter, and with numbers by block; its ``scale`` for a call."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers

    class Small(diffusers.ModelMixin, diffusers.ConfigMixin, diffusers.loaders.peft.PeftAdapterMixin):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            return self.first(x), self.second(x)

    model, x = Small(), torch.randn(4, 8)
    plain = model(x)
    for name, method in (("a", "ssb"), ("b", "lora")):
        model.add_adapter(
            SubspaceConfig(method=method, r=2, init_weights=False, target_modules=["first", "second"]), name
        )
    model.eval()
    changes = {}
    for name in "ab":
        model.set_adapters(name)
        changes[name] = [y - frozen for y, frozen in zip(model(x), plain, strict=True)]

    def check(first: dict[str, float], second: dict[str, float]) -> None:
        for place, (y, frozen, weights) in enumerate(zip(model(x), plain, (first, second), strict=True)):
            torch.testing.assert_close(y, frozen + sum(t * changes[name][place] for name, t in weights.items()))

    model.set_adapters(["a", "b"], [0.5, 1.5])
    check({"a": 0.5, "b": 1.5}, {"a": 0.5, "b": 1.5})
    scale_lora_layers(model, 2.0)
    check({"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 3.0})
    unscale_lora_layers(model, 2.0)
    check({"a": 0.5, "b": 1.5}, {"a": 0.5, "b": 1.5})
    model.set_adapters(["a", "b"], [{"first": 0.25, "second": 2.0}, None])
    check({"a": 0.25, "b": 1.0}, {"a": 2.0, "b": 1.0})
