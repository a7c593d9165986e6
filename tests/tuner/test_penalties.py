"""Penalties act in training exactly once a step, whoever computes the loss, and nowhere else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError, methods, penalty
from subspace_tuning.methods import patterns
from subspace_tuning.tuner import loss as joined

PENALISED: dict[str, dict[str, Any]] = {
    **{
        known.name: {"method": known.name, "pattern": "orthogonal"}
        for known in methods.every()
        if patterns.has_pair(known.formula) and not known.needs_calibration and not known.formula.wraps_norm
    },
    "adalora": {"method": "adalora"},
    "lora-diagonal": {"method": "lora", "pattern": "diagonal"},
    "diff_pruning": {"method": "diff_pruning", "gate_weight": 0.3},
    "own formula": {"formula": "D1 @ W @ D2 + s * A @ B", "pattern": "orthogonal"},
    "own gate": {"formula": "W + gate(L) * Delta", "starts": {"L": "constant(5.0)"}, "gate_weight": 0.3},
}
"""What the configs of penalised adapters have in common is left to ``adapted``."""
SOME = ["lora", "adalora", "pissa", "diff_pruning", "own formula"]

GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(6, 10, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(6, 8, generator=GENERATOR, dtype=torch.float64).sin()


class Outputs:
    def __init__(self, logits: Tensor, loss: Tensor | None) -> None:
        self.logits, self.loss = logits, loss


class Net(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor | None], Any] = Outputs) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 12).double(), nn.Linear(12, 8).double()
        self.form = form

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = self.second(torch.tanh(self.first(x)))
        return self.form(y, None if labels is None else (y - labels).square().mean())


def adapted(name: str = "lora", form: Callable[[Tensor, Tensor | None], Any] = Outputs, **fields: Any) -> Any:
    torch.manual_seed(0)
    options = {"r": 3, "target_modules": ["first", "second"], "init_weights": False, **PENALISED[name], **fields}
    if "pattern" in options or options.get("method") == "adalora":
        options.setdefault("pattern_weight", 0.5)
    if name == "lora_dash":
        options["schedule"] = {"directions": 2}
    return get_peft_model(Net(form), SubspaceConfig(**options)).train()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def stepped(model: Any, loss: Callable[[Any], Tensor], steps: int = 2, **options: Any) -> list[Tensor]:
    """The factors after some steps on a loss."""
    optimizer = torch.optim.SGD(trained(model), lr=0.05, momentum=0.5, **options)
    for _ in range(steps):
        torch.manual_seed(3)  # for gates
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in trained(model)]


def own(model: Any) -> Tensor:
    return model(x=X, labels=Y).loss  # type: ignore[no-any-return]


def elsewhere(model: Any) -> Tensor:
    return (model(x=X).logits - Y).square().mean()


class Sink(torch.autograd.Function):
    """All outputs in one node, as DistributedDataParallel has them; those of no use get no gradient."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(output.clone() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return gradients


def through_a_sink(model: Any) -> Tensor:
    outputs = model(x=X, labels=Y)
    logits, _ = Sink.apply(outputs.logits, outputs.loss)  # type: ignore[no-untyped-call]
    return (logits - Y).square().mean()  # type: ignore[no-any-return]


def differ(a: list[Tensor], b: list[Tensor]) -> bool:
    return any(not torch.allclose(x, y, atol=1e-4) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", PENALISED)
def test_the_penalty_acts_alike_wherever_the_loss_is_computed(name: str) -> None:
    wanted = stepped(adapted(name), own)
    routes: dict[str, Callable[[Any], Tensor]] = {
        "from logits": elsewhere,
        "beside the loss that the model computes": lambda model: (model(x=X, labels=Y).logits - Y).square().mean(),
        "beside that loss, in several processes": through_a_sink,
        "by hand": lambda model: elsewhere(model) + penalty(model),
        "looked at": lambda model: elsewhere(model) + 0.0 * penalty(model).item(),
    }
    for route, loss in routes.items():
        torch.testing.assert_close(stepped(adapted(name), loss), wanted, rtol=1e-10, atol=1e-10, msg=route)
    without = adapted(name, gate_weight=0.0) if "gate_weight" in PENALISED[name] else adapted(name, pattern_weight=0.0)
    assert differ(stepped(without, own), wanted)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    "form",
    [
        lambda logits, loss: (logits,) if loss is None else (loss, logits),
        lambda logits, loss: {"logits": logits, "loss": loss},
        lambda logits, loss: [logits] if loss is None else [loss, logits],
    ],
    ids=["tuple", "dict", "list"],
)
def test_the_loss_of_any_outputs_contains_the_penalty(name: str, form: Any) -> None:
    model = adapted(name, form)

    def loss(model: Any) -> Tensor:
        torch.manual_seed(3)
        outputs = model(x=X, labels=Y)
        return outputs["loss"] if isinstance(outputs, dict) else outputs[0]  # type: ignore[no-any-return]

    logits = model(x=X)
    assert not isinstance(logits, (tuple, list)) or logits[0].shape == Y.shape
    plain = loss(model.eval()) if "gate" not in name and name != "diff_pruning" else None
    if plain is not None:
        torch.testing.assert_close(loss(model.train()), plain + penalty(model))
    torch.testing.assert_close(stepped(model.train(), loss), stepped(adapted(name), own))


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("loss", [own, elsewhere], ids=["own", "elsewhere"])
def test_accumulated_passes_carry_one_penalty_together(name: str, loss: Callable[[Any], Tensor]) -> None:
    def accumulated(model: Any) -> Tensor:
        for _ in range(3):
            torch.manual_seed(3)
            (loss(model) / 4).backward()
        torch.manual_seed(3)
        return loss(model) / 4

    torch.testing.assert_close(stepped(adapted(name), accumulated), stepped(adapted(name), loss))


