"""How a module is called, and how adapters act if it does more than apply its weight and bias.

Hooks run around the adapted forward. A custom forward of the module runs with phi(W) in place of its weight, so
padding, offsets, scaling and standardisation are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..algebra.evaluate import drops
from ..compat import plain_tensors, tree_leaves
from ..errors import SubspaceError
from ..methods import Method
from .kind import Kind

BASE = "__base__"  # peft's name for "no adapter" in a mixed batch

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]


def the_input(args: Args, kwargs: Kwargs) -> Tensor:
    """Return the single input of a known forward, under whatever name it was passed."""
    inputs = (*args, *kwargs.values())
    if len(inputs) != 1:
        raise TypeError(f"the layer takes one input, got {len(inputs)}")
    return inputs[0]  # type: ignore[no-any-return]


def by_adapter(wanted: Sequence[str], part: Callable[[list[str], list[int]], Tensor]) -> Tensor:
    """Return the rows of a batch with an adapter per row: ``part(names, rows)`` computes those of one adapter."""
    y = None
    for name in dict.fromkeys(wanted):
        rows = [row for row, own in enumerate(wanted) if own == name]
        run = part([] if name == BASE else [name], rows)
        y = run.new_empty(len(wanted), *run.shape[1:]) if y is None else y
        y = y.index_copy(0, torch.tensor(rows, device=run.device), run)
    assert y is not None
    return y


def chosen_rows(x: Tensor, rows: list[int]) -> Tensor:
    """Return some rows of a batch."""
    return x.index_select(0, torch.tensor(rows, device=x.device))


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling the module runs hooks."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def forward_slot(module: nn.Module) -> str | None:
    """Return the attribute that holds the forward of the module's class, or None if another forward replaced it.

    accelerate moves a forward to ``_old_forward`` and calls it from there, between moving inputs and outputs.
    """
    patched = module.__dict__.get("forward")
    if patched is None or getattr(patched, "__func__", None) is type(module).forward:
        return "forward"
    kept = module.__dict__.get("_old_forward") if "_hf_hook" in module.__dict__ else None
    return "_old_forward" if getattr(kept, "__func__", None) is type(module).forward else None


def own_forward_problem(module: nn.Module, kind: Kind, method: Method, dropout: float) -> str | None:
    """Return why a method cannot act through the module's custom forward, or None if it can or need not."""
    patched = forward_slot(module) is None
    if kind.knows(module) and not patched:
        return None
    what = f"this {type(module).__name__} does more than apply its weight and bias"
    formula = method.formula
    if kind.opaque:
        return f"{what}, and its weight is quantised, so no phi(W) can take its place"
    if not formula.is_linear and (formula.wraps_norm or not kind.knows(module)):
        return f"{what}, so only a dense phi(W) can act through its forward, and {method.name!r} has none"
    if dropout and not kind.one_hot and drops(formula):
        return f"{what}, so dropout cannot be limited to the added term; set dropout to 0"
    if formula.is_linear and not _is_replaceable(module):
        return f"{what} and computes its weight itself, so phi(W) cannot replace it"
    if formula.is_linear and formula.names_bias and getattr(module, "bias", None) is None:
        return f"{what} and has no bias, which {method.name!r} changes"
    return None


@contextmanager
def replaced(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Give the module these attributes during the body. Its parameters stay registered and are only shadowed."""
    own = module.__dict__
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            own.pop(name, None)
        own.update(before)


@contextmanager
def tensors_replaced(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace the module's weight and bias, parametrised or not, by these tensors during the body."""
    with ExitStack() as stack:
        for name, tensor in tensors.items():
            if _is_parametrised(module, name):
                computed: nn.Module = module.parametrizations[name]  # type: ignore[index,assignment]
                stack.enter_context(replaced(computed, forward=lambda tensor=tensor: tensor))
            else:
                stack.enter_context(replaced(module, **{name: tensor}))
        yield


def _is_parametrised(module: nn.Module, name: str) -> bool:
    return name in getattr(module, "parametrizations", ())


def _is_replaceable(module: nn.Module) -> bool:
    return "weight" in module._parameters or _is_parametrised(module, "weight")


_METADATA = frozenset(
    "__get__ __repr__ __format__ __len__ size dim ndimension numel stride element_size type get_device is_contiguous "
    "is_floating_point is_complex has_names data_ptr".split()
)


class CalledOnly(torch.Tensor):
    """The frozen weight of a layer whose phi has no dense form, for code that reads it without calling the layer.

    Its dtype, shape and device can be read. Computing with it would ignore the adapter, so that raises. torch's fast
    path for transformer layers falls back to calling the modules when it sees such a tensor.
    """

    method_name: str

    @classmethod
    def of(cls, weight: Tensor, name: str) -> Tensor:
        """Return a weight that raises, naming this method, when it is computed with."""
        own = weight.detach().as_subclass(cls)
        own.method_name = name
        return own

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let metadata pass. Raises SubspaceError for everything else."""
        result = None
        if getattr(func, "__name__", "") in _METADATA:
            with plain_tensors():
                result = func(*args, **(kwargs or {}))
            if not isinstance(result, Tensor):
                return result
        name = next((leaf.__dict__["method_name"] for leaf in tree_leaves(args) if isinstance(leaf, cls)), "its method")
        raise SubspaceError(
            f"the model computes with the weight of a layer instead of calling it, and {name!r} has no dense phi(W) to "
            "give; leave that layer out with exclude_modules, or choose a method that merges"
        )
