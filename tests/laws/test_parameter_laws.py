"""The laws of a layer, on parameters that a module reads in a forward of its own: the experts of a mixture."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer, methods, penalty
from subspace_tuning.methods import Method
from subspace_tuning.tuner import schedule
from subspace_tuning.tuner.walking import layers_of

from .mixtures import FIT, MIXTURES, TARGETS, mixture, options, tokens
from .registry import METHODS, method_id

QUICK = {"ssb", "dora", "pissa"}
every_case = pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(
            case,
            name,
            id=f"{name}-{method_id(case)}",
            marks=[] if name == "mixtral" or case.name in QUICK else [pytest.mark.slow],
        )
        for case in FIT
        for name in MIXTURES
    ],
)
every_mixture = pytest.mark.parametrize("name", MIXTURES)


def adapted(case: Method, name: str, base: nn.Module | None = None, **more: Any) -> Any:
    config = SubspaceConfig(**options(case), target_parameters=TARGETS, **more)
    return get_peft_model(copy.deepcopy(mixture(name) if base is None else base), config).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens()).logits
    return found


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """Return the base model's tensors by their own names."""
    held = {name: parameter for name, parameter in model.named_parameters() if "subspace_" not in name}
    return {name.removeprefix("base_model.model.").replace(".base_layer", ""): held[name] for name in held}


def test_methods_are_enough() -> None:
    assert len(FIT) > 20 and {case.name for case in FIT} >= {"ssb", "lora", "dora", "adalora", "pissa", "sam_parser"}


@every_case
def test_a_life(case: Method, name: str, tmp_path: Path) -> None:
    base = mixture(name)
    y = logits(base)
    model = adapted(case, name, base)
    torch.testing.assert_close(logits(model), y, atol=1e-9, rtol=1e-9)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    counted = sum(case.formula.count(layer.adapters["default"].sizes) for _, layer in layers_of(model))
    assert sum(parameter.numel() for parameter in trained) == 3 * counted
    if case.schedule != "lora_dash":  # it launches what it has not chosen yet
        optimizer = torch.optim.SGD(trained, lr=0.5)
        for _ in range(3):  # where a factor starts at zero, the other moves after it
            optimizer.zero_grad()
            model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
            optimizer.step()
        moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
        assert moved == {key for key in before if ".subspace_params." in key}
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.05 * torch.randn_like(parameter))
    changed = logits(model.eval())
    assert (changed - y).abs().max() > 1e-4

    model.save_pretrained(tmp_path)
    assert all(".subspace_" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(logits(loaded), changed)

    with model.disable_adapter():
        assert torch.equal(logits(model), y)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), changed, atol=1e-9, rtol=1e-9)
    model.unmerge_adapter()
    assert torch.equal(logits(model), changed)
    own = dict(base.named_parameters())
    assert frozen(model).keys() == own.keys() and all(torch.equal(frozen(model)[key], own[key]) for key in own)
    assert torch.equal(logits(copy.deepcopy(model)), changed)

    model.add_adapter("second", SubspaceConfig(method="ssb", target_parameters=TARGETS[:1], init_weights=False))
    model.set_adapter("second")
    other = logits(model)
    assert (other - changed).abs().max() > 1e-4
    model.set_adapter("default")
    assert torch.equal(logits(model), changed)
    model.delete_adapter("default")
    assert torch.equal(logits(model), other)

    alone = loaded.merge_and_unload()
    assert [*alone.state_dict()] == [*base.state_dict()] and type(alone) is type(base)
    torch.testing.assert_close(logits(alone), changed, atol=1e-9, rtol=1e-9)
    assert not any(isinstance(module, SubspaceLayer) for module in alone.modules())


