"""Rows of several adapters in one batch: each gets what it gets alone, whatever the method and the kind of layer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from subspace_tuning import SubspaceError, SubspaceLayer
from subspace_tuning.bench.device import operations
from subspace_tuning.methods import Method

from .registry import METHODS, method_id
from .test_binding import CHANGES, Change
from .test_layer_laws import config_of

BASE = "__base__"
NAMES = ["default", "second", "third"]
ROWS = ["second", "default", BASE, "third", "second", "default", "second"]
EACH = ["third", "second", "default"]  # as many rows for each
STRENGTHS = {"default": 0.5, "second": -2.0, "third": 0.0}

# Wide enough for their ranks that factors can be stacked.
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(96, 128), lambda: torch.randn(7, 2, 96)),
    "wide": (lambda: nn.Linear(256, 256), lambda: torch.randn(7, 2, 256)),
    "conv1d_of_transformers": (lambda: Conv1D(96, 64), lambda: torch.randn(7, 64)),
    "embedding": (lambda: nn.Embedding(70, 64, padding_idx=0), lambda: torch.randperm(70).view(7, 10)),
    "conv2d": (lambda: nn.Conv2d(8, 48, 3, padding=1, stride=2), lambda: torch.randn(7, 8, 3, 3)),
    "conv2d_in_groups": (lambda: nn.Conv2d(8, 48, 3, groups=2), lambda: torch.randn(7, 8, 3, 3)),
    "layer_norm": (lambda: nn.LayerNorm(32), lambda: torch.randn(7, 2, 32)),
}
ON_OTHERS = (
    "ssb lora dora lokr hra houlsby fishmask spectral bitfit scaled_tanh_adapter affine(W@D2,b+delta)"
).split()  # on linear layers there are all
NOT_STACKED = (
    # They hold or form a matrix of the size of W,
    "xattn diff_pruning fishmask fish_dip spt pafi liera svdiff sam_parser W+Delta W+s*(W*(A@B)) W@R "
    "U@diag(sigma)@V.T+s*A@D@B W+U@diag(u)@diag(v)@V.T "
    # or their plan does for a layer as small as this.
    "dora unit(D1@W)@D"
).split()


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.target = KINDS[kind][0]()

    def forward(self, x: Tensor) -> Any:
        return self.target(x)


def fits(case: Method, kind: str) -> bool:
    if kind == "linear":
        return not case.formula.wraps_norm
    if kind == "wide":
        return case.name == "dora"  # which forms no phi(W) there
    if kind == "layer_norm":
        return case.formula.wraps_norm or case.name == "bitfit"
    return method_id(case) in ON_OTHERS and (kind, case.name) != ("embedding", "bitfit")


CASES = [(case, kind) for kind in KINDS for case in METHODS if fits(case, kind)]
every_case = pytest.mark.parametrize(("case", "kind"), CASES, ids=[f"{kind}-{method_id(case)}" for case, kind in CASES])


def several(case: Method, kind: str, names: list[str] = NAMES) -> tuple[Any, SubspaceLayer, Tensor]:
    """Return a model with adapters of one method, some of another scale, its layer, and a batch."""
    net = Net(kind)
    target = net.target
    model: Any = get_peft_model(net, config_of(case, kind, target, init_weights=False))
    for number, name in enumerate(names[1:]):
        config = config_of(case, kind, target, init_weights=False)
        config.alpha += number + 1
        model.add_adapter(name, config)
    x = KINDS[kind][1]()
    model = model.double().eval()
    return model, model.base_model.model.target, x.double() if x.is_floating_point() else x


def alone(model: Any, x: Tensor, names: list[str]) -> Tensor:
    """Return what each row gets by itself."""
    return torch.cat([model(row, adapter_names=[name]) for row, name in zip(x.split(1), names, strict=True)])


@every_case
def test_each_row_gets_what_it_gets_alone(case: Method, kind: str) -> None:
    model, layer, x = several(case, kind)
    layer.set_requires_grad(NAMES)
    factors = list(layer.subspace_params.parameters())
    with torch.no_grad():
        frozen = model(x, adapter_names=[BASE] * 7)
        full = [model(x, adapter_names=[name] * 7) for name in NAMES]
        assert all(not torch.equal(one, other) for one in full for other in [frozen, *full] if one is not other)

    expected = alone(model, x, ROWS)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * direction).sum(), factors)
    y = model(x, adapter_names=ROWS)
    torch.testing.assert_close(y, expected)
    for found, gradient in zip(torch.autograd.grad((y * direction).sum(), factors), wanted, strict=True):
        torch.testing.assert_close(found, gradient)

    with torch.no_grad():
        for _ in range(2):  # what is stacked is kept
            torch.testing.assert_close(model(x, adapter_names=ROWS), expected)
        torch.testing.assert_close(model(x[:3], adapter_names=EACH), alone(model, x[:3], EACH))
        for name, strength in STRENGTHS.items():
            layer.set_scale(name, strength)
        strengths = torch.tensor([STRENGTHS.get(name, 1.0) for name in ROWS], dtype=torch.float64)
        line = frozen + strengths.view(7, *[1] * (y.dim() - 1)) * (expected - frozen)
        torch.testing.assert_close(model(x, adapter_names=ROWS), line)
        for name in NAMES:
            layer.set_scale(name, 0.0)
        # Of another number of rows a product has other last bits.
        together, apart = model(x[:3], adapter_names=[BASE] * 3), alone(model, x[:3], [BASE] * 3)
        y = model(x[:3], adapter_names=EACH)
        assert torch.equal(y, together) or torch.equal(y, apart)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(*one, id="-".join((one[1], str(method_id(one[0])))))
        for one in CASES
        if one[1] in ("linear", "wide")
    ],
)
def test_more_adapters_are_no_more_operations(case: Method, kind: str) -> None:
    counts = []
    for number in (3, 4):
        names = ["default", *(f"number {i}" for i in range(1, number))]
        model, _, x = several(case, kind, names)
        x = x[:number]
        with torch.no_grad():
            model(x, adapter_names=names)
            counts.append(len(operations(lambda model=model, x=x, names=names: model(x, adapter_names=names))))
    assert (counts[0] == counts[1]) == (kind == "wide" or method_id(case) not in NOT_STACKED)


def test_what_two_batches_stacked_is_kept() -> None:
    model, layer, x = several(next(case for case in METHODS if case.name == "lora"), "linear")
    batches = [NAMES, EACH, ["second", "third"]]
    with torch.no_grad():
        for names in batches:
            stacked = []
            for _ in range(2):
                found = operations(lambda names=names: model(x[: len(names)], adapter_names=names))
                stacked.append(sum(name.startswith("aten.stack") for name in found))
            assert stacked[0] > 0 and stacked[1] == 0
    assert [list(names) for names in layer._mixtures] == batches[1:]
    model.delete_adapter("third")
    assert not layer._mixtures


@pytest.mark.parametrize("method", ["ssb", "lora", "dora"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_stacked_follows_every_change(method: str, change: Change) -> None:
    case = next(case for case in METHODS if case.name == method)
    model, layer, x = several(case, "wide")
    names = [*NAMES, "second"]

    def output(model: Any) -> Tensor:
        weight = model.base_model.model.target.frozen_weight
        y: Tensor = model(x[:4].to(weight.dtype), adapter_names=names)
        return y

    with torch.no_grad():
        known = [output(model) for _ in range(2)]
        assert torch.equal(*known) and layer._mixtures
        other = change(model, layer)
        changed = model if other is None else other
        own = changed.base_model.model.target
        try:
            found = [output(changed) for _ in range(2)]
        except SubspaceError as error:
            own._forget()
            with pytest.raises(SubspaceError, match=re.escape(str(error))):
                output(changed)
            return
        own._forget()
        assert all(torch.equal(one, output(changed)) for one in found)
        assert other is None or torch.equal(output(model), known[0])
