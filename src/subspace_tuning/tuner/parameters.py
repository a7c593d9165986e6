"""Adapters on parameters that no module of a known kind holds, such as experts that share one parameter."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from torch import nn

from ..errors import SubspaceError
from .architectures import TRANSPOSED_EXPERTS
from .calling import forward_slot
from .config import SubspaceConfig
from .kinds import kind_of
from .part import ParameterPart
from .walking import modules_of
from .weights import is_offloaded, is_partitioned


def parameters(model: nn.Module, config: SubspaceConfig) -> list[tuple[str, ParameterPart]]:
    """Return what a config's ``target_parameters`` name, by the parameters' own names.

    They are matched by suffix, and limited to some layers and by ``exclude_modules``, as modules are.
    """
    wanted = copy.copy(config)
    wanted.target_modules = set(config.target_parameters or ())  # type: ignore[assignment]  # as peft expects
    model_type = BaseTuner.get_model_config(model).get("model_type")
    return [
        (full, ParameterPart(module, own, _is_transposed(config, model_type, full, module)))
        for name, module in modules_of(model)
        for own, parameter in module._parameters.items()
        if parameter is not None
        and config.target_parameters
        and check_target_module_exists(wanted, full := f"{name}.{own}".removeprefix("."))
    ]


def _is_transposed(config: SubspaceConfig, model_type: str | None, name: str, module: nn.Module) -> bool:
    """Whether a parameter is in x out: as the config says, else as its module does, else as its model's type has it."""
    if config.transposed_parameters is not None:
        return any(name == end or name.endswith(f".{end}") for end in config.transposed_parameters)
    stacked = module._parameters[name.rpartition(".")[2]].dim() == 3  # type: ignore[union-attr]
    return stacked and bool(getattr(module, "is_transposed", model_type in TRANSPOSED_EXPERTS))


def check_parameter(name: str, part: ParameterPart, config: SubspaceConfig) -> None:
    """Raise SubspaceError if a parameter cannot be adapted, or not by this method."""
    method, owner, kind = config.resolved, part.owner, type(part.owner).__name__
    if "." not in name:
        raise SubspaceError(f"target_parameters: {name} is a parameter of the model itself, which nothing can replace")
    if kind_of(owner) is not None:
        module = name.rpartition(".")[0]
        raise SubspaceError(f"target_parameters: {name} is a tensor of a {kind}; name {module} in target_modules")
    if part.weight.dim() not in (2, 3):
        raise SubspaceError(
            f"target_parameters: {name} has {part.weight.dim()} dimensions; a matrix has 2, a stack of experts 3"
        )
    if is_offloaded(owner) or is_partitioned(part.weight):
        where = "offloaded" if is_offloaded(owner) else "held in parts by ZeRO-3"
        raise SubspaceError(f"target_parameters: {name} is {where}, so its module cannot read phi(W) in its place")
    if forward_slot(owner) is None:
        raise SubspaceError(f"target_parameters: the forward of the {kind} that reads {name} was replaced: put it back")
    if not method.formula.is_linear:
        raise SubspaceError(
            f"method {method.name!r} has a nonlinearity, which acts on rows, and {name} is a parameter that its module "
            "reads as a matrix: choose a method that merges"
        )
    if method.formula.names_bias:
        raise SubspaceError(f"method {method.name!r} changes biases, and {name} is a parameter, which has none")
    if method.chooser is not None:
        raise SubspaceError(
            f"method {method.name!r} chooses what it trains within a budget, which it can in modules alone: leave out "
            f"{name} in target_parameters"
        )
    if config.dropout:
        raise SubspaceError(f"dropout acts on rows, and {name} is a parameter, which has none; set dropout to 0")


@contextmanager
def quiet_of_parameters(config: SubspaceConfig) -> Iterator[None]:
    """Inside, peft does not warn of patterns and exclusions that match no module: they may match a parameter."""
    with warnings.catch_warnings():
        if config.target_parameters:
            for message in ("The following (rank|alpha)_pattern keys", "You have passed exclude_modules"):
                warnings.filterwarnings("ignore", message)
        yield


def unadapted(model: nn.Module, adapted: set[str]) -> list[str]:
    """Return the names of the weights that no module of a known kind holds, without those that are adapted.

    They are experts that share a parameter, and the matrices of routers.
    """
    found = {
        f"{name}.{own}": parameter.dim() == 3
        for name, module in modules_of(model)
        if kind_of(module) is None
        for own, parameter in module._parameters.items()
        if parameter is not None
        and ((parameter.dim() == 3 and "expert" in name.lower()) or (parameter.dim() == 2 and own == "weight"))
    }
    return sorted(found.keys() - adapted, key=lambda name: (not found[name], [*found].index(name)))
