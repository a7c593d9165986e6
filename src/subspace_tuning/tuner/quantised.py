"""Quantised layers: one interface, the door, to the weights of every library that quantises linear layers.

A layer runs in its library's own kernels. A :class:`Door` provides the other operations on its weight; it is chosen by
the layer's type, so only the library of the layer is imported.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, TypeAlias

import torch
from peft.utils.quantization_utils import (
    Bnb4bitBackend,
    Bnb8bitBackend,
    HqqBackend,
    QuantizationBackend,
    TorchaoBackend,
)
from torch import Tensor, nn

from ..algebra.operators import Operator
from ..errors import SubspaceError

_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_UNFINISHED = "is not quantised yet: move the model to the device where it will run"

Settings: TypeAlias = Mapping[str, Any]
"""How a model was quantised, from peft's ``get_quantization_kwargs``."""


class Door(Operator):
    """W of a quantised linear layer, n x m.

    Each library has a subclass that recognises its layers. Everything else has a default that runs the layer.
    """

    library: ClassVar[str]
    has_backward = False  # whether the library's backward pass is right in every version and keeps no dequantised W

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.shape = module.in_features, module.out_features  # type: ignore[assignment]
        held = list(_tensors_of(module))
        self.device = held[0].device
        self.dtype = next((tensor.dtype for tensor in held if tensor.dtype in _PLAIN), torch.float32)

    @classmethod
    @abstractmethod
    def fits(cls, module: nn.Module) -> bool:
        """Return whether a module comes from the library."""

    def problem(self) -> str | None:
        """Return why the layer cannot be adapted in its current state, or None if it can."""
        return None

    def run(self, x: Tensor) -> Tensor:
        """Return the layer's own output, including its bias."""
        return self._with_gradient(partial(type(self.module).forward, self.module), x)

    def multiply(self, x: Tensor) -> Tensor:
        return self._with_gradient(partial(type(self.module).forward, _without_bias(self.module)), x)

    def dequantise(self) -> Tensor:
        with torch.no_grad():
            return self.multiply(torch.eye(self.shape[0], dtype=self.dtype, device=self.device))

    def copied(self) -> nn.Module:
        """Return a copy of the layer. HQQ computes its bias from a trained one, which torch would refuse to copy."""
        computed = {id(held): held.detach().clone() for held in _tensors_of(self.module) if not held.is_leaf}
        return copy.deepcopy(self.module, computed)

    def check_requantising(self, settings: Settings) -> None:
        """Raise SubspaceError if the library cannot quantise a weight again, or needs settings that are unknown."""
        raise self._final()

    def requantised(self, weight: Tensor, settings: Settings) -> nn.Module:
        """Return a copy of the layer with another weight (m x n), quantised in the same way.

        Raises:
            SubspaceError: as ``check_requantising``.
        """
        raise self._final()

    def _final(self) -> SubspaceError:
        return SubspaceError(
            f"a weight of {self.library} cannot be quantised again, so nothing can be merged into it: save the "
            "adapter, and merge it into the model in its original precision"
        )

    def _with_gradient(self, product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.has_backward or not (torch.is_grad_enabled() and x.requires_grad):
            return product(x)
        return _Straight.apply(x, product, self)  # type: ignore[no-any-return, no-untyped-call]


class _Straight(torch.autograd.Function):
    """A layer's product with W, whose gradient dequantises W in the backward pass instead of keeping it.

    Some libraries pass no gradient on, and torchao keeps every dequantised W until the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, product: Callable[[Tensor], Tensor], door: Door) -> Tensor:
        ctx.door = door
        return product(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.door.multiply_transposed(gradient), None, None


class _ByPeft(Door):
    """A weight that peft can dequantise and quantise again."""

    backend: QuantizationBackend

    def dequantise(self) -> Tensor:
        with torch.no_grad():
            return self.backend.get_base_weight(self.module).detach().T

    def check_requantising(self, settings: Settings) -> None:
        """Do nothing: peft can requantise it."""

    def requantised(self, weight: Tensor, settings: Settings) -> nn.Module:
        return self._replaced(weight, self.backend)

    def _replaced(self, weight: Tensor, backend: QuantizationBackend) -> nn.Module:
        # On a copy: peft overwrites the parameter that it replaces.
        layer = SimpleNamespace(base_layer=self.copied())
        layer.get_base_layer = lambda: layer.base_layer
        backend.set_base_weight(layer, weight)
        return layer.base_layer.requires_grad_(False)  # type: ignore[no-any-return]


class _Bitsandbytes4(_ByPeft):
    library = "bitsandbytes, 4 bits"
    has_backward = True
    backend = Bnb4bitBackend()

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.state = getattr(module.weight, "quant_state", None)
        self.dtype = self.dtype if self.state is None else self.state.dtype

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        return _of(_weight_of(module), "bitsandbytes", "Params4bit")

    def problem(self) -> str | None:
        return _UNFINISHED if self.state is None and not self.module.weight.is_meta else None


class _Bitsandbytes8(_ByPeft):
    library = "bitsandbytes, 8 bits"
    has_backward = True
    backend = Bnb8bitBackend()

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        weight = _weight_of(module)
        return _of(weight, "bitsandbytes", "Int8Params") and not weight.has_fp16_weights

    def problem(self) -> str | None:
        return _UNFINISHED if self.module.weight.dtype != torch.int8 else None


class _Torchao(_ByPeft):
    library = "torchao"
    backend = TorchaoBackend(None)

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.dtype = module.weight.dtype  # type: ignore[assignment]

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and _of(_weight_of(module), "torchao")

    def check_requantising(self, settings: Settings) -> None:
        if "get_apply_tensor_subclass" not in settings:
            raise SubspaceError(
                "the model does not record how torchao quantised it, so a merged weight cannot be quantised again: "
                "load it with from_pretrained and a quantization_config, or merge the saved adapter into the original"
            )

    def requantised(self, weight: Tensor, settings: Settings) -> nn.Module:
        return self._replaced(nn.Parameter(weight, requires_grad=False), TorchaoBackend(**settings))


class _Hqq(_ByPeft):
    library = "HQQ"
    backend = HqqBackend()

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        return isinstance(getattr(module, "W_q", None), Tensor) and _has(module, "dequantize")

    def check_requantising(self, settings: Settings) -> None:
        if not type(self.module).__module__.startswith("hqq."):  # similar, but not HQQ's own
            Door.check_requantising(self, settings)


class _Packed(Door):
    """GPTQ and AWQ."""

    library = "GPTQ or AWQ"

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        return isinstance(getattr(module, "qweight", None), Tensor) and _has(module)


class _Float8(Door):
    """A layer with a float8 weight and its own forward, which applies the scales."""

    library = "float8"

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        weight = _weight_of(module)
        own = isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
        return own and type(weight) is nn.Parameter and weight.dtype.itemsize == 1 and weight.is_floating_point()


class _Own(Door):
    """A layer with a door's own methods: ``multiply``, ``multiply_transposed`` and ``dequantise``."""

    library = "the layer's own kind"

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        return _has(module, "multiply", "multiply_transposed", "dequantise")

    def multiply(self, x: Tensor) -> Tensor:
        return self._with_gradient(self.module.multiply, x)  # type: ignore[arg-type]

    def multiply_transposed(self, y: Tensor) -> Tensor:
        return self.module.multiply_transposed(y)  # type: ignore[no-any-return, operator]

    def dequantise(self) -> Tensor:
        with torch.no_grad():
            return self.module.dequantise()  # type: ignore[no-any-return, operator]


DOORS: list[type[Door]] = [_Own, _Bitsandbytes4, _Bitsandbytes8, _Torchao, _Hqq, _Packed, _Float8]
"""The known kinds of quantised layers. The first that fits is used."""


def door_of(module: nn.Module) -> Door | None:
    """Return the door to a quantised layer's weight, or None if a module is not quantised in a known way."""
    return next((door(module) for door in DOORS if door.fits(module)), None)


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _weight_of(module: nn.Module) -> Any:
    """Return a module's own parameter, bypassing properties and attributes of subclasses."""
    return module.__dict__.get("_parameters", {}).get("weight")


def _of(weight: Any, package: str, name: str | None = None) -> bool:
    """Return whether a tensor's type belongs to a package."""
    own = type(weight)
    return own.__module__.partition(".")[0] == package and name in (None, own.__name__)


def _has(module: nn.Module, *methods: str) -> bool:
    """Return whether a module has its sizes as attributes, and these methods."""
    sizes = all(isinstance(getattr(module, size, None), int) for size in ("in_features", "out_features"))
    return sizes and all(callable(getattr(module, method, None)) for method in methods)


def _without_bias(module: nn.Module) -> nn.Module:
    """Return a copy without the bias that shares everything else. The module may be running in another thread."""
    if getattr(module, "bias", None) is None:
        return module
    bare = copy.copy(module)
    for held in ("_parameters", "_buffers"):
        bare.__dict__[held] = dict(bare.__dict__[held])
    bare.bias = None  # type: ignore[assignment]
    return bare
