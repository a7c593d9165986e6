"""Checks the factors in a file against its config."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from ..algebra.names import started
from ..errors import SubspaceError
from ..methods import Method


def check_modules(parameters: Collection[str], source: str) -> None:
    """Raise SubspaceError if an adapter is on parameters, whose factors may be stacks of matrices."""
    if parameters:
        raise SubspaceError(
            f"adapter {source!r} is on parameters, such as {min(parameters)}, and only modules are read from files: "
            "attach it to its model with PeftModel.from_pretrained"
        )


def check_factors(
    source: str, module: str, method: Method, r: int, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor]
) -> None:
    """Raise SubspaceError if a layer lacks a factor, has one too many, or has one whose shape contradicts another.

    Args:
        source: the adapter, as named in the message.
        module: the layer.
        method: its method, whose formula determines the shapes.
        r: its rank in the config.
        parameters: the trained factors.
        constants: the constants saved with them.
    """
    formula, place = method.formula, f"adapter {source!r}, {module}"
    for name in formula.trainable:
        if name not in parameters:
            raise SubspaceError(f"{place}: the factor {name} of {formula} is missing: the file is damaged")
    for name in parameters:
        if name not in formula.trainable:
            raise SubspaceError(f"{place}: {name} is not a factor of {formula}: the file belongs to another adapter")
    sizes = {} if method.chooses_form else {"r": r}  # it gives a matrix rank 0 or none of the entries
    for name, tensor in {**parameters, **constants}.items():
        shape = formula.shapes.get((started(name) or name) if name in constants else name)
        if shape is None or name in formula.masked:
            continue
        if name in formula.spectral and tensor.dim() == 1:  # a diagonal is stored as its vector
            shape = shape[:1]
        if tensor.dim() != len(shape):
            raise SubspaceError(f"{place}: {name} has {tensor.dim()} dimensions, and {formula} needs {len(shape)}")
        for dimension, size in zip(shape, tensor.shape, strict=True):
            if sizes.setdefault(dimension, size) != size:
                raise SubspaceError(
                    f"{place}: {name} is {' x '.join(map(str, tensor.shape)) or 'a number'}, which does not fit "
                    f"{dimension} = {sizes[dimension]} of the other factors or of the config"
                )
    if {"k", "n", "m"} <= sizes.keys() and sizes["k"] != min(sizes["n"], sizes["m"]):
        raise SubspaceError(f"{place}: it has {sizes['k']} singular values for a {sizes['n']} x {sizes['m']} weight")


def check_against(
    source: str, module: str, method: Method, parameters: Mapping[str, Tensor], weight: Sequence[int]
) -> None:
    """Raise SubspaceError if a factor does not fit the n x m weight that it is for."""
    known = {"n": weight[0], "m": weight[1], "k": min(weight)}
    for name, tensor in parameters.items():
        for dimension, size in zip(method.formula.shapes[name], tensor.shape, strict=True):
            if known.get(dimension, size) != size:
                raise SubspaceError(
                    f"adapter {source!r}, {module}: {name} is {' x '.join(map(str, tensor.shape))}, which does not fit "
                    f"the {weight[0]} x {weight[1]} weight"
                )
