"""The laws of modules that do more than their weight and bias say: hooks, forwards of their own, padding rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from subspace_tuning import SubspaceConfig, SubspaceError
from subspace_tuning.methods import Method

from .registry import METHODS, method_id
from .test_layer_laws import config_of, layer_of


class Net(nn.Module):
    def __init__(self, target: nn.Module) -> None:
        super().__init__()
        self.target = target
        self.calls = 0  # of a hook

    def forward(self, x: Tensor) -> Tensor:
        return self.target(x)  # type: ignore[no-any-return]


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Cosine(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(F.normalize(input, dim=-1), F.normalize(self.weight, dim=-1), self.bias)


class Causal(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (2, 0)))


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(input, (self.weight - mean) / (std + 1e-3), self.bias)


class Scaled(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 3 * weight, bias)


class Offset(nn.Embedding):
    def forward(self, input: Tensor, past: int = 0) -> Tensor:
        return super().forward(input + past + 2)


class ChannelsFirst(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Activated(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


def hooked() -> Net:
    net = Net(nn.Linear(6, 9))

    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        net.calls += 1
        return 2 * output

    net.target.register_forward_hook(double)
    return net


def prehooked() -> Net:
    net = Net(nn.Linear(6, 9))

    def shift(module: nn.Module, args: Any) -> Any:
        net.calls += 1
        return (args[0] + 1,)

    net.target.register_forward_pre_hook(shift)
    return net


def patched() -> Net:
    net = Net(nn.Linear(6, 9))
    known = net.target.forward
    net.target.forward = lambda x: 2 * known(x)  # type: ignore[assignment]
    return net


def rows() -> Tensor:
    return torch.randn(2, 3, 6)


def image() -> Tensor:
    return torch.randn(2, 4, 5, 5)


KINDS: dict[str, tuple[Callable[[], Net], Callable[[], Tensor]]] = {
    "doubled": (lambda: Net(Doubled(6, 9)), rows),
    "doubled, parametrised": (lambda: Net(weight_norm(Doubled(6, 9))), rows),
    "cosine": (lambda: Net(Cosine(6, 9)), rows),
    "causal": (lambda: Net(Causal(4, 6, 3)), lambda: torch.randn(2, 4, 5)),
    "standardised": (lambda: Net(Standardised(4, 6, 3)), image),
    "scaled": (lambda: Net(Scaled(4, 6, 3, groups=2)), image),
    "offset": (lambda: Net(Offset(11, 6)), lambda: torch.arange(9)),
    "by frequency": (lambda: Net(nn.Embedding(11, 6, scale_grad_by_freq=True)), lambda: torch.arange(22) % 11),
    "channels first": (lambda: Net(ChannelsFirst(4)), lambda: torch.randn(2, 4, 4, 4)),
    "activated": (lambda: Net(Activated(2, 4)), image),
    "hook": (hooked, rows),
    "pre-hook": (prehooked, rows),
    "patched": (patched, rows),
}


NORMS = ("channels first", "activated")
FREE_OF_SCALE = ("cosine", "standardised")  # some changes of the weight do not reach their output
CHANGEABLE = ("hook", "pre-hook", "patched")  # what has no dense form can act here, too


def fits(case: Method, kind: str) -> bool:
    bias_alone = case.name in ("bitfit", "s_bitfit")
    if kind in NORMS:
        return bias_alone or case.formula.wraps_norm
    if kind in ("offset", "by frequency"):
        return not bias_alone and not case.formula.wraps_norm and not case.formula.names_bias
    return not case.formula.wraps_norm


every_case = pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(case, kind, id=f"{kind}-{method_id(case)}")
        for kind in KINDS
        for case in METHODS
        if fits(case, kind)
    ],
)


def built(kind: str) -> tuple[Net, Tensor]:
    net = KINDS[kind][0]().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net, KINDS[kind][1]()


def moved(model: nn.Module) -> dict[str, nn.Parameter]:
    """Move all factors, and return them."""
    factors = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for factor in factors.values():
            factor.add_(0.2 * torch.randn_like(factor))
    return factors


@every_case
def test_a_module_goes_on_doing_what_it_did(case: Method, kind: str) -> None:
    """Its start is exact, hooks run once, merged is unmerged, all factors train; or it is refused by name."""
    net, x = built(kind)
    plain = net(x).detach()
    config = config_of(case, "linear", net.target)
    if not case.formula.is_linear and kind not in CHANGEABLE:
        with pytest.raises(SubspaceError, match=r"^target: this \w+ does more than apply its weight and bias"):
            get_peft_model(net, config)
        return
    model: Any = get_peft_model(net, config).eval()
    net.calls = 0
    torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-5)
    assert net.calls == (kind in ("hook", "pre-hook"))
    factors = moved(model)
    y = model(x)
    if kind not in FREE_OF_SCALE:
        assert not torch.allclose(y, plain)
    y.square().sum().backward()
    assert all(factor.grad is not None and torch.isfinite(factor.grad).all() for factor in factors.values())
    if case.formula.is_linear and kind != "doubled, parametrised":
        model.merge_adapter()
        torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-4)
        model.unmerge_adapter()
    assert torch.equal(model(x), y)
    with model.disable_adapter():
        assert torch.equal(model(x), plain)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook", "patch"])
def test_what_is_hung_on_a_module_later_is_noticed(register: str) -> None:
    net = Net(nn.Linear(6, 9))
    base, x, calls = net.target, rows(), []
    model: Any = get_peft_model(net, config_of(METHODS[0], "linear", base))
    before = model(x)
    if register == "patch":
        known = base.forward
        base.forward = lambda x: calls.append(1) or 2 * known(x)  # type: ignore[assignment,func-returns-value]
    else:
        getattr(base, register)(lambda *given: calls.append(1))
    y = model(x)
    y.sum().backward()
    assert calls == [1]
    torch.testing.assert_close(y, 2 * before if register == "patch" else before)


def test_a_forward_that_raises_leaves_the_module_as_it_was() -> None:
    net, x = built("doubled")
    model: Any = get_peft_model(net, config_of(METHODS[0], "linear", net.target))
    attributes = dict(layer_of(model).get_base_layer().__dict__)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5))
    assert layer_of(model).get_base_layer().__dict__ == attributes
    assert torch.isfinite(copy.deepcopy(model)(x)).all()


@pytest.mark.parametrize("case", [case for case in METHODS if fits(case, "offset")], ids=method_id)
def test_the_row_of_the_padding_stays_frozen(case: Method) -> None:
    net = Net(nn.Embedding(11, 6, padding_idx=3))
    nn.init.normal_(net.target.weight)  # type: ignore[arg-type]
    frozen = net.target.weight.detach().clone()  # type: ignore[operator]
    model: Any = get_peft_model(net, config_of(case, "linear", net.target)).train()
    factors = moved(model)
    optimizer = torch.optim.Adam(factors.values(), lr=0.1)
    x = torch.arange(11)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    y = model.eval()(x)
    assert torch.equal(y[3], frozen[3]) and not torch.equal(y, frozen)
    optimizer.zero_grad(set_to_none=False)
    model(torch.tensor([[3, 3]])).sum().backward()
    assert all(factor.grad is None or not factor.grad.any() for factor in factors.values())
    if case.formula.is_linear:
        model.merge_adapter()
        torch.testing.assert_close(model(x), y)
        assert torch.equal(layer_of(model).get_base_layer().weight[3], frozen[3])  # type: ignore[index]


def test_sparse_gradients_of_an_embedding_are_refused() -> None:
    with pytest.raises(SubspaceError, match="sparse=True"):
        get_peft_model(Net(nn.Embedding(5, 4, sparse=True)), SubspaceConfig(method="lora", target_modules=["target"]))


def test_dropout_is_refused_where_a_forward_of_its_own_leaves_no_place_for_it() -> None:
    for method, refused in (("lora", True), ("ssb", False)):
        config = SubspaceConfig(method=method, r=2, dropout=0.1, target_modules=["target"])
        if refused:
            with pytest.raises(SubspaceError, match="dropout"):
                get_peft_model(Net(Doubled(6, 9)), config)
        else:
            get_peft_model(Net(Doubled(6, 9)), config)
    get_peft_model(hooked(), SubspaceConfig(method="lora", r=2, dropout=0.1, target_modules=["target"])).train()(rows())
