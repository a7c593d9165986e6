"""Every kind of module: the adapted output is that of the module itself with phi(W), formed by hand, as its weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from subspace_tuning import SubspaceConfig, SubspaceLayer, methods
from subspace_tuning.algebra import Plan, plan

from .conftest import EVERY, FORMULA, SAME_FORMULA, Variant

RANK, ALPHA = 3, 6.0


def image(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def tokens() -> Tensor:
    return torch.randint(0, 11, (2, 5))


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(6, 9), image(2, 3, 6)),
    "linear, one row": (lambda: nn.Linear(9, 6), image(9)),
    "linear, no bias": (lambda: nn.Linear(6, 9, bias=False), image(4, 6)),
    "conv1d of transformers": (lambda: Conv1D(9, 6), image(2, 3, 6)),
    "embedding": (lambda: nn.Embedding(11, 6), tokens),
    "embedding, padding": (lambda: nn.Embedding(11, 6, padding_idx=0), tokens),
    "embedding, scaled": (lambda: Gemma3TextScaledWordEmbedding(11, 6, 0, embed_scale=3.0), tokens),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), image(2, 4, 9)),
    "conv1d, same": (lambda: nn.Conv1d(4, 6, 4, padding="same"), image(2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 7, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), image(2, 3, 8, 8)),
    "conv2d, reflect": (lambda: nn.Conv2d(3, 7, 3, padding=2, padding_mode="reflect"), image(2, 3, 8, 8)),
    "conv2d, circular": (lambda: nn.Conv2d(3, 7, 3, padding=1, padding_mode="circular"), image(2, 3, 6, 6)),
    "conv2d, groups": (lambda: nn.Conv2d(8, 12, 3, groups=4, padding=1, stride=2), image(2, 8, 7, 7)),
    "conv2d, no batch": (lambda: nn.Conv2d(3, 7, 3, bias=False), image(3, 6, 6)),
    "conv2d, depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1), image(2, 6, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 5, 2, stride=2), image(2, 2, 4, 4, 4)),
    "conv3d, groups": (lambda: nn.Conv3d(4, 6, (1, 3, 3), groups=2, padding=(0, 1, 1)), image(1, 4, 2, 5, 5)),
}


class Net(nn.Module):
    def __init__(self, target: nn.Module) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        return self.target(x)  # type: ignore[no-any-return]


def matrix_of(module: nn.Module) -> Tensor:
    """W, n x m, of a module; the inverse is :func:`with_weight`."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator,union-attr,assignment]
    if isinstance(module, (nn.Embedding, Conv1D)):
        return weight
    return weight.reshape(len(weight), -1).T


def with_weight(module: nn.Module, matrix: Tensor, bias_delta: Tensor | None = None) -> nn.Module:
    changed = copy.deepcopy(module)
    if not isinstance(module, (nn.Embedding, Conv1D)):
        matrix = matrix.T.reshape(module.weight.shape)  # type: ignore[union-attr,arg-type]
    changed.weight.data.copy_(matrix)  # type: ignore[union-attr,operator]
    if getattr(module, "padding_idx", None) is not None:  # torch never trains this row
        changed.weight.data[module.padding_idx] = module.weight.data[module.padding_idx]  # type: ignore[operator,union-attr,index]
    if bias_delta is not None:
        changed.bias.data.add_(bias_delta)  # type: ignore[union-attr,operator]
    return changed


# phi(W) in plain torch, once more and without the package: name -> f(W, factors, s)


