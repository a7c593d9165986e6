"""A weight that is held in an unknown way is refused in one line, and the model stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError

from .conftest import EVERY, Variant


class Packed(Tensor):
    """A tensor that looks like float32 and holds integers, as those of torchao do."""

    @staticmethod
    def __new__(cls, weight: Tensor) -> Packed:
        return Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, weight: Tensor) -> None:
        self.numbers = (100 * weight.detach()).to(torch.int8)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{function} is not defined on packed weights")


class GPTQLinear(nn.Module):
    """A layer with packed numbers that does not tell its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(2, 8, dtype=torch.int32))


def subclassed() -> nn.Module:
    linear = nn.Linear(16, 8)
    linear.weight = nn.Parameter(Packed(linear.weight), requires_grad=False)
    return linear


def scaled_float8() -> nn.Module:
    linear = nn.Linear(16, 8).requires_grad_(False)
    linear.weight.data = linear.weight.data.to(torch.float8_e4m3fn)
    return linear


def of_bitsandbytes(bits: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        bnb = pytest.importorskip("bitsandbytes")
        return bnb.nn.Linear8bitLt(16, 8, has_fp16_weights=False) if bits == 8 else bnb.nn.Linear4bit(16, 8)  # type: ignore[no-any-return]

    return build


QUANTISED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "subclass": (subclassed, r"1 is a Linear whose weight is quantised .*a Packed"),
    "float8": (scaled_float8, r"1 is a Linear whose weight is quantised .*torch\.float8_e4m3fn"),
    "qweight": (GPTQLinear, r"1 is a GPTQLinear whose weight is quantised .*it has qweight"),
    "bitsandbytes, 8 bits": (of_bitsandbytes(8), r"1: the Linear8bitLt is not quantised yet: move the model"),
    "bitsandbytes, 4 bits": (of_bitsandbytes(4), r"1: the Linear4bit is not quantised yet: move the model"),
    "torch": (
        lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 8)))[0],
        r"1 is a Linear whose weight is quantised",
    ),
    "sparse": (
        lambda: _with_weight(torch.eye(8, 16).to_sparse_csr()),
        r"1: the Linear's weight is stored as torch\.sparse_csr; call to_dense\(\) on it first",
    ),
    "complex": (
        lambda: nn.Linear(16, 8, dtype=torch.complex64),
        r"1: the Linear's weight holds torch\.complex64, not floating-point numbers",
    ),
    "lazy": (lambda: nn.LazyLinear(8), r"1: the LazyLinear has no weight yet; run the model once, then adapt it"),
}


def _with_weight(weight: Tensor) -> nn.Module:
    linear = nn.Linear(16, 8)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


FEW = [Variant(name) for name in ("lora", "bitfit", "svdiff", "formula")]


def holding(build: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), build())


@pytest.mark.parametrize(
    ("form", "variant"),
    [
        pytest.param(form, variant, id=f"{form}-{variant}")
        for form in QUANTISED
        for variant in (EVERY if form == "subclass" else FEW)
    ],
)
def test_it_is_refused_by_every_method(form: str, variant: Variant) -> None:
    build, message = QUANTISED[form]
    model = holding(build)
    modules = dict(model.named_modules())
    with pytest.raises(SubspaceError, match=message) as caught:
        get_peft_model(model, variant.config(target_modules=["0", "1"]))
    assert "\n" not in str(caught.value)
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize("form", ["subclass", "float8", "qweight"])
def test_it_is_refused_where_the_file_says_what_is_adapted(form: str) -> None:
    build, message = QUANTISED[form]
    config = SubspaceConfig(method="ssb", target_modules=["0", "1"])
    donor = get_peft_model(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)), config)
    state = {key.replace(".default", ""): value for key, value in donor.base_model.model.state_dict().items()}
    factors = {key: value for key, value in state.items() if "subspace_" in key}
    model = holding(build)
    modules = dict(model.named_modules())
    with pytest.raises(SubspaceError, match=message):
        inject_adapter_in_model(SubspaceConfig(method="ssb", target_modules=["0", "1"]), model, state_dict=factors)
    assert dict(model.named_modules()) == modules


def test_half_precision_is_not_taken_for_quantised() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        model = nn.Sequential(nn.Linear(16, 8, dtype=dtype))
        assert get_peft_model(model, SubspaceConfig(method="ssb", target_modules=["0"])) is not None
