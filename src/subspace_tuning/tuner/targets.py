"""Targets of an adapter: the modules that a config or a placement names, all checked before the first is replaced."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import get_pattern_key
from torch import nn

from ..algebra.nodes import Affine, Matrix
from ..errors import SubspaceError
from ..methods import EVERY_BIAS
from ..methods.roles import FFN_GATE, FFN_IN, FFN_OUT
from .budget import allocate, matrix_shape
from .calling import own_forward_problem
from .compat import include_all_linear_layers
from .config import SubspaceConfig
from .entries import check_method
from .exact import exactly
from .fused import check_part, parts_of
from .kinds import kind_of, supported
from .parameters import check_parameter, parameters, unadapted
from .part import Columns, ParameterPart
from .placement import by_role
from .recognise import in_short
from .validate import check_rank
from .walking import modules_of
from .weights import check_weight, whole

_FFN = {FFN_IN, FFN_GATE, FFN_OUT}


class NothingToAdaptError(SubspaceError, NoMatchingPeftModuleError):
    """The targets of an adapter match no module of the model."""


def targets(model: nn.Module, config: SubspaceConfig) -> list[tuple[str, nn.Module]]:
    """Return the modules and the parameters that a config with ``target_modules`` adapts, with their names."""
    modules = [(name, module) for name, module in modules_of(model) if check_target_module_exists(config, name)]
    found: list[tuple[str, nn.Module]] = []
    for name, module in modules:
        parts = parts_of(model, config, name, module)
        found += [(name, module)] if parts is None else parts.items()
    return [*found, *parameters(model, config)]


def place(model: nn.Module, config: SubspaceConfig) -> None:
    """Set a config's ``target_modules``, if missing, to its method's placement in this model.

    A config that names parameters gets none. Limits to some layers become part of the expression and are removed from
    the config.
    """
    if config.target_modules is not None:
        return
    if config.target_parameters:
        config.target_modules = set()  # type: ignore[assignment]  # as peft expects
        return
    chosen = placement(model, config)
    if isinstance(chosen, str):
        config.target_modules = chosen
        config.layers_to_transform = config.layers_pattern = None
    else:
        config.target_modules = set(chosen)  # type: ignore[assignment]  # as peft expects


def placement(model: nn.Module, config: SubspaceConfig) -> list[str] | str:
    """Return the targets of a method in this model, from its placement."""
    method = config.resolved
    uncalled = _uncalled(model)
    modules = [(name, module) for name, module in modules_of(model) if not name.startswith(uncalled)]
    if method.placement == EVERY_BIAS:
        names = [name for name, module in modules if kind_of(module) and getattr(module, "bias", None) is not None]
    else:
        model_type = BaseTuner.get_model_config(model).get("model_type")
        found = by_role(modules, None if model_type == "custom" else model_type, method.placement)
        if found is None:
            raise SubspaceError(
                "Please specify `target_modules` in `peft_config`: nothing in this model"
                f"{_typed(model_type)} can be recognised as a block with attention or a feed-forward network. "
                f"{_known(model)}"
            )
        names = [name for name, _ in modules if isinstance(found, str) and re.fullmatch(found, name)]
        if isinstance(found, str) and not names:
            raise NothingToAdaptError(
                f"Target modules of method {method.name!r} not found in the base model: it has no "
                f"{', '.join(method.placement)}"
            )
        if config.layers_to_transform is None or not isinstance(found, str):
            return found
    chosen = [name for name in names if _selected(config, name)]
    if not chosen:
        raise NothingToAdaptError(f"method {method.name!r} finds nothing to adapt in this model{_limits(config)}")
    return exactly(chosen, (name for name, _ in modules))


def check_targets(model: nn.Module, config: SubspaceConfig) -> None:
    """Check every targeted module before the first one is replaced."""
    everything = config.target_modules == "all-linear"
    include_all_linear_layers(config, model)
    found = targets(model, config)
    if not found:
        given = config.target_modules or ()
        shown = given if isinstance(given, str) else sorted([*given, *(config.target_parameters or ())])
        raise NothingToAdaptError(
            f"Target modules {shown} not found in the base model{_limits(config)}. {_known(model)}"
        )
    uncalled = _uncalled(model)
    for name, module in found:
        if isinstance(module, ParameterPart):
            check_parameter(name, module, config)
        elif isinstance(module, Columns):
            check_part(name, module, config)
        elif name.startswith(uncalled):
            raise SubspaceError(
                f"{name} is part of a MultiheadAttention, which reads its weight without calling it; leave it "
                "out with exclude_modules"
            )
        with whole(module):
            _check_target(name, module, config)
    whole_names = [name.rpartition(".")[0] if isinstance(module, Columns) else name for name, module in found]
    _warn_of_left_out(model, config, whole_names, everything)
    _warn_of_ranks(found, config)


def check_choice(model: nn.Module, config: SubspaceConfig) -> None:
    """Choose what needs no data, and refuse what should have been chosen from data and was not."""
    method = config.resolved
    if method.needs_calibration and not config.calibrated:
        raise SubspaceError(
            f"method {method.name!r} chooses what it trains from data: config = calibrate(model, config, batches) "
            "with a few batches, then use that config"
        )
    if method.chooses_by_weight and config.entries is None:
        config.entries = allocate(config, targets(model, config))


def _check_target(name: str, module: nn.Module, config: SubspaceConfig) -> None:
    check_weight(module, name)
    kind, method = kind_of(module), config.resolved
    check_method(method, module, name)
    if kind is None:
        raise SubspaceError(
            f"Target module {name} ({type(module).__name__}) is not supported. Currently, only the following modules "
            f"are supported: {supported()}"
        )
    kind.check(module, name)
    problem = own_forward_problem(module, kind, method, config.dropout)
    if problem is not None:
        raise SubspaceError(f"{name}: {problem}; or leave it out with exclude_modules")
    expression = method.formula.expression
    bias_alone = isinstance(expression, Affine) and expression.matrix == Matrix("W")
    if method.formula.wraps_norm and not kind.wrappable:
        raise SubspaceError(
            f"{name} is a {type(module).__name__}; {method.name!r} wraps normalisations of the last dimension only"
        )
    if kind.only_bias and not bias_alone and not method.formula.wraps_norm:
        raise SubspaceError(
            f"{name} is a {type(module).__name__}, which has no matrix, so {method.name!r} has nothing to adapt"
        )
    if bias_alone and getattr(module, "bias", None) is None:
        raise SubspaceError(f"method {method.name!r} trains biases, and {name} has none")
    if method.formula.has_rank:
        check_rank(name, rank_of(config, name), *matrix_shape(module))


def _warn_of_ranks(found: list[tuple[str, nn.Module]], config: SubspaceConfig) -> None:
    """Warn once if the rank is above min(n, m) of a matrix, where rank min(n, m) would reach as much."""
    method = config.resolved
    if config.inference_mode or method.formula.wraps_norm or not (method.formula.has_rank or config.directions):
        return
    paired = config.init_weights and "paired" in method.starts_for().values()
    if paired and (odd := [name for name, _ in found if rank_of(config, name) % 2]):
        warnings.warn(
            f"rank {rank_of(config, odd[0])} of {odd[0]} is odd: reflections start in pairs, and the unpaired last "
            "one stays at zero; choose an even rank",
            stacklevel=2,
        )
    wanted = {name: max(rank_of(config, name), config.directions) for name, _ in found}
    narrow = [(name, *matrix_shape(module)) for name, module in found if wanted[name] > min(matrix_shape(module))]
    if narrow:
        (name, n, m), others = narrow[0], f" and of {len(narrow) - 1} more" * (len(narrow) > 1)
        capped = method.takes_triples or config.directions
        instead = (
            "it has only that many singular triples, and uses all of them" if capped else "a higher rank adds nothing"
        )
        warnings.warn(
            f"rank {wanted[name]} is above min(n, m) = {min(n, m)} of {name} ({n} x {m}){others}: {instead}",
            stacklevel=2,
        )


def rank_of(config: SubspaceConfig, name: str) -> int:
    """Return a module's rank in a config: 0 if a mask was chosen instead of a low-rank term."""
    rank, chooser = int(by_pattern(config, config.rank_pattern, name, config.r)), config.resolved.chooser
    return rank if chooser is None else chooser.rank(rank, (config.entries or {}).get(name, [0])[0])