def spectrum(W: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    U, S, right = torch.linalg.svd(W.double(), full_matrices=False)
    signs = torch.sign(U.gather(0, U.abs().argmax(0, keepdim=True)))
    return (U * signs)[:, :rank].float(), S[:rank].float(), (right.T * signs)[:, :rank].float()


def sam_parser(W: Tensor, f: Any, s: float) -> Tensor:
    U, S, V = spectrum(W)
    return U @ torch.diag(S + f["sigma"]) @ V.T


def svdiff(W: Tensor, f: Any, s: float) -> Tensor:
    U, S, V = spectrum(W)
    return U @ torch.diag(torch.relu(S + f["D"])) @ V.T


def spectral(W: Tensor, f: Any, s: float) -> Tensor:
    U, S, V = spectrum(W, RANK)
    return (U + f["A"]) @ torch.diag(S) @ (V + f["B"]).T + W - U @ torch.diag(S) @ V.T


def dora(W: Tensor, f: Any, s: float) -> Tensor:
    turned = W + s * f["A"] @ f["B"]
    return turned / turned.norm(dim=0) * (W.norm(dim=0) + f["D"])


def pissa(W: Tensor, f: Any, s: float) -> Tensor:
    U, S, V = spectrum(W, RANK)
    A, B = U * (S / s).sqrt(), (V * (S / s).sqrt()).T
    return W + s * ((A + f["A"]) @ (B + f["B"]) - A @ B)


def flora(W: Tensor, f: Any, s: float) -> Tensor:
    """The full core; on a convolution by Tucker's product, axis by axis (C1, C2, C3 are offsets from the identity)."""
    A, G, B = f["A"], f["G"], f["B"]
    sides = [f[name] + torch.eye(*f[name].shape) for name in ("C1", "C2", "C3") if name in f]
    core = G.view(A.shape[1], *(side.shape[1] for side in sides), G.shape[1])
    core = torch.tensordot(A, core, dims=([1], [0]))
    for axis, side in enumerate(sides, start=1):
        core = torch.tensordot(core, side, dims=([axis], [1])).movedim(-1, axis)
    delta = torch.tensordot(core, B, dims=([core.dim() - 1], [0]))
    return W + s * delta.reshape(W.shape)


PHI: dict[str, Callable[[Tensor, Any, float], Tensor]] = {
    "ia3": lambda W, f, s: W * (1 + f["D2"]),
    "ssl": lambda W, f, s: (1 + f["D1"])[:, None] * W,
    "ssb": lambda W, f, s: (1 + f["D1"])[:, None] * W * (1 + f["D2"]),
    "sam_parser": sam_parser,
    "lora": lambda W, f, s: W + s * f["A"] @ f["B"],
    "trilora": lambda W, f, s: W + s * f["A"] @ torch.diag(f["D"]) @ f["B"],
    "flora": flora,
    "moslora": lambda W, f, s: W + s * f["A"] @ f["G"] @ f["B"],
    "adalora": lambda W, f, s: W + s * f["A"] @ torch.diag(f["D"]) @ f["B"],
    "liera": lambda W, f, s: W + s * W * (f["A"] @ f["B"]),
    "pissa": pissa,
    "dora": dora,
    "svdiff": svdiff,
    "spectral": spectral,
    "formula": lambda W, f, s: (1 + f["D1"])[:, None] * W * (1 + f["D2"]) + s * f["A"] @ f["B"],
}


def adapted(kind: str, variant: Variant, **fields: Any) -> tuple[nn.Module, nn.Module, Tensor, dict[str, Tensor]]:
    """Return the adapted net, the module before, an input and the factors."""
    torch.manual_seed(0)
    module = MODULES[kind][0]()
    before = copy.deepcopy(module)
    config = variant.config(**{"r": RANK, "alpha": ALPHA, "init_weights": False, "target_modules": ["target"]} | fields)
    model = get_peft_model(Net(module), config).eval()
    layer = next(m for m in model.modules() if isinstance(m, SubspaceLayer))
    factors = {name: parameter.detach() for name, parameter in layer.subspace_params["default"].items()}
    return model, before, MODULES[kind][1](), factors


def test_the_formulas_by_hand_cover_the_methods() -> None:
    assert FORMULA == "D1 @ W @ D2 + s * A @ B"
    registered = {"bitfit", "parallel_adapter"} | PHI.keys() - {"formula"}
    assert registered <= {variant.name for variant in EVERY} | SAME_FORMULA.keys()
    assert all(methods.get(name).formula == methods.get(same).formula for name, same in SAME_FORMULA.items())


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", PHI)
def test_the_output_is_that_of_the_module_with_phi(name: str, kind: str) -> None:
    model, before, x, factors = adapted(kind, Variant(name))
    phi = PHI[name](matrix_of(before), factors, ALPHA / RANK)
    expected = with_weight(before, phi)(x)
    assert (expected - before(x)).abs().max() > 1e-3
    for training in (False, True):  # each has its own plan
        torch.testing.assert_close(model.train(training)(x), expected, rtol=1e-4, atol=1e-5)
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [name for name, (build, _) in MODULES.items() if getattr(build(), "bias", None) is not None]
)
def test_bitfit_moves_the_bias(kind: str) -> None:
    model, before, x, factors = adapted(kind, Variant("bitfit"))
    expected = with_weight(before, matrix_of(before), factors["delta"])(x)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(3, 6)], ids=["layer", "group"])
