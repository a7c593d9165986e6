"""Matrix pattern constraints: the rewriting, the penalties, and what they leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer, methods
from subspace_tuning.methods import patterns
from subspace_tuning.tuner.penalties import orthogonality, penalty

WITH_PAIR = [known.name for known in methods.every() if patterns.has_pair(known.formula)]
NAMED = "adalora dora flexlora flora houlsby liera lora lora_dash milora moslora parallel_adapter pfeiffer pissa"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 12)
        self.second = nn.Linear(12, 8)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = self.second(torch.tanh(self.first(x)))
        return Outputs(y, None if labels is None else (y - labels).square().mean())


class Outputs:
    def __init__(self, logits: Tensor, loss: Tensor | None) -> None:
        self.logits, self.loss = logits, loss


def adapted(method: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"r": 3, "target_modules": ["first", "second"]} | fields
    if method == "lora_dash":
        options.setdefault("schedule", {"directions": 2})
    return get_peft_model(Net(), SubspaceConfig(method=method, **options))


def usable(name: str) -> bool:
    return not methods.get(name).needs_calibration and not methods.get(name).formula.wraps_norm


def by_hand(model: Any, pattern: str) -> Tensor:
    """The mean of the paper's definition on whole matrices, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    layers = [module for module in model.modules() if isinstance(module, SubspaceLayer)]
    for layer in layers:
        A, B = layer.factor("A").double(), layer.factor("B").double()
        eye = torch.eye(A.shape[1], dtype=torch.float64)
        right = B @ B.T
        total = total + torch.linalg.matrix_norm(A.T @ A - eye) ** 2
        other = eye if pattern == "orthogonal" else torch.diag(torch.diagonal(right))
        total = total + torch.linalg.matrix_norm(right - other) ** 2
    return total / len(layers)


def test_the_methods_with_factors_a_and_b() -> None:
    assert set(WITH_PAIR) >= set(NAMED.split())
    assert not {"ssb", "spectral", "bitfit", "sam_parser", "fishmask"} & set(WITH_PAIR)


@pytest.mark.parametrize("pattern", patterns.PENALTIES)
@pytest.mark.parametrize("method", [name for name in WITH_PAIR if usable(name)])
def test_the_penalty_joins_the_loss_in_training(method: str, pattern: str) -> None:
    model = adapted(method, pattern=pattern, pattern_weight=0.3, init_weights=False)
    x, labels = torch.randn(4, 10), torch.randn(4, 8)
    loss, plain = model.train()(x, labels=labels).loss, model.eval()(x, labels=labels).loss
    torch.testing.assert_close(loss - plain, 0.3 * by_hand(model, pattern).float(), rtol=1e-4, atol=1e-4)
    loss.backward()
    for layer in (module for module in model.modules() if isinstance(module, SubspaceLayer)):
        for name in ("A", "B"):
            assert layer.subspace_params["default"][name].grad.abs().sum() > 0
    found = penalty(model)
    assert found is not None
    torch.testing.assert_close(found, 0.3 * by_hand(model, pattern).float(), rtol=1e-4, atol=1e-5)


def test_without_a_pattern_nothing_is_added() -> None:
    model = adapted("lora").train()
    assert penalty(model) == 0.0
    x, labels = torch.randn(4, 10), torch.randn(4, 8)
    assert torch.equal(model(x, labels=labels).loss, model.eval()(x, labels=labels).loss)


def test_adalora_has_its_own_pattern_and_can_do_without() -> None:
    assert penalty(adapted("adalora")) > 0
    assert penalty(adapted("adalora", pattern="none")) == 0.0


@pytest.mark.parametrize("pattern", patterns.PENALTIES)
def test_a_stock_lora_model_of_peft(pattern: str) -> None:
    torch.manual_seed(0)
    stock = get_peft_model(Net(), LoraConfig(r=3, target_modules=["first", "second"], init_lora_weights=False))
    ours = adapted("lora")
    for layer, theirs in zip(
        (m for m in ours.modules() if isinstance(m, SubspaceLayer)),
        (m for m in stock.modules() if hasattr(m, "lora_A") and len(m.lora_A)),
        strict=True,
    ):
        layer.subspace_params["default"]["A"].data.copy_(theirs.lora_A["default"].weight.T)
        layer.subspace_params["default"]["B"].data.copy_(theirs.lora_B["default"].weight.T)
    found = penalty(stock, pattern=pattern, weight=0.5)
    assert found is not None
    torch.testing.assert_close(found, 0.5 * by_hand(ours, pattern).float(), rtol=1e-4, atol=1e-5)
    found.backward()
    assert orthogonality(stock).keys() == orthogonality(ours).keys()
    with pytest.raises(SubspaceError, match="no active adapter of the model has factors A and B"):
        penalty(adapted("ssb"), pattern=pattern)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), m=st.integers(1, 9), r=st.integers(1, 5))