def by_pattern(config: SubspaceConfig, patterns: dict[str, Any], name: str, default: Any) -> Any:
    """Return the value for the expression that matches a name, or the name of a part's module, or the default."""
    whole_name = name.rpartition(".")[0]
    if config.parts_of(whole_name) is not None:
        default = patterns.get(get_pattern_key(list(patterns), whole_name), default)
    return patterns.get(get_pattern_key(list(patterns), name), default)


def _uncalled(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the names of modules whose forward is never called."""
    return tuple(f"{name}." for name, module in modules_of(model) if isinstance(module, nn.MultiheadAttention))


def _selected(config: SubspaceConfig, name: str) -> bool:
    """Return whether the config's limits allow a module of its placement; peft applies limits only to suffixes."""
    by_suffix = copy.copy(config)
    by_suffix.target_modules = [name.rpartition(".")[2]]
    in_layer = config.layers_to_transform is None or "." in name
    return in_layer and bool(check_target_module_exists(by_suffix, name))


def _limits(config: SubspaceConfig) -> str:
    """Return the settings that restrict the targets further, as text."""
    limits = ("layers_to_transform", "layers_pattern", "exclude_modules", "modules_to_save")
    given = [f"{name}={getattr(config, name)!r}" for name in limits if getattr(config, name) not in (None, [], set())]
    return f" (with {', '.join(given)})" if given else ""


def _warn_of_left_out(model: nn.Module, config: SubspaceConfig, found: Sequence[str], everything: bool) -> None:
    """Warn of listed targets that match nothing, and of weights that no module holds, where they may be missed."""
    listed = () if isinstance(config.target_modules, str) or everything else config.target_modules or ()
    for field, ends in {"target_modules": listed, "target_parameters": config.target_parameters or ()}.items():
        unmatched = sorted(end for end in ends if not any(name == end or name.endswith(f".{end}") for name in found))
        if unmatched:
            warnings.warn(f"{field} {', '.join(unmatched)} match nothing in the model", stacklevel=3)
            everything = True
    by_role = not config.target_parameters and set(config.resolved.placement) & _FFN
    if (everything or by_role) and (missed := unadapted(model, {*found})):
        named = [*dict.fromkeys(".".join(name.split(".")[-2:]) for name in missed)]
        warnings.warn(
            f"left out: {in_short(missed)}, which are parameters that no linear layer holds; to adapt them give "
            f"target_parameters={named}",
            stacklevel=3,
        )


def _typed(model_type: str | None) -> str:
    return "" if model_type in (None, "custom") else f" of type {model_type!r}"


def _known(model: nn.Module) -> str:
    """Return the existing modules as text, by the ends of their names, without repetition."""
    ends = {name.rpartition(".")[2] for name, module in modules_of(model) if name and kind_of(module)}
    return f"Modules that exist: {', '.join(sorted(ends))}"