def test_bitfit_moves_the_bias_of_a_norm(norm: nn.Module) -> None:
    before = copy.deepcopy(norm)
    model: Any = get_peft_model(
        Net(norm), SubspaceConfig(method="bitfit", init_weights=False, target_modules=["target"])
    )
    delta = model.base_model.model.target.subspace_params["default"]["delta"]
    x = torch.randn(4, 6)
    torch.testing.assert_close(model(x), before(x) + delta)
    assert torch.equal(model.merge_and_unload()(x), model(x))
    images = torch.randn(2, 6, 3, 3)
    if isinstance(norm, nn.GroupNorm):
        net: Any = get_peft_model(
            Net(copy.deepcopy(before)), SubspaceConfig(method="bitfit", init_weights=False, target_modules=["target"])
        )
        delta = net.base_model.model.target.subspace_params["default"]["delta"]
        torch.testing.assert_close(net(images), before(images) + delta[:, None, None])


@pytest.mark.parametrize("kind", MODULES)
def test_a_nonlinear_method(kind: str) -> None:
    model, before, x, factors = adapted(kind, Variant("parallel_adapter"))
    A, B = factors["A"], factors["B"]
    if kind.startswith("embedding"):
        scale = getattr(before, "embed_scale", 1.0)
        change = torch.relu(F.embedding(x, A)) @ B * scale
        expected = before(x) + change * (x != (-1 if before.padding_idx is None else before.padding_idx)).unsqueeze(-1)
    elif kind.startswith("conv") and kind != "conv1d of transformers":
        groups = before.groups
        window = before.weight.shape[1:]
        inner = copy.deepcopy(before)  # every group has the same bottleneck, then its own columns of B
        inner.weight = nn.Parameter(A.T.reshape(-1, *window).repeat(groups, *(1 for _ in window)))
        inner.bias = None
        width = A.shape[1]
        channel = x.dim() - before.weight.dim() + 1
        bottleneck = torch.relu(inner(x)).split(width, channel)
        parts = zip(bottleneck, B.split(B.shape[1] // groups, 1), strict=True)
        added = torch.cat(
            [torch.tensordot(h.movedim(channel, -1), b, 1).movedim(-1, channel) for h, b in parts], channel
        )
        expected = before(x) + added
    else:
        expected = before(x) + torch.relu(x @ A) @ B
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", [*PHI, "parallel_adapter"])
def test_dropout_acts_in_training_alone(name: str, kind: str) -> None:
    model, _, x, factors = adapted(kind, Variant(name), dropout=0.5)
    plain = adapted(kind, Variant(name))[0]
    assert torch.equal(model(x), plain(x))
    outputs = [model.train()(x) for _ in range(8)]
    added = "A" in factors and not kind.startswith("embedding")  # an embedding's rows are indices
    assert all(torch.equal(output, outputs[0]) for output in outputs) == (not added)
    outputs[0].square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if "subspace_params" in parameter_name:
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", ["ssb", "lora", "dora", "pissa"])
@pytest.mark.parametrize("groups", [2, 32])
def test_a_convolution_in_groups_costs_what_the_frozen_one_costs(name: str, groups: int) -> None:
    x = torch.randn(2, 32, 24, 24)
    frozen = nn.Sequential(nn.Conv2d(32, 32, 3, groups=groups))
    operations = []
    for model in (
        frozen,
        get_peft_model(copy.deepcopy(frozen), SubspaceConfig(method=name, r=2, target_modules=["0"])),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        operations.append(counter.get_total_flops())
    assert operations[1] < 1.2 * operations[0]


def test_plans_follow_the_layer_to_another_type_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SubspaceConfig(formula="D1 @ W @ D2 + s * A @ B", r=2, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Linear(6, 9)), config)
    devices: list[str] = []

    def record(*args: Any, device: str, **kwargs: Any) -> Plan:
        devices.append(device)
        return plan(*args, **kwargs)

    monkeypatch.setattr("subspace_tuning.tuner.layer.plan", record)
    model.double()
    assert devices == []
    model.to("meta")
    assert devices == ["meta", "meta"]  # in training, in evaluation
