"""The laws of a layer: every method on every kind of module, through peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer
from subspace_tuning.algebra import Sizes
from subspace_tuning.methods import Method
from subspace_tuning.tuner.budget import matrix_shape
from subspace_tuning.tuner.scheduling import schedule

from .modules import KINDS, Net, fits
from .registry import METHODS, method_id

RANK = 4  # even, as reflections start in pairs
BOUND = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 0.1}
CASES = [(case, kind) for case in METHODS for kind in KINDS if fits(case, kind)]
every_case = pytest.mark.parametrize(
    ("case", "kind"), [pytest.param(case, kind, id=f"{kind}-{method_id(case)}") for case, kind in CASES]
)


def config_of(case: Method, kind: str, module: nn.Module | None = None, **options: Any) -> SubspaceConfig:
    registered = str(case.formula) != case.name
    named: dict[str, Any] = {"method": case.name} if registered else {"formula": case.name}
    if case.selection == "magnitude":
        named["budget"] = 12  # more than the embedding's row for padding, which no input looks up
    if case.schedule == "lora_dash":
        named["schedule"] = {"directions": 2, "launch": 1}
    config = SubspaceConfig(**named, r=RANK, alpha=5.0, target_modules=["target"], **options)
    if not case.needs_calibration:
        return config
    if not case.formula.masked:
        return config.with_choice()
    n, m = matrix_shape(Net(kind).target if module is None else module)
    return config.with_choice(entries={"target": [7, n, m]}, positions={"target": torch.randperm(n * m)[:7]})


def adapted(
    case: Method, kind: str, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Any, nn.Module, Tensor]:
    """Return the adapted network, an untouched copy of the network, and an input."""
    base = Net(kind).to(dtype)
    x = KINDS[kind][1]()
    model = get_peft_model(copy.deepcopy(base), config_of(case, kind, **options)).eval()
    return model, base, x.to(dtype) if x.is_floating_point() else x


def layer_of(model: Any) -> SubspaceLayer:
    layer = model.base_model.model.target
    assert isinstance(layer, SubspaceLayer)
    return layer


@every_case
@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_the_output_is_the_frozen_one_at_the_start(case: Method, kind: str, dtype: torch.dtype) -> None:
    model, base, x = adapted(case, kind, dtype)
    for training in (False, True):
        y = model.train(training)(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, base(x), atol=BOUND[dtype], rtol=BOUND[dtype])


@every_case
def test_every_factor_trains_and_nothing_else_does(case: Method, kind: str) -> None:
    model, base, x = adapted(case, kind)
    layer = layer_of(model)
    factors = dict(layer.subspace_params["default"].named_parameters())
    assert set(factors) == set(layer.method["default"].formula.trainable)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in factors.values()}
    method, shapes = layer.method["default"], {name: tuple(factor.shape) for name, factor in factors.items()}
    entries, rank = (len(factors["Delta"]) if method.formula.masked else 0), layer.r["default"]
    window = layer.kind.window(layer.get_base_layer())
    sizes = Sizes(layer.in_features, layer.out_features, rank, entries, 2, window)
    assert shapes == {name: sizes.of(method.formula.shapes[name]) for name in factors}
    assert sum(parameter.numel() for parameter in trained) == method.counted(sizes)

    before = {name: parameter.detach().clone() for name, parameter in factors.items()}
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    target = torch.randn_like(base(x))
    losses = []
    launch = schedule(model, total_steps=4) if case.schedule == "lora_dash" else None
    for step in range(1, 5):
        optimizer.zero_grad()
        loss = (model.train()(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        if launch is not None:
            launch.step(step)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in factors.items():
        assert parameter.grad is not None, name
        assert not parameter.numel() or not torch.equal(parameter, before[name]), name
    for key, tensor in base.target.state_dict().items():
        assert torch.equal(tensor, layer.get_base_layer().state_dict()[key]), key


@every_case
@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_merged_is_unmerged_and_unmerging_is_exact(case: Method, kind: str, dtype: torch.dtype) -> None:
    model, base, x = adapted(case, kind, dtype, init_weights=False)
    y = model(x)
    assert not torch.equal(y, base(x)), "random factors must change the output"
    without_bias = case.formula.names_bias and layer_of(model).bias is None
    if not case.formula.is_linear or without_bias:
        with pytest.raises(SubspaceError, match="cannot be merged"):
            model.merge_adapter()
    else:
        model.merge_adapter()
        torch.testing.assert_close(model(x), y, atol=BOUND[dtype], rtol=BOUND[dtype])
        model.unmerge_adapter()
        merged = copy.deepcopy(model).merge_and_unload()
        assert isinstance(merged, Net)
        torch.testing.assert_close(merged(x), y, atol=BOUND[dtype], rtol=BOUND[dtype])
    for key, tensor in base.target.state_dict().items():
        assert torch.equal(tensor, layer_of(model).get_base_layer().state_dict()[key]), key
    assert torch.equal(model(x), y)


@every_case
@pytest.mark.parametrize("constants", [False, True], ids=["computed", "saved"])
def test_saved_and_loaded_is_bit_equal(case: Method, kind: str, constants: bool, tmp_path: Path) -> None:
    model, base, x = adapted(case, kind, init_weights=False, save_constants=constants)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    method = layer_of(model).method["default"]
    wanted = {f"base_model.model.target.subspace_params.{name}" for name in method.formula.trainable}
    held = set(layer_of(model).subspace_constants["default"])
    drawn = {f"{name}0" for name, anchored in method.anchors(kind == "embedding").items() if not anchored}
    chosen = {"M", "U_k", "V_k"}
    kept = held if constants else held & (drawn | chosen)
    wanted |= {f"base_model.model.target.subspace_constants.{name}" for name in kept}
    assert set(stored) == wanted
    torch.manual_seed(1234)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    assert torch.equal(loaded(x), model(x))
    assert torch.equal(torch.rand(1), _after_loading(base, tmp_path, x))


def _after_loading(base: nn.Module, folder: Path, x: Tensor) -> Tensor:
    torch.manual_seed(1234)
    PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()(x)
    return torch.rand(1)


# Where peft has the same method, the same factors give the same output and the same gradient


def _theirs(kind: str, config: peft.PeftConfig, base: nn.Module) -> tuple[Any, dict[str, nn.Parameter]]:
    """Return peft's own model with random factors, and its parameters by the last part that names them."""
    other = get_peft_model(copy.deepcopy(base), config)
    found = {}
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            found[next(part for part in name.split(".") if part.startswith(("lora_", "ia3_")))] = parameter
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return other, found