def test_steps_of_many_kinds_add_the_penalty_once() -> None:
    wanted = stepped(adapted(), own)
    assert not differ(stepped(adapted(), elsewhere, foreach=True), wanted)
    model = adapted()
    optimizer = torch.optim.SGD(trained(model), lr=0.05, momentum=0.5)

    class Wrapper(torch.optim.Optimizer):
        """An optimiser around another, as lookahead and its like are."""

        def __init__(self) -> None:
            super().__init__(optimizer.param_groups, {})

        def step(self, closure: Any = None) -> Any:
            return optimizer.step(closure)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = elsewhere(model)
        loss.backward()
        return loss

    outer = Wrapper()
    value = outer.step(closure)
    torch.testing.assert_close(value, own(adapted()), rtol=1e-5, atol=1e-6)
    optimizer.zero_grad(set_to_none=False)
    elsewhere(model).backward()
    outer.step()
    assert not differ([p.detach() for p in trained(model)], wanted)


def test_an_optimiser_with_a_line_search_sees_the_penalty() -> None:
    ends = []
    for loss in (own, elsewhere):
        model = adapted()
        optimizer = torch.optim.LBFGS(trained(model), lr=0.1, max_iter=4)

        def closure(model: Any = model, optimizer: Any = optimizer, loss: Any = loss) -> Tensor:
            optimizer.zero_grad()
            value: Tensor = loss(model)
            value.backward()
            return value

        optimizer.step(closure)
        ends.append([p.detach() for p in trained(model)])
    assert not differ(*ends)


def test_each_of_several_optimisers_adds_its_own_factors_penalty() -> None:
    wanted = stepped(adapted(), own, steps=1)
    model = adapted()
    elsewhere(model).backward()
    for parameter in trained(model):
        torch.optim.SGD([parameter], lr=0.05).step()
    assert not differ([p.detach() for p in trained(model)], wanted)