@every_case
def test_each_expert_is_a_linear_layer_of_its_own(case: Method, name: str) -> None:
    """What a formula makes of an expert is what it makes of a linear layer with the expert's weight and factors."""
    model = adapted(case, name, init_weights=False)
    layers = dict(layers_of(model))
    assert len(layers) == 2
    for layer in layers.values():
        for expert in range(3):
            W = layer.kind.matrix(layer.frozen_weight)[expert].detach()
            linear = nn.Linear(*W.shape, bias=False, dtype=W.dtype)
            linear.weight.data = W.T.contiguous()
            config = SubspaceConfig(**options(case), target_modules=["0"])
            own: Any = get_peft_model(nn.Sequential(linear), config).eval().base_model.model[0]
            given = {**layer.subspace_params["default"], **layer.subspace_constants["default"]}
            for key, tensor in {**own.subspace_params["default"], **own.subspace_constants["default"]}.items():
                tensor.data = given[key].data[expert]
            phi = layer.kind.matrix(layer.weight)[expert]
            torch.testing.assert_close(phi, own.weight.T, atol=1e-9, rtol=1e-9)


@every_mixture
def test_the_two_sides_of_an_expert(name: str) -> None:
    """A scale of the outputs scales the outputs: the orientation is the model's, and not the storage's."""
    model = adapted(methods.get("ia3"), name, init_weights=False)  # W @ D2
    for layer in dict(layers_of(model)).values():
        D2 = layer.factor("D2")
        assert D2.shape == (3, layer.out_features)
        assert (layer.in_features, layer.out_features) in ((8, 24), (12, 8))
        by_output = D2[:, None, :] if name == "gpt_oss" else D2[:, :, None]
        torch.testing.assert_close(layer.weight, layer.frozen_weight * by_output)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
@every_mixture
def test_every_implementation_of_the_experts_reads_phi(name: str, experts: str) -> None:
    base = mixture(name, torch.float32, experts)
    model = adapted(methods.get("dora"), name, base, init_weights=False)
    y = logits(model)
    assert (y - logits(base)).abs().max() > 1e-3
    torch.testing.assert_close(logits(copy.deepcopy(model).merge_and_unload()), y)


@every_mixture
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    base = mixture(name, dtype)
    model = adapted(methods.get("ssb"), name, base)
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(factor.dtype == torch.float32 for factor in factors)
    y = model(input_ids=tokens(), labels=tokens())
    assert torch.equal(y.logits, logits(base)) and y.logits.dtype == dtype
    y.loss.backward()
    assert all(factor.grad is not None and factor.grad.isfinite().all() for factor in factors)


@every_mixture
def test_recomputation_gives_the_same_gradients(name: str) -> None:
    gradients, first = [], adapted(methods.get("lora"), name, init_weights=False)
    for recompute in (False, True):
        model = copy.deepcopy(first)
        if recompute:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert gradients[0] and all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_threads_and_exceptions_leave_nothing_behind() -> None:
    """Calls in several threads see their own phi(W), also while another call fails; the module is never touched."""
    model = adapted(methods.get("lora"), "mixtral", init_weights=False)
    experts = model.base_model.model.model.layers[0].mlp.experts
    before, y = dict(vars(experts.base_layer)), logits(model)
    results: list[bool] = []

    def call() -> None:
        for _ in range(5):
            with pytest.raises(Exception):  # noqa: B017, PT011 (whatever a wrong input raises)
                experts(torch.ones(2, 3), None, None)
            results.append(torch.equal(logits(model), y))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20
    assert vars(experts.base_layer).keys() == before.keys()
    assert all(vars(experts.base_layer)[key] is before[key] for key in before)


def test_hooks_of_the_experts_run() -> None:
    model = adapted(methods.get("lora"), "mixtral", init_weights=False)
    y, base = logits(model), model.base_model.model.model.layers[0].mlp.experts.base_layer
    seen = []
    handle = base.register_forward_hook(lambda module, args, output: seen.append(type(module)) or 2 * output)
    assert (logits(model) - y).abs().max() > 1e-3 and seen == [type(base)]
    handle.remove()
    assert torch.equal(logits(model), y)


