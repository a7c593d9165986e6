"""Every kind of quantised linear layer that runs here, built from a plain one, and layers of our own for the rest."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subspace_tuning.tuner.unpacked import keep_unpacked

Quantise = Callable[[nn.Linear], nn.Module]


def of_torchao(name: str, **fields: object) -> Quantise:
    def build(linear: nn.Linear) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantization = pytest.importorskip("torchao.quantization")
            holder = nn.Sequential(copy.deepcopy(linear))
            given = {key: value() if callable(value) else value for key, value in fields.items()}
            quantization.quantize_(holder, getattr(quantization, name)(**given))
        return holder[0]

    return build


def _groups() -> object:
    return pytest.importorskip("torchao.quantization").PerGroup(16)


def of_bitsandbytes(kind: str, double: bool = False) -> Quantise:
    def build(linear: nn.Linear) -> nn.Module:
        layers = pytest.importorskip("bitsandbytes").nn
        sizes = linear.in_features, linear.out_features, linear.bias is not None
        if kind == "int8":
            layer = layers.Linear8bitLt(*sizes, has_fp16_weights=False)
        else:
            layer = layers.Linear4bit(*sizes, compute_dtype=torch.float32, compress_statistics=double, quant_type=kind)
        layer.load_state_dict(linear.state_dict())
        keep_unpacked(layer)  # as `load` does, so that a base is the same with and without an adapter
        return layer.to("cpu").requires_grad_(False)  # type: ignore[no-any-return]

    return build


def of_hqq(linear: nn.Linear) -> nn.Module:
    quantize = pytest.importorskip("hqq.core.quantize")
    config = quantize.BaseQuantizeConfig(nbits=4, group_size=16)
    trained = copy.deepcopy(linear).requires_grad_()  # as in a model that is quantised after it was loaded
    layer = quantize.HQQLinear(trained, config, compute_dtype=torch.float32, device="cpu")
    return layer.requires_grad_(False)  # type: ignore[no-any-return]


def of_gptq(linear: nn.Linear) -> nn.Module:
    layers = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    bits, size = 4, 16
    groups = linear.weight.detach().view(linear.out_features, -1, size)
    low, high = groups.amin(-1), groups.amax(-1)
    scales = (high - low) / (2**bits - 1)
    layer = layers.TorchLinear(
        bits, size, False, False, linear.in_features, linear.out_features, bias=linear.bias is not None
    )
    numbers = torch.arange(linear.in_features, dtype=torch.int32) // size
    layer.pack_original(linear, scales, (-low / scales).round(), numbers)
    layer.post_init()
    return layer.eval().float()  # type: ignore[no-any-return]


class Codes(nn.Module):
    """A layer with one scale per row, as the libraries that are not installed here hold theirs."""

    codes_name = "codes"

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scales = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scales", scales)
        self.register_buffer(self.codes_name, (linear.weight.detach() / scales).round().to(torch.int8))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)

    def _numbers(self) -> Tensor:
        return getattr(self, self.codes_name).float() * self.scales  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():  # a kernel without a gradient
            return F.linear(x, self._numbers(), self.bias)


class Packed(Codes):
    """As GPTQ's: no way to the numbers but running the layer."""

    codes_name = "qweight"


class HalfQuadratic(Codes):
    """As HQQ's."""

    codes_name = "W_q"

    def dequantize(self) -> Tensor:
        return self._numbers()


class WithDoor(Codes):
    """A layer that offers the door's three methods itself. It counts how often it is asked for its entries."""

    asked = 0

    def multiply(self, x: Tensor) -> Tensor:
        return x @ self._numbers().T

    def multiply_transposed(self, y: Tensor) -> Tensor:
        return y @ self._numbers()

    def dequantise(self) -> Tensor:
        self.asked += 1
        return self._numbers().T


class Float8(nn.Linear):
    """A float8 weight with a scale, and a forward that knows it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        self.requires_grad_(False)
        self.register_buffer("weight_scale", self.weight.abs().amax() / 448)
        self.weight.data = (self.weight.data / self.weight_scale).to(torch.float8_e4m3fn)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.weight_scale, self.bias)


FORMS: dict[str, tuple[Quantise, float]] = {
    "torchao int8": (of_torchao("Int8WeightOnlyConfig"), 1e-4),
    "torchao int4": (of_torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=_groups), 1e-4),
    "torchao float8": (of_torchao("Float8WeightOnlyConfig"), 1e-4),
    "torchao int8, rows too": (of_torchao("Int8DynamicActivationInt8WeightConfig"), 0.03),
    "bitsandbytes int8": (of_bitsandbytes("int8"), 1e-4),
    "bitsandbytes nf4": (of_bitsandbytes("nf4"), 1e-4),
    "bitsandbytes nf4, double": (of_bitsandbytes("nf4", double=True), 1e-4),
    "bitsandbytes fp4": (of_bitsandbytes("fp4"), 1e-4),
    "HQQ": (of_hqq, 1e-4),
    "GPTQ": (of_gptq, 1e-4),
    "as GPTQ": (Packed, 1e-4),
    "as HQQ": (HalfQuadratic, 1e-4),
    "own door": (WithDoor, 1e-4),
    "own float8": (Float8, 1e-4),
}
"""What quantises a linear layer, and how far its products may be from those of the dequantised weight."""
