"""The laws of numbers and devices: low precision, gradient scaling, an accelerator against the CPU if one is there."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from subspace_tuning.methods import Method

from .modules import KINDS, Net, fits
from .registry import METHODS, method_id
from .test_layer_laws import config_of

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
CASES = [
    pytest.param(case, kind, id=f"{method_id(case)}-{kind}", marks=[] if kind == "linear" else [pytest.mark.slow])
    for kind in KINDS
    for case in METHODS
    if fits(case, kind)
]
LOW = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
cases = pytest.mark.parametrize(("case", "kind"), CASES)
needs_cuda = pytest.mark.skipif(not CUDA, reason="compares an accelerator with the CPU")


class Both:
    """An adapted network on the CPU with random factors, an input, and its output and gradients."""

    def __init__(self, case: Method, kind: str) -> None:
        torch.manual_seed(0)
        self.base, self.x = Net(kind), KINDS[kind][1]()
        self.model: Any = get_peft_model(copy.deepcopy(self.base), config_of(case, kind, init_weights=False)).train()
        self.upstream = torch.randn(self.model(self.x).shape)
        self.drawn = case.formula.has_gates  # in training another device draws other gates
        if self.drawn:
            self.model.eval()
        self.y, self.gradients = self.passes(self.model)

    def passes(self, model: Any, device: str = "cpu") -> tuple[Tensor, dict[str, Tensor]]:
        """Return the output of a forward pass and the gradients of a backward pass."""
        model.zero_grad()
        x = self.x.detach().to(device)
        x = x.requires_grad_() if x.is_floating_point() else x
        y = model(x)
        (y.float() * self.upstream.to(device)).sum().backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        return y.detach(), found | ({"x": x.grad} if x.grad is not None else {})

    def agrees(self, y: Tensor, gradients: dict[str, Tensor], tolerance: float = 2e-5) -> None:
        """Check an output and gradients against those on the CPU, relative to their size."""
        assert gradients.keys() == self.gradients.keys()
        assert off(y, self.y) < tolerance
        whole = torch.stack([gradient.norm() for gradient in self.gradients.values()]).norm()
        for name, gradient in gradients.items():
            # The gradient of one number is a sum of many that cancel.
            least = 0.05 * float(whole) if gradient.dim() == 0 else 1e-6
            assert off(gradient, self.gradients[name], least) < 2 * tolerance, name


def off(found: Tensor, wanted: Tensor, least: float = 1e-30) -> float:
    """Return how far a tensor is off another one, relative to its size, or to ``least`` if it is smaller."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / wanted.norm().clamp_min(least))


@pytest.fixture(autouse=True)
def whole_products() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # of convolutions; products are whole by default
    yield
    torch.backends.cudnn.allow_tf32 = before


# Low precision, on whatever device there is


@cases
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_autocast_is_near(case: Method, kind: str, dtype: torch.dtype) -> None:
    both = Both(case, kind)
    model = copy.deepcopy(both.model).to(DEVICE)
    with torch.autocast(DEVICE, dtype):
        y, gradients = both.passes(model, DEVICE)
    both.agrees(y, gradients, 0.05)


@cases
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_base_of_low_precision_trains(case: Method, kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base, x = Net(kind).to(DEVICE, dtype), KINDS[kind][1]().to(DEVICE)
    model: Any = get_peft_model(base, config_of(case, kind, init_weights=False)).train()
    y = model(x.to(dtype) if x.is_floating_point() else x)
    y.float().sum().backward()
    assert y.dtype == dtype
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@cases
def test_skipped_steps_leave_no_trace(case: Method, kind: str) -> None:
    """A gradient scaler that starts too high skips its first steps."""
    torch.manual_seed(2)
    model: Any = get_peft_model(Net(kind).to(DEVICE), config_of(case, kind)).train()
    x = KINDS[kind][1]().to(DEVICE)
    target = torch.randn_like(model(x)).detach()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.numel()]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    scaler, losses = torch.amp.GradScaler(DEVICE, init_scale=2.0**40), []
    for _ in range(40):
        with torch.autocast(DEVICE, torch.float16):
            loss = (model(x).float() - target).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert all(torch.isfinite(parameter).all() for parameter in trained)