def test_a_replaced_forward_is_refused() -> None:
    model = adapted(methods.get("lora"), "mixtral", init_weights=False)
    base = model.base_model.model.model.layers[0].mlp.experts.base_layer
    forward = base.forward
    base.forward = lambda *args: forward(*args)
    with pytest.raises(SubspaceError, match=r"^the forward of this MixtralExperts was replaced, .* put it back"):
        logits(model)


@pytest.mark.slow
def test_compiled_without_a_break() -> None:
    model = adapted(methods.get("dora"), "mixtral", init_weights=False)
    experts = model.base_model.model.model.layers[0].mlp.experts
    x, chosen, weights = torch.randn(5, 8, dtype=torch.float64), torch.tensor([[0, 2]] * 5), torch.rand(5, 2).double()
    experts.base_layer.config._experts_implementation = "batched_mm"
    y = experts(x, chosen, weights)
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, chosen, weights), y)


@pytest.mark.parametrize("case", [case for case in METHODS if case not in FIT and case.schedule is None], ids=method_id)
def test_what_needs_rows_is_refused_by_name(case: Method) -> None:
    config = SubspaceConfig(**options(case), target_parameters=TARGETS).with_choice()
    base = mixture("mixtral")
    with pytest.raises(SubspaceError, match=r"gate_up_proj") as told:
        get_peft_model(base, config)
    assert repr(config.resolved.name) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["adalora", "flexlora", "lora_dash"])
def test_schedules_choose_for_each_expert(name: str) -> None:
    config = SubspaceConfig(**options(methods.get(name)), target_parameters=TARGETS)
    model: Any = get_peft_model(mixture("mixtral"), config)
    plan = schedule(model, total_steps=60)
    assert [site.name.rpartition(".")[2] for site in plan.sites] == ["0", "1", "2"] * 2
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(1, 61):
        optimizer.zero_grad()
        model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        plan.step(step, optimizer)
    factor = {"adalora": "D", "flexlora": "D", "lora_dash": "U_k"}[name]
    values = [site.value(factor) if factor in site.parameters else site.constants[factor] for site in plan.sites]
    zeros = sum(int((value == 0).sum()) for value in values)
    assert zeros == 0 if name == "lora_dash" else 0 < zeros < sum(value.numel() for value in values)


def test_penalties_count_each_expert() -> None:
    """The mean over matrices is that of six, and equals what the factors give one by one."""
    model = adapted(methods.get("lora"), "mixtral", pattern="orthogonal", pattern_weight=0.3, init_weights=False)
    by_hand = []
    for _, layer in layers_of(model):
        for A, B in zip(layer.factor("A"), layer.factor("B"), strict=True):
            eye = torch.eye(2, dtype=A.dtype)
            by_hand.append((A.T @ A - eye).square().sum() + (B @ B.T - eye).square().sum())
    assert len(by_hand) == 6
    ratio = penalty(model) / (0.3 * torch.stack(by_hand).mean())
    alone = SubspaceConfig(method="lora", r=2, pattern="orthogonal", pattern_weight=0.3, target_modules=["0"])
    linear: Any = get_peft_model(nn.Sequential(nn.Linear(8, 6).double()), alone)
    A, B = (linear.base_model.model[0].factor(name) for name in "AB")
    one = (A.T @ A - torch.eye(2)).square().sum() + (B @ B.T - torch.eye(2)).square().sum()
    torch.testing.assert_close(ratio, penalty(linear) / (0.3 * one))


def test_transformers_loads_it(tmp_path: Path) -> None:
    """Through transformers' own call, which renames what older versions kept expert by expert."""
    base = mixture("mixtral", torch.float32)
    base.save_pretrained(tmp_path / "base")
    model = adapted(methods.get("lora"), "mixtral", base, init_weights=False)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base", experts_implementation="eager").eval()
    loaded.load_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), logits(model))
