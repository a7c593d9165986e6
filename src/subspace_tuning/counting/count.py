"""Counting trainable parameters without weights: the model is built on the meta device from its configuration."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peft import PeftConfig, TaskType, get_peft_model
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import SubspaceError
from ..methods import HOSTED
from ..methods.selections import greedy_fit
from ..models.heads import head_modules, parameter_count
from ..models.meta import architecture_of, without_weights
from ..models.vocabulary import NEW_ROWS
from ..theory.budget import read_budget
from ..tuner import SubspaceConfig, SubspaceLayer
from ..tuner.budget import allocate, budget_of
from ..tuner.exact import exactly
from ..tuner.hosting import with_adapter
from ..tuner.sizing import peft_config, sized
from ..tuner.targets import place, targets


@dataclass(frozen=True)
class Count:
    """What one method trains in one model: the head is not in ``trainable``, but is part of ``total``."""

    method: str
    rank: int | None
    matrices: int
    trainable: int
    total: int

    @property
    def per_mille(self) -> float:
        """Return the trainable parameters in per mille of all."""
        return 1000 * self.trainable / self.total


def count(name: str, configs: Iterable[SubspaceConfig]) -> Iterator[Count]:
    """Count what each config trains, in a fresh model each. Raises SubspaceError as ``count_in`` does."""
    architecture = architecture_of(name)
    return (count_in(architecture, config) for config in configs)


def count_of(architecture: PretrainedConfig, config: PeftConfig, method: str, budget: int | None = None) -> Count:
    """Count what a method of either kind trains, at the size in its config or at the size closest to a budget.

    Raises:
        SubspaceError: the method does not fit the model.
    """
    if isinstance(config, SubspaceConfig):
        return count_in(architecture, config if budget is None else matched(architecture, config, budget))
    return count_hosted(architecture, method, getattr(config, HOSTED[method].size))


def count_in(architecture: PretrainedConfig, config: SubspaceConfig) -> Count:
    """Count what a config trains.

    A mask chosen from data counts as its budget, spread evenly; biases chosen from data count as the first ones that
    fill the budget. Trained rows of the embeddings count as well.

    Raises:
        SubspaceError: the adapter does not fit the model.
    """
    model = without_weights(architecture)
    total = parameter_count(model)
    config = dataclasses.replace(config, modules_to_save=head_modules(model))
    layers = adapt(model, config).values()
    trainable = sum(parameter.numel() for layer in layers for parameter in layer.subspace_params.parameters())
    trainable += sum(rows.numel() for name, rows in model.named_parameters() if NEW_ROWS in name)
    method = config.resolved
    matrices = sum(layer.copies for layer in layers)
    return Count(method.name, config.r if method.formula.has_rank else None, matrices, trainable, total)


def count_hosted(architecture: PretrainedConfig, name: str, rank: int) -> Count:
    """Count what one of peft's own methods trains. Raises SubspaceError if it does not fit the model."""
    common = {"task_type": TaskType.SEQ_CLS, "modules_to_save": head_modules(without_weights(architecture))}
    return count_peft(architecture, peft_config(HOSTED[name], rank, common), name, rank)


def count_peft(architecture: PretrainedConfig, config: PeftConfig, name: str, rank: int | None) -> Count:
    """Count what a config of peft's own classes trains outside the head.

    Args:
        architecture: the model's configuration.
        config: the config, with the head among its ``modules_to_save``.
        name: the name of the method for the result, or of one of ``HOSTED``.
        rank: its rank, for the result.

    Raises:
        SubspaceError: the adapter does not fit the model.
    """
    model = without_weights(architecture)
    total = parameter_count(model)
    try:
        with _quiet():
            adapted = with_adapter(model, config, name)
    except SubspaceError:
        raise
    except (ValueError, AttributeError, TypeError, KeyError, NotImplementedError) as error:  # peft raises many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SubspaceError(f"not for this model: {reason}") from error
    named = adapted.named_parameters()
    trainable = sum(p.numel() for key, p in named if p.requires_grad and ".modules_to_save." not in key)
    layers = sum(isinstance(module, SubspaceLayer) for module in adapted.modules())
    return Count(name, rank, layers, trainable, total)


def budget_in(architecture: PretrainedConfig, budget: str) -> int:
    """Return a budget such as "300k" or "0.3permille" as a number of a model's parameters."""
    return read_budget(budget, parameter_count(without_weights(architecture)))


def matched(architecture: PretrainedConfig, config: SubspaceConfig, budget: int) -> SubspaceConfig:
    """Return the config with the rank, or the number of entries, closest to a budget (see ``sized``)."""
    return sized(without_weights(architecture), config, budget)


def adapt(model: PreTrainedModel, config: SubspaceConfig) -> dict[str, SubspaceLayer]:
    """Attach an adapter to a model without weights; return its layers by the names of the modules they wrap."""
    if config.resolved.needs_calibration:
        config = _evenly(model, config)
    with _quiet():
        get_peft_model(model, config)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SubspaceLayer)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings that only matter for an adapter to be trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _evenly(model: nn.Module, config: SubspaceConfig) -> SubspaceConfig:
    place(model, config)
    found = targets(model, config)
    if config.resolved.formula.masked:
        return config.with_choice(entries=allocate(config, found))
    sizes = {name: int(module.bias.numel()) for name, module in found}  # type: ignore[operator]
    chosen = greedy_fit(sizes, budget_of(config, sum(sizes.values())))
    return config.with_choice(target_modules=exactly(chosen, (name for name, _ in model.named_modules())))
