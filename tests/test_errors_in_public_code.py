"""Errors that public code for these methods makes: each check passes here, and fails on a copy broken in that way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from subspace_tuning import SubspaceConfig, SubspaceLayer, methods
from subspace_tuning.linalg import svd
from subspace_tuning.methods import factors, starts
from subspace_tuning.methods.schedules import AdaLoRA
from subspace_tuning.methods.schedules.lora_dash import LoRADash
from subspace_tuning.tuner import layer as layers
from subspace_tuning.tuner.evaluation import Evaluation
from subspace_tuning.tuner.kinds import Conv1DKind
from subspace_tuning.tuner.scheduling import schedule

Patch = pytest.MonkeyPatch


class Net(nn.Module):
    def __init__(self, target: nn.Module | None = None) -> None:
        super().__init__()
        self.target = nn.Linear(12, 9) if target is None else target

    def forward(self, x: Tensor) -> Tensor:
        return self.target(x)  # type: ignore[no-any-return]


def adapted(method: str, target: nn.Module | None = None, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = SubspaceConfig(method=method, target_modules=["target"], **{"r": 3} | fields)
    return get_peft_model(Net(target), config)


def layer_of(model: Any) -> SubspaceLayer:
    found: SubspaceLayer = model.base_model.model.target
    return found


def train(model: Any, steps: int = 3, after: Callable[[int], None] = lambda step: None, **options: Any) -> Any:
    """Train on a fixed batch and return the optimiser, which is made before the first forward pass."""
    x, y = torch.randn(8, 12), torch.randn(8, 9)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, **options)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        after(step)
    return optimizer


def passes_and_fails(check: Callable[[], None], patch: Patch, break_it: Callable[[Patch], None]) -> None:
    """Run a check on the code as it is, then on the broken copy, which must not get through."""
    check()
    with patch.context() as inner:
        break_it(inner)
        with pytest.raises((AssertionError, KeyError)):
            check()
    check()


def test_parameters_made_in_the_first_forward_are_not_in_the_optimiser(monkeypatch: Patch) -> None:
    def check() -> None:
        model = adapted("lora")
        optimizer = train(model) if any(p.requires_grad for p in model.parameters()) else None
        assert optimizer is not None, "nothing to optimise before the first forward pass"
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in layer_of(model).subspace_params.parameters()} == held

    def break_it(patch: Patch) -> None:
        made = SubspaceLayer.update_layer

        def later(self: SubspaceLayer, *args: Any, **kwargs: Any) -> None:
            made(self, *args, **kwargs)
            late = self.subspace_params["default"]
            self.subspace_params["default"] = nn.ParameterDict()
            self.register_forward_pre_hook(lambda *_: self.subspace_params.__setitem__("default", late))

        patch.setattr(SubspaceLayer, "update_layer", later)

    passes_and_fails(check, monkeypatch, break_it)


@pytest.mark.parametrize("method", ["sam_parser", "svdiff"])
def test_a_decomposition_of_weights_that_are_not_loaded_yet(method: str, monkeypatch: Patch) -> None:
    def check() -> None:
        model, x = adapted(method).eval(), torch.randn(4, 12)
        torch.testing.assert_close(model(x), layer_of(model).base_layer(x), rtol=1e-4, atol=1e-5)

    def break_it(patch: Patch) -> None:
        patch.setattr(factors, "svd", lambda weight, *args, **kwargs: svd(torch.randn_like(weight), *args, **kwargs))

    passes_and_fails(check, monkeypatch, break_it)


@pytest.mark.parametrize("method", ["lora_dash", "pafi"])
def test_buffers_that_are_not_saved(method: str, monkeypatch: Patch, tmp_path: Path) -> None:
    def check() -> None:
        options: dict[str, Any] = {"schedule": {"directions": 2}} if method == "lora_dash" else {"budget": 9}
        model, x = adapted(method, init_weights=False, **options).eval(), torch.randn(4, 12)
        if method == "pafi":  # chosen otherwise than it would be anew
            layer_of(model).subspace_constants["default"].M.add_(1)  # type: ignore[operator,union-attr]
        model.save_pretrained(tmp_path)
        base = Net(copy.deepcopy(layer_of(model).get_base_layer()))
        loaded: Any = PeftModel.from_pretrained(base, tmp_path).eval()
        assert torch.equal(loaded(x), model(x))

    def break_it(patch: Patch) -> None:
        held = layers.BufferDict.register_buffer

        def forgotten(self: Any, name: str, tensor: Tensor, persistent: bool = True) -> None:
            held(self, name, tensor, persistent=False)

        patch.setattr(layers.BufferDict, "register_buffer", forgotten)

    passes_and_fails(check, monkeypatch, break_it)


def test_buffers_that_are_not_moved(monkeypatch: Patch) -> None:
    def check() -> None:
        model = adapted("spectral").double()
        env = layer_of(model)._environment("default")
        assert {env[name].dtype for name in ("U_r", "S_r", "V_r")} == {torch.float64}

    def break_it(patch: Patch) -> None:
        patch.setattr(layers.BufferDict, "_apply", lambda self, function, recurse=True: self)

    passes_and_fails(check, monkeypatch, break_it)


def test_a_magnitude_that_never_trains(monkeypatch: Patch) -> None:
    def check() -> None:
        model = adapted("dora")
        before = {name: p.clone() for name, p in layer_of(model).subspace_params["default"].items()}
        train(model)
        for name, parameter in layer_of(model).subspace_params["default"].items():
            assert not torch.equal(parameter, before[name]), name

    def break_it(patch: Patch) -> None:
        environment = Evaluation.environment

        def detached(self: Evaluation) -> Any:
            env, bias = environment(self)
            return env | {"D": env["D"].detach()}, bias

        patch.setattr(Evaluation, "environment", detached)

    passes_and_fails(check, monkeypatch, break_it)


@pytest.mark.parametrize(
    "method", [known.name for known in methods.every() if "s" in known.formula.shapes and not known.needs_calibration]
)
def test_alpha_is_not_ignored(method: str, monkeypatch: Patch) -> None:
    def check() -> None:
        # pissa's start depends on s, and the random offsets do not, so phi differs there as well.
        options: dict[str, Any] = {"schedule": {"directions": 2}} if method == "lora_dash" else {}
        outputs = []
        for alpha in (3.0, 6.0):
            model = adapted(method, alpha=alpha, init_weights=False, **options).eval()
            outputs.append(layer_of(model).get_delta_weight("default"))
        assert not torch.allclose(outputs[0], outputs[1])
        if method == "lora":
            torch.testing.assert_close(2.0 * outputs[0], outputs[1], rtol=1e-4, atol=1e-5)

    def break_it(patch: Patch) -> None:
        patch.setattr(SubspaceConfig, "scale", lambda self, alpha, r: 1.0)

    passes_and_fails(check, monkeypatch, break_it)


@pytest.mark.parametrize("method", ["ssb", "ssl", "ia3", "sam_parser", "dora"])
def test_weight_decay_does_not_pull_scales_to_zero(method: str, monkeypatch: Patch) -> None:
    scales = {"ssb": "D1", "ssl": "D1", "ia3": "D2", "sam_parser": "sigma", "dora": "D"}

    def check() -> None:
        model = adapted(method)
        before = layer_of(model).factor(scales[method]).detach().clone()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=1.0)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(20):
            optimizer.step()
        torch.testing.assert_close(layer_of(model).factor(scales[method]), before)

    def break_it(patch: Patch) -> None:
        anchored = dict(starts.ANCHORS)
        for name in ("ones", "singular_values", "column_norms"):

            def whole(place: starts.Place, name: str = name) -> Tensor:
                return torch.as_tensor(anchored[name](place)).expand(place.shape).clone()

            patch.delitem(starts.ANCHORS, name)
            patch.setitem(starts.DRAWN, name, whole)
        for known in methods.every():
            for attribute in ("_anchors", "_fixed_anchors"):
                known.__dict__.pop(attribute, None)

    passes_and_fails(check, monkeypatch, break_it)
    for known in methods.every():  # what was cached while it was broken
        for attribute in ("_anchors", "_fixed_anchors"):
            known.__dict__.pop(attribute, None)


def test_a_mask_step_leaves_the_optimiser_alone(monkeypatch: Patch) -> None:
    def check() -> None:
        model = adapted("adalora", r=4)
        plan = schedule(model, total_steps=10)
        assert plan is not None
        optimizer = train(model, steps=9, after=plan.step)
        parameters = list(layer_of(model).subspace_params["default"].values())
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert {id(parameter) for parameter in parameters} == {id(parameter) for parameter in held}
        assert all(optimizer.state[parameter]["step"] == 9 for parameter in parameters)
        assert (layer_of(model).factor("D") == 0).sum() == 1  # it did prune: 4 to round(4 / 1.5) = 3

    def break_it(patch: Patch) -> None:
        apply = AdaLoRA._apply

        def rebuilt(self: AdaLoRA) -> None:
            for site in self.sites:
                site.parameters["D"] = nn.Parameter(site.parameters["D"].detach().clone())  # type: ignore[index]
            apply(self)

        patch.setattr(AdaLoRA, "_apply", rebuilt)

    passes_and_fails(check, monkeypatch, break_it)


def test_the_launch_counts_optimiser_steps_and_no_evaluations(monkeypatch: Patch) -> None:
    def check() -> None:
        model = adapted("lora_dash", schedule={"directions": 2, "launch": 3})
        plan = schedule(model, total_steps=6)
        assert plan is not None
        launched: list[bool] = []

        def after(step: int) -> None:
            with torch.no_grad():
                for _ in range(4):
                    model.eval()(torch.randn(2, 12))
            model.train()
            plan.step(step)
            launched.append(bool(layer_of(model).subspace_constants["default"].U_k.any()))  # type: ignore[operator,union-attr]

        train(model, steps=5, after=after)
        assert launched == [False, False, True, True, True]

    def break_it(patch: Patch) -> None:
        step, forward, calls = LoRADash.step, SubspaceLayer.forward, [0]

        def counted(self: SubspaceLayer, *args: Any, **kwargs: Any) -> Tensor:
            calls[0] += 1
            return forward(self, *args, **kwargs)

        patch.setattr(SubspaceLayer, "forward", counted)
        patch.setattr(LoRADash, "step", lambda self, _: step(self, self.launch if calls[0] >= self.launch else 0))

    passes_and_fails(check, monkeypatch, break_it)


def test_masks_go_by_absolute_value(monkeypatch: Patch) -> None:
    def check() -> None:
        model = adapted("pafi", budget=20)
        weight = layer_of(model).frozen_weight.T.flatten()
        chosen = torch.zeros(weight.numel(), dtype=torch.bool)
        chosen[layer_of(model).subspace_constants["default"].M] = True  # type: ignore[index,union-attr]
        assert chosen.sum() == 20
        assert weight[chosen].abs().max() <= weight[~chosen].abs().min()

    def break_it(patch: Patch) -> None:
        def signed(method: Any, weight: Tensor, entries: int, positions: Any, random: bool) -> Tensor:
            return weight.detach().flatten().topk(entries, largest=False).indices

        patch.setattr(factors, "_positions", signed)

    passes_and_fails(check, monkeypatch, break_it)


def test_launch_directions_go_by_absolute_value(monkeypatch: Patch) -> None:
    from subspace_tuning.methods.schedules import lora_dash
    from subspace_tuning.tuner.scheduling import sites

    def check() -> None:
        model = adapted("lora_dash", init_weights=False, schedule={"directions": 3, "launch": 1})
        site = sites(model)[0]
        U, S, V = torch.linalg.svd(site.weight.double(), full_matrices=False)
        delta = site.scale * (site.parameters["A"] @ site.parameters["B"]).double()
        wanted = (torch.einsum("nk,nm,km->k", U, delta, V).abs() / (S + 1e-6)).topk(3).indices
        assert set(lora_dash._choose(site).tolist()) == set(wanted.tolist())

    def break_it(patch: Patch) -> None:
        rates = lora_dash.change_rates

        def signed(site: Any) -> tuple[Tensor, Tensor, Tensor]:
            found, U, V = rates(site)
            sign = ((U.T @ site.parameters["A"]) * (site.parameters["B"] @ V).T).sum(1).sign()
            return found * sign, U, V

        patch.setattr(lora_dash, "change_rates", signed)

    passes_and_fails(check, monkeypatch, break_it)


def test_merging_adapters_adds_their_changes_not_their_factors(monkeypatch: Patch) -> None:
    def check() -> None:
        model = adapted("lora", init_weights=False)
        model.add_adapter("other", SubspaceConfig(method="lora", r=3, init_weights=False, target_modules=["target"]))
        layer = layer_of(model)
        deltas = [layer.get_delta_weight(name) for name in ("default", "other")]
        frozen = layer.frozen_weight.clone()
        model.merge_adapter(["default", "other"])
        torch.testing.assert_close(layer.weight, frozen + deltas[0] + deltas[1], rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()

    def break_it(patch: Patch) -> None:
        def summed(self: SubspaceLayer, names: list[str], safe_merge: bool = False) -> dict[str, Tensor]:
            A, B = (sum(self.factor(factor, name) for name in names) for factor in ("A", "B"))
            weight = self.weight + self.scaling["default"] * (A @ B).T  # type: ignore[operator,union-attr]
            return {"weight": weight.detach()}

        patch.setattr(SubspaceLayer, "merged_with", summed)

    passes_and_fails(check, monkeypatch, break_it)


def test_conv1d_weights_are_not_transposed(monkeypatch: Patch) -> None:
    def check() -> None:
        module = Conv1D(12, 12)  # square, so that no shape gives the mistake away
        nn.init.normal_(module.weight)
        model = adapted("ssl", module, init_weights=False).eval()
        layer, x = layer_of(model), torch.randn(5, 12)
        scaled = x * layer.factor("D1")
        torch.testing.assert_close(model(x), scaled @ module.weight + module.bias, rtol=1e-4, atol=1e-5)

    def break_it(patch: Patch) -> None:
        patch.setattr(Conv1DKind, "matrix", lambda self, weight: weight.T)
        patch.setattr(Conv1DKind, "weight", lambda self, matrix, shape: matrix.T)

    passes_and_fails(check, monkeypatch, break_it)
