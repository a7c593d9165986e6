"""Laws of adapters on quantised layers, over all methods and all kinds of layers that run here.

The layers of HQQ and GPTQModel run where these are installed; beside them, layers are written here by their interfaces.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer, methods
from subspace_tuning.tuner.entries import Needs, need_of
from subspace_tuning.tuner.quantised import door_of

from ..packaged import packaged
from .quantised_layers import FORMS, WithDoor

N, M, ROWS = 64, 48, 7
METHODS = [known for known in methods.every() if not known.formula.wraps_norm and not known.needs_calibration]
# One method for each way in which a formula meets W, and one layer for each way in which it holds it.
FEW = ("lora", "ssb", "dora", "liera", "pissa", "bitfit", "svdiff")
QUICK = ("torchao int8", "bitsandbytes int8", "bitsandbytes nf4, double", "as GPTQ", "own door")


def quick(form: str, name: str) -> tuple[Any, ...]:
    return () if name == "lora" or (name in FEW and form in QUICK) else (pytest.mark.slow,)


cases = pytest.mark.parametrize(
    ("form", "method"),
    [
        pytest.param(form, method, id=f"{form}-{method.name}", marks=quick(form, method.name))
        for form in FORMS
        for method in METHODS
    ],
)


def plain() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(N, M), nn.Tanh(), nn.Linear(M, N)).requires_grad_(False).eval()


def quantised(form: str) -> nn.Sequential:
    return nn.Sequential(*(FORMS[form][0](part) if isinstance(part, nn.Linear) else part for part in plain())).eval()


def dequantised(form: str) -> nn.Sequential:
    """Return the model of plain layers that hold the numbers of the quantised one."""
    model = plain()
    for own, part in zip(model, quantised(form), strict=True):
        if isinstance(own, nn.Linear):
            door = door_of(part)
            assert door is not None
            own.weight.data = door.dequantise().T.contiguous()
    return model


def adapted(model: nn.Module, method: methods.Method) -> PeftModel:
    torch.manual_seed(5)
    fields = {"schedule": {"directions": 3}} if method.name == "lora_dash" else {}
    config = SubspaceConfig(method=method.name, r=4, target_modules=["0", "2"], **fields)
    return get_peft_model(model, config).eval()


def trained(model: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def moved(model: nn.Module) -> nn.Module:
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in trained(model):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def inputs() -> Tensor:
    torch.manual_seed(8)
    return torch.randn(ROWS, N)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-6))


def run(model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """Return outputs in training mode, and the gradients of the input and of every factor."""
    x = inputs().requires_grad_()
    y = model.train()(x)
    wanted = [x, *trained(model)]
    return y.detach(), list(torch.autograd.grad((y * torch.linspace(-1, 1, N)).sum(), wanted))


@cases
def test_laws(form: str, method: methods.Method, tmp_path: Path) -> None:
    base, x, close = quantised(form), inputs(), FORMS[form][1]
    with torch.no_grad():
        before = base(x)
    if need_of(method) is Needs.ALWAYS:
        with pytest.raises(SubspaceError, match=rf"^0 is quantised .*'{method.name}' keeps all singular") as caught:
            adapted(base, method)
        assert "\n" not in str(caught.value)
        return
    model = adapted(base, method)
    with torch.no_grad():
        assert distance(model(x), before) < max(1e-5, close / 10), "it starts at the quantised base"

    torch.manual_seed(9)  # gates are drawn
    y, gradients = run(moved(model))
    torch.manual_seed(9)
    wanted_y, wanted = run(moved(adapted(dequantised(form), method)))
    assert distance(y, wanted_y) < close, "phi at the dequantised weight"
    assert len(gradients) == len(wanted)
    for own, other in zip(gradients, wanted, strict=True):
        assert distance(own, other) < 10 * close, "its gradients"

    optimiser = torch.optim.AdamW(trained(model), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], "it trains"

    model.eval()
    with torch.no_grad():
        after = model(x)
        with model.disable_adapter():
            assert torch.equal(model(x), before), "the base is as it was"
        model.save_pretrained(str(tmp_path))
        again = PeftModel.from_pretrained(quantised(form), str(tmp_path)).eval()
        assert torch.equal(again(x), after), "what is loaded is what was saved"
        check_merging(model, x, after, before)


def check_merging(model: PeftModel, x: Tensor, after: Tensor, before: Tensor) -> None:
    layer = model.base_model.model[0]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            model.merge_adapter()
        except SubspaceError as error:
            refused = str(error)
        else:
            refused = ""
    if refused:
        assert re.search("quantised again|cannot be merged", refused) and "\n" not in refused
    elif layer.requantised is None:  # the bias alone is another one
        assert distance(model(x), after) < 1e-5
    else:
        assert any("merged weights were quantised again, with an error of" in str(one.message) for one in told)
        error = max(model.base_model.model[place].requantised.of_change for place in (0, 2))
        assert 0 < error < 2
        assert distance(model(x) - before, after - before) < 0.05 + 2 * error
    model.unmerge_adapter()
    assert torch.equal(model(x), after), "unmerging is exact"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["ssb", "dora", "liera"])
def test_nothing_dequantised_is_kept(form: str, name: str) -> None:
    model = adapted(quantised(form), methods.get(name)).train()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(inputs().requires_grad_()).sum()
    assert saved, "what autograd keeps until the backward pass is looked at, too"
    held = [tensor for part in model.modules() for tensor in vars(part).values() if isinstance(tensor, Tensor)]
    numbers = [sorted_numbers(part.weight) for part in dequantised(form) if isinstance(part, nn.Linear)]
    for tensor in (*saved, *held, *model.parameters(), *model.buffers()):
        if tensor.numel() == N * M and tensor.dtype.itemsize > 1 and type(tensor.data) is Tensor:
            assert all(distance(sorted_numbers(tensor), W) > 0.1 for W in numbers)


def sorted_numbers(tensor: Tensor) -> Tensor:
    """Return the entries without their order: a transposed copy is a copy."""
    return tensor.detach().flatten().float().sort().values


UNMASKED = {str(known.formula) for known in METHODS if not (known.formula.spectral or known.formula.masked)}
FORMULAS = ["D1 @ W", "W @ D2 + s * A @ B", "W @ W.T @ A @ B + W", "unit(W) @ D", "W + s * (W * (A @ B))"]


@pytest.mark.parametrize("text", sorted(UNMASKED.union(FORMULAS)))
def test_a_formula_gets_entries_where_the_rule_says_so(text: str) -> None:
    linear = nn.Linear(N, N)  # square, so that W.T fits wherever W does
    base = nn.Sequential(WithDoor(linear), nn.Linear(N, 2))
    starts = {"Delta": "zeros"} if "Delta" in text else None
    config = SubspaceConfig(formula=text, r=2, target_modules=["0"], init_weights=False, starts=starts)
    model = get_peft_model(base, config)
    layer = model.base_model.model[0].base_layer
    layer.asked = 0
    model.eval()(inputs())
    assert (layer.asked > 0) is (need_of(config.resolved) is Needs.PASSES)


def test_the_table_of_the_page_is_the_rule() -> None:
    page = Path(__file__).parents[2] / "docs" / "quantised.md"
    rows = [line.strip("| ").split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if "|" in line]
    told = {row[1]: set(row[2].replace("`", "").split()) for row in rows if row[1] in {need.value for need in Needs}}
    known = [one for one in packaged() if not one.formula.wraps_norm]
    assert told == {need.value: {one.name for one in known if need_of(one) is need} for need in Needs}


@pytest.mark.parametrize("form", QUICK)
def test_rows_of_several_adapters_on_a_quantised_base(form: str) -> None:
    model, x, names = adapted(quantised(form), methods.get("lora")), inputs()[:3], ["default", "second", "third"]
    for name in names[1:]:
        model.add_adapter(name, SubspaceConfig(method="lora", r=4, target_modules=["0", "2"], init_weights=False))
    with torch.no_grad():
        rows = [model.eval()(row, adapter_names=[name]) for row, name in zip(x.split(1), names, strict=True)]
        for _ in range(2):
            torch.testing.assert_close(model(x, adapter_names=names), torch.cat(rows), rtol=1e-4, atol=1e-4)
    assert all(part._mixtures for part in model.modules() if isinstance(part, SubspaceLayer))


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "packed"])
@pytest.mark.parametrize("form", ["bitsandbytes nf4", "bitsandbytes nf4, double"])
def test_four_bits_stay_as_they_are_stored(form: str, packed: bool) -> None:
    """A layer that bitsandbytes has packed for inference on a CPU with AVX512-BF16 passes no gradient on."""
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(3)
    linear, layer = nn.Linear(N, N), FORMS[form][0](nn.Linear(N, N)).eval()
    stored = layer.weight.data.clone()
    door = door_of(layer)
    assert door is not None
    plain = nn.Linear(N, N)
    plain.load_state_dict({"weight": door.dequantise().T.contiguous(), "bias": layer.bias.detach()})
    if packed:
        both = functional._convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
        layer.weight.data, layer.weight.quant_state = both
    layer.support_avx512bf16_for_cpu = True

    gradients = []
    for second in (layer, plain):
        torch.manual_seed(5)
        model = nn.Sequential(copy.deepcopy(linear), second, nn.Linear(N, 2)).requires_grad_(False)
        tuned = moved(get_peft_model(model, SubspaceConfig(method="lora", r=4, target_modules=["0"])))
        with torch.no_grad():
            tuned.eval()(inputs())
        gradients.append(torch.autograd.grad(tuned.train()(inputs()).sum(), list(trained(tuned))))
    assert torch.equal(layer.weight.data.flatten(), stored.flatten())
    for own, wanted in zip(*gradients, strict=True):
        assert distance(own, wanted) < 0.01