def test_a_loss_scale_does_not_scale_the_penalty() -> None:
    wanted = stepped(adapted(), own, steps=1)
    for loss in (own, elsewhere):
        model = adapted()
        optimizer = torch.optim.SGD(trained(model), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(loss(model)).backward()
        scaler.step(optimizer)
        assert not differ([p.detach() for p in trained(model)], wanted)


def test_a_skipped_step_adds_nothing() -> None:
    model = adapted()
    before = [p.detach().clone() for p in trained(model)]
    optimizer = torch.optim.SGD(trained(model), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(elsewhere(model) * float("inf")).backward()
    scaler.step(optimizer)
    assert not differ([p.detach() for p in trained(model)], before)


def test_a_reference_pass_with_the_adapter_disabled_changes_nothing() -> None:
    def preference(model: Any) -> Tensor:
        policy = model(x=X, labels=Y).logits
        with torch.no_grad(), model.disable_adapter():
            model(x=X, labels=Y)
        return (policy - Y).square().mean()

    assert not differ(stepped(adapted(), preference), stepped(adapted(), own))


def test_a_copied_model_is_penalised_like_the_first() -> None:
    model = adapted()
    for loss in (own, elsewhere):
        assert not differ(stepped(copy.deepcopy(model), loss), stepped(adapted(), own))


def test_a_part_of_the_model_that_is_called_alone_is_penalised() -> None:
    def parts(model: Any) -> Tensor:
        net = model.get_base_model()
        return (net.second(torch.tanh(net.first(X))) - Y).square().mean()

    assert not differ(stepped(adapted(), parts), stepped(adapted(), own))


# Where the penalty does not act


def disable(model: Any) -> Any:
    return model.disable_adapter()


@pytest.mark.parametrize("name", PENALISED)
def test_a_disabled_or_merged_adapter_has_no_penalty(name: str) -> None:
    model = adapted(name)
    torch.manual_seed(0)
    plain = Net().train()(x=X, labels=Y).loss
    with model.disable_adapter(), model.disable_adapter():
        assert penalty(model) == 0.0
        torch.testing.assert_close(own(model), plain)
    assert penalty(model) > 0.0
    model.base_model.disable_adapter_layers()
    assert penalty(model) == 0.0
    torch.testing.assert_close(own(model), plain)
    model.base_model.enable_adapter_layers()
    assert penalty(model) > 0.0
    if model.peft_config["default"].resolved.formula.is_linear:
        model.merge_adapter()
        assert penalty(model) == 0.0
        torch.testing.assert_close(own(model), model.eval()(x=X, labels=Y).loss)
        model.train().unmerge_adapter()
        assert penalty(model) > 0.0


@pytest.mark.parametrize("case", ["evaluation", "frozen", "inactive", "disabled"])
def test_the_step_leaves_factors_alone_that_are_not_in_training(case: str) -> None:
    model = adapted()
    factors = trained(model)
    optimizer = torch.optim.SGD(factors, lr=0.05)
    elsewhere(model).backward()
    gradients = [p.grad.clone() for p in factors]  # type: ignore[union-attr]
    before = [p.detach().clone() for p in factors]
    if case == "evaluation":
        model.eval()
    elif case == "frozen":
        model.requires_grad_(False)
    elif case == "disabled":
        model.base_model.disable_adapter_layers()
    else:
        model.add_adapter("other", SubspaceConfig(method="ssb", target_modules=["first"]))
        model.set_adapter("other")
    optimizer.step()
    for factor, gradient, start in zip(factors, gradients, before, strict=True):
        torch.testing.assert_close(factor.detach(), start - 0.05 * gradient)


def test_two_adapters_have_a_penalty_each() -> None:
    model = adapted("lora", pattern_weight=0.5)
    config = {"r": 2, "target_modules": ["second"], "init_weights": False}
    model.add_adapter("other", SubspaceConfig(method="lora", pattern="diagonal", pattern_weight=0.2, **config))
    first = penalty(model)
    model.set_adapter("other")
    second = penalty(model)
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(penalty(model), first + second)
    assert second > 0.0


def test_without_a_penalty_there_is_a_zero_to_add() -> None:
    for name in ("ssb", "lora"):
        model = get_peft_model(Net(), SubspaceConfig(method=name, target_modules=["first"], r=2)).train()
        assert penalty(model) == 0.0 and penalty(model).shape == ()
        (elsewhere(model) + penalty(model)).backward()
    assert penalty(nn.Linear(2, 2)) == 0.0
    assert penalty(nn.ReLU()) == 0.0
    meta = get_peft_model(Net(), SubspaceConfig(method="ssb", target_modules=["first"])).to("meta")
    assert penalty(meta).device.type == "meta"


def test_the_mean_does_not_grow_with_the_model_and_the_sum_does() -> None:
    one = adapted(target_modules=["first"])
    both, summed = adapted(), adapted(pattern_reduction="sum")
    torch.testing.assert_close(penalty(summed), 2.0 * penalty(both))
    torch.testing.assert_close(penalty(both, weight=1.0), 2.0 * penalty(both))
    torch.testing.assert_close(penalty(both, weight=1.0, reduction="sum"), 4.0 * penalty(both))
    torch.testing.assert_close(penalty(one), penalty(adapted(target_modules=["first"], pattern_reduction="sum")))
    stock = get_peft_model(Net(), LoraConfig(r=3, target_modules=["first", "second"])).train()
    mean, total = (penalty(stock, pattern="orthogonal", reduction=way) for way in ("mean", "sum"))
    torch.testing.assert_close(total, 2.0 * mean)
    with stock.disable_adapter():
        assert penalty(stock, pattern="orthogonal") == 0.0
    with pytest.raises(SubspaceError, match="unknown pattern_reduction 'max'"):
        SubspaceConfig(method="lora", pattern="orthogonal", pattern_reduction="max")
    with pytest.raises(SubspaceError, match="unknown reduction 'max'"):
        penalty(both, reduction="max")


def test_a_loop_that_no_route_reaches_is_warned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = 12
    monkeypatch.setattr(joined, "PATIENCE", patience)
    model = adapted()
    factors = trained(model)

    def passes() -> None:
        for _ in range(patience + 2):
            for factor, gradient in zip(factors, torch.autograd.grad(elsewhere(model), factors), strict=True):
                factor.data -= 1e-4 * gradient

    with pytest.warns(UserWarning, match=r"add penalty\(model\) to the loss") as seen:
        passes()
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes()
        stepped(adapted(), elsewhere, steps=patience + 2)
        stepped(adapted(), own, steps=patience + 2)


def test_a_compiled_step_is_penalised() -> None:
    torch._dynamo.reset()
    wanted = stepped(adapted(), own)
    for loss in (own, elsewhere):
        model = adapted()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(own(compiled), own(adapted()))
        ended = stepped(compiled, loss)
        assert not differ(ended, wanted)
