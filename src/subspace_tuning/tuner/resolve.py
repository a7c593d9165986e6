"""The method of a config: registered, or made from its formula, under its patterns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .. import methods
from ..algebra import parse
from ..errors import SubspaceError
from ..methods import Method
from ..methods.patterns import NONLINEAR, constrained, has_pair, read_patterns

if TYPE_CHECKING:
    from .config import SubspaceConfig


def resolve(config: SubspaceConfig, registered: Method | None) -> Method:
    """Return the method of a config.

    Args:
        config: the config.
        registered: the registered method of its name, or None.

    Raises:
        SubspaceError: the config names no method, or one with another formula or other starts than registered.
    """
    for name in ("method", "formula"):
        if not isinstance(getattr(config, name), (str, type(None))):
            raise SubspaceError(f"{name} = {getattr(config, name)!r} is not a string")
    if not isinstance(config.starts, (Mapping, type(None))):
        raise SubspaceError(f"starts = {config.starts!r} is not a mapping from factors to starts")
    if config.method is None and config.formula is None:
        raise SubspaceError("give a method (see `subspace methods`) or a formula")
    if config.formula is None or registered is not None:
        return _named(config)
    own = methods.from_formula(config.formula, config.starts, config.method or "formula")
    wanted = patterns_of(config, own)
    if has_pair(own.formula) and not own.formula.is_linear:  # a loaded formula already has its nonlinearity
        wanted = tuple(name for name in wanted if name != NONLINEAR)
    return constrained(own, wanted, config.nonlinearity)


def patterns_of(config: SubspaceConfig, method: Method) -> tuple[str, ...]:
    """Return the patterns in effect for a method: the config's, or its own."""
    return method.pattern if config.pattern is None else read_patterns(config.pattern)


def _named(config: SubspaceConfig) -> Method:
    known = methods.get(config.method or "")
    patterned = constrained(known, patterns_of(config, known), config.nonlinearity)
    if config.formula is not None and parse(config.formula) not in (known.formula, patterned.formula):
        raise SubspaceError(
            f"method {known.name!r} is {known.formula} here, not {config.formula}: the adapter comes from "
            "another version, or both a method and a formula are given (dataclasses.replace sets one to None)"
        )
    if config.starts and config.starts != dict(known.starts):
        own_starts = ", ".join(f"{name} at {start}" for name, start in known.starts.items()) or "inferred ones"
        raise SubspaceError(f"starts are for formulas, and method {known.name!r} has its own ({own_starts})")
    return patterned