def _agree(case: str, kind: str, config: Any, pairs: dict[str, str]) -> None:
    """Compare outputs and gradients; ``pairs`` says which of peft's parameters is which factor."""
    base, x = Net(kind).double(), KINDS[kind][1]()
    x = x.double() if x.is_floating_point() else x
    if case == "ia3" and isinstance(base.target.bias, Tensor):
        nn.init.zeros_(base.target.bias)  # peft scales the bias with the output; the paper's formula leaves it alone
    config.target_modules, config.r, config.lora_alpha = ["target"], RANK, 5.0
    other, theirs = _theirs(kind, config, base)
    config = SubspaceConfig(method=case, r=RANK, alpha=5.0, target_modules=["target"])
    model = get_peft_model(copy.deepcopy(base), config)
    layer = layer_of(model)
    ours = layer.subspace_params["default"]
    for name, key in pairs.items():
        value = theirs[key].detach()
        anchor = layer.subspace_constants["default"]._buffers.get(f"{name}0", 1.0 if name.startswith("D") else 0.0)
        flat = value.flatten(1).T if name in "AB" else value.flatten()
        with torch.no_grad():
            ours[name].copy_(flat.reshape(ours[name].shape) - anchor)
    upstream = torch.randn_like(base(x))
    for network in (model, other):
        network.train()
    y, reference = model(x), other(x)
    torch.testing.assert_close(y, reference)
    (y * upstream).sum().backward()
    (reference * upstream).sum().backward()
    for name, key in pairs.items():
        wanted = theirs[key].grad
        assert wanted is not None
        flat = wanted.flatten(1).T if name in "AB" else wanted.flatten()
        torch.testing.assert_close(ours[name].grad, flat.reshape(ours[name].shape))


LINEARS = ["linear", "linear_without_bias", "conv1d_of_transformers"]
LORA = {"A": "lora_A", "B": "lora_B"}


@pytest.mark.parametrize("kind", [*LINEARS, "conv1d", "conv2d", "conv3d"])
def test_lora_is_the_one_of_peft(kind: str) -> None:
    _agree("lora", kind, peft.LoraConfig(), LORA)


def test_lora_of_an_embedding_is_the_one_of_peft() -> None:
    _agree("lora", "embedding", peft.LoraConfig(), {"A": "lora_embedding_A", "B": "lora_embedding_B"})


@pytest.mark.parametrize("kind", [*LINEARS, "conv2d"])
def test_dora_is_the_one_of_peft(kind: str) -> None:
    _agree("dora", kind, peft.LoraConfig(use_dora=True), LORA | {"D": "lora_magnitude_vector"})


@pytest.mark.parametrize("kind", [*LINEARS, "conv2d"])
def test_ia3_is_the_one_of_peft(kind: str) -> None:
    _agree("ia3", kind, peft.IA3Config(feedforward_modules=[]), {"D2": "ia3_l"})


@pytest.mark.parametrize("kind", [*LINEARS, "conv2d"])
def test_ssl_is_the_feed_forward_form_of_ia3_in_peft(kind: str) -> None:
    """peft scales the inputs of feed-forward modules: of a convolution by channel, of a linear as SSL does."""
    if kind == "conv2d":
        with pytest.raises(RuntimeError):
            _agree("ssl", kind, peft.IA3Config(feedforward_modules=["target"]), {"D1": "ia3_l"})
    else:
        _agree("ssl", kind, peft.IA3Config(feedforward_modules=["target"]), {"D1": "ia3_l"})