def test_the_penalty_is_computed_on_small_gram_matrices(n: int, m: int, r: int) -> None:
    A, B = torch.randn(n, r, dtype=torch.float64), torch.randn(r, m, dtype=torch.float64)
    eye = torch.eye(r, dtype=torch.float64)
    orthogonal = (A.T @ A - eye).square().sum() + (B @ B.T - eye).square().sum()
    torch.testing.assert_close(patterns.penalty(A, B, ["orthogonal"]), orthogonal)
    off = B @ B.T
    diagonal = (A.T @ A - eye).square().sum() + (off - torch.diag(torch.diagonal(off))).square().sum()
    torch.testing.assert_close(patterns.penalty(A, B, ["diagonal"]), diagonal)
    both = patterns.penalty(A, B, ["orthogonal", "diagonal"])
    torch.testing.assert_close(both, orthogonal + diagonal)
    assert torch.autograd.gradcheck(
        lambda a, b: patterns.penalty(a, b, ["orthogonal", "diagonal"]), (A.requires_grad_(), B.requires_grad_())
    )


def test_orthonormal_factors_have_no_penalty() -> None:
    A, B = torch.linalg.qr(torch.randn(9, 4).double())[0], torch.linalg.qr(torch.randn(7, 4).double())[0].T
    assert patterns.penalty(A, B, ["orthogonal"]) < 1e-20
    assert patterns.penalty(A, torch.diag(torch.tensor([3.0, 2, 1, 0]).double()) @ B, ["diagonal"]) < 1e-20
    measured = patterns.orthogonality(A, 3.0 * B)
    assert measured.A < 1e-10 and measured.cosine_A < 1e-10 and measured.cosine_B < 1e-10
    assert pytest.approx(8.0 * 2.0) == measured.B  # |9 I - I| in four dimensions


def test_a_nonlinearity_at_scale_one_is_the_parallel_adapter() -> None:
    lora = adapted("lora", pattern="nonlinear", alpha=3.0, init_weights=False).eval()
    adapter = adapted("parallel_adapter", init_weights=False).eval()
    adapter.load_state_dict(lora.state_dict())
    x = torch.randn(5, 10, requires_grad=True)
    outputs = [model(x).logits for model in (lora, adapter)]
    assert torch.equal(*outputs)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        ("lora", "W + s * A @ relu @ B"),
        ("trilora", "W + s * A @ relu @ D @ B"),
        ("flora", "W + s * A @ relu @ G @ B"),
        ("lora_dash", "W + s * A @ relu @ B + U_k @ diag(d) @ V_k.T"),
    ],
)
def test_where_the_nonlinearity_stands(method: str, formula: str) -> None:
    known = methods.get(method)
    changed = patterns.constrained(known, ["nonlinear"])
    assert str(changed.formula) == formula
    assert dict(changed.starts_for()) == dict(known.starts_for())
    assert changed.counted is not None and changed.count == known.count
    assert "gelu" in str(patterns.constrained(known, ["nonlinear"], "gelu").formula)
    assert patterns.constrained(known, ["orthogonal"]) is known


def test_patterns_combine() -> None:
    model = adapted("trilora", pattern="orthogonal+nonlinear", pattern_weight=0.1, init_weights=False)
    layer = next(module for module in model.modules() if isinstance(module, SubspaceLayer))
    assert str(layer.method["default"].formula) == "W + s * A @ relu @ D @ B"
    assert penalty(model) is not None
    config = SubspaceConfig(method="lora", pattern=["nonlinear", "orthogonal"])
    assert config.patterns == ("orthogonal", "nonlinear")


def test_a_pattern_is_saved_and_loaded(tmp_path: Any) -> None:
    for fields in ({"method": "lora"}, {"formula": "W + A @ G @ B"}):
        config = SubspaceConfig(pattern="nonlinear", **fields)
        config.save_pretrained(str(tmp_path))
        loaded = SubspaceConfig.from_pretrained(str(tmp_path))
        assert loaded.resolved.formula == config.resolved.formula
        assert "relu" in str(loaded.resolved.formula)