# An accelerator against the CPU


@needs_cuda
@cases
def test_a_moved_model_agrees(case: Method, kind: str) -> None:
    both = Both(case, kind)
    both.agrees(*both.passes(copy.deepcopy(both.model).to(DEVICE), DEVICE))


@needs_cuda
@cases
def test_an_adapter_starts_where_the_model_is(case: Method, kind: str) -> None:
    torch.manual_seed(0)
    base, x = Net(kind), KINDS[kind][1]()
    model: Any = get_peft_model(copy.deepcopy(base).to(DEVICE), config_of(case, kind)).eval()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert [name for name, tensor in tensors if tensor.device.type != DEVICE] == []
    assert off(model(x.to(DEVICE)), base(x)) < 2e-5


@needs_cuda
@cases
def test_what_is_saved_there_is_loaded_here_and_there(case: Method, kind: str, tmp_path: Path) -> None:
    both = Both(case, kind)
    wanted = both.model.eval()(both.x)
    copy.deepcopy(both.model).to(DEVICE).save_pretrained(tmp_path)
    for device in ("cpu", DEVICE):
        loaded: Any = PeftModel.from_pretrained(copy.deepcopy(both.base).to(device), tmp_path).eval()
        assert off(loaded(both.x.to(device)), wanted) < 2e-5, device


@needs_cuda
@cases
def test_merging_there(case: Method, kind: str) -> None:
    both = Both(case, kind)
    model = copy.deepcopy(both.model).to(DEVICE).eval()
    layer = model.base_model.model.target
    if not layer.has_dense_form("default"):
        pytest.skip("it has no dense form")
    before = {name: tensor.clone() for name, tensor in layer.get_base_layer().state_dict().items()}
    y = model(both.x.to(DEVICE))
    model.merge_adapter()
    assert off(model(both.x.to(DEVICE)), y) < 5e-5
    model.unmerge_adapter()
    for name, tensor in layer.get_base_layer().state_dict().items():
        assert torch.equal(tensor, before[name])


@needs_cuda
@cases
def test_a_step_waits_for_nothing(case: Method, kind: str) -> None:
    both = Both(case, kind)
    model = copy.deepcopy(both.model).to(DEVICE)
    x, upstream = both.x.to(DEVICE), both.upstream.to(DEVICE)
    for training in (True, False):
        model.train(training)  # which compares W with the one that is known
        with torch.set_grad_enabled(training):
            for _ in range(2):
                y = model(x)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                y = model(x)
                if training:
                    (y * upstream).sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@cases
def test_a_step_is_captured(case: Method, kind: str) -> None:
    both = Both(case, kind)
    model = copy.deepcopy(both.model).to(DEVICE)
    x, upstream = both.x.to(DEVICE), both.upstream.to(DEVICE)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.numel()]

    def step() -> Tensor:
        y: Tensor = model(x)
        (y * upstream).sum().backward()
        return y

    def forget() -> None:
        for parameter in trained:
            parameter.grad = None

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forget()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    forget()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), warnings.catch_warnings():
        y = step()
    graph.replay()
    torch.cuda.synchronize()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    both.agrees(y, gradients | ({"x": both.gradients["x"]} if "x" in both.gradients else {}))


@needs_cuda
def test_the_same_seed_gives_the_same_factors() -> None:
    for case in METHODS:
        if not fits(case, "linear"):
            continue
        found = []
        for device in ("cpu", DEVICE):
            torch.manual_seed(0)
            base: nn.Module = Net("linear").to(device)
            torch.manual_seed(1)
            model = get_peft_model(base, config_of(case, "linear"))
            found.append({name: tensor.detach().cpu() for name, tensor in model.named_parameters()})
        for name, tensor in found[0].items():
            assert off(found[1][name], tensor) < 1e-5 or tensor.norm() < 1e-6, (case.name, name)
