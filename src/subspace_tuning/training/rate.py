"""The learning rate of a run: the config's, the one that follows from the formula, or the method's constant."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..errors import SubspaceError
from ..models.heads import fresh_modules, outermost, parameter_count
from ..theory.budget import read_budget
from ..tuner import SubspaceConfig
from ..tuner.rates import derived_rate
from ..tuner.sizing import sized
from .attach import build_adapter, default_learning_rate
from .sections import DERIVED, FULL, HEAD, AdapterSection

logger = logging.getLogger(__name__)

_HEAD = 1e-3
"""The head's rate beside a derived one, as in the sweeps that support it."""
_FAR = 5.0
"""How many times a config's rate may be above or below the derived one without a warning."""


@dataclass(frozen=True)
class Rate:
    """The peak learning rate of a run.

    Attributes:
        value: the rate.
        origin: ``given`` in the config, ``derived`` from the formula, or the method's ``constant``.
        derived: the rate that follows from the formula; None if none does.
    """

    value: float
    origin: str
    derived: float | None

    @property
    def head(self) -> float:
        """The rate of the head, unless the config gives one: a derived rate is that of the factors alone."""
        return _HEAD if self.origin == DERIVED else self.value

    def recorded(self) -> dict[str, Any]:
        """Return the entries of a run's record."""
        return {
            "learning_rate": self.value,
            "learning_rate_origin": self.origin,
            "derived_learning_rate": self.derived,
        }


def check_rate(adapter: AdapterSection, given: float | str | None) -> None:
    """Raise SubspaceError if the method is unknown, its formula cannot be read, or no rate can be derived for it."""
    default_learning_rate(adapter)
    if given == DERIVED and _formula(adapter) is None:
        raise SubspaceError(
            f"training.learning_rate=derived has no meaning with method {adapter.method!r}, which is not a formula: "
            "give a number"
        )


def rate_for(model: PreTrainedModel, adapter: AdapterSection, given: float | str | None) -> Rate:
    """Return the learning rate of a run.

    A rate in the config that is far from the derived one causes a warning, where sweeps support the latter.

    Args:
        model: the model with its head, before the method is attached.
        adapter: the method.
        given: the config's rate, "derived", or None.

    Raises:
        SubspaceError: the rate is to be derived, and none follows from the formula.
    """
    config = _formula(adapter)
    derived = None
    if config is not None:
        try:
            derived = _derived(model, adapter, config)
        except SubspaceError as error:
            if given == DERIVED:
                raise SubspaceError(f"training.learning_rate=derived: {error}") from error
            logger.info("%s", error)
    if isinstance(given, str):
        assert derived is not None
        return Rate(derived, DERIVED, derived)
    supported = derived is not None and config is not None and config.resolved.derives_rate
    if given is not None:
        if supported and derived is not None:
            _compare(given, derived)
        return Rate(given, "given", derived)
    if supported and derived is not None:
        return Rate(derived, DERIVED, derived)
    return Rate(default_learning_rate(adapter), "constant", derived)


def _compare(given: float, derived: float) -> None:
    factor = given / derived
    if not 1 / _FAR <= factor <= _FAR:
        far = f"{factor:.3g} times" if factor > 1 else f"1/{1 / factor:.3g} of"
        logger.warning(
            "training.learning_rate is %.3g, %s the %.3g that follows from the formula; learning_rate=derived uses it",
            *(given, far, derived),
        )


def _derived(model: PreTrainedModel, adapter: AdapterSection, config: SubspaceConfig) -> float:
    head = fresh_modules(model) if adapter.head is None else adapter.head
    config.modules_to_save = outermost(model, head) or None
    if adapter.parameters is not None:
        config = sized(model, config, read_budget(adapter.parameters, parameter_count(model)))
    return derived_rate(config, model)


def _formula(adapter: AdapterSection) -> SubspaceConfig | None:
    """Return the adapter's config; None for a method that is not a formula."""
    if adapter.method in (FULL, HEAD):
        return None
    config = build_adapter(adapter, ())
    return config if isinstance(config, SubspaceConfig) else None
