"""The learning rates that follow from formulas in one model (see :mod:`subspace_tuning.theory.travel`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..algebra import Sizes
from ..errors import SubspaceError
from ..theory.rates import ALPHA, RANK, RATE, REFERENCE, matched, travelled
from ..theory.travel import Course, Frozen, course
from .budget import allocate, copies, matrix_shape
from .compat import include_all_linear_layers
from .config import SubspaceConfig
from .kinds import kind_of
from .targets import by_pattern, place, rank_of, targets
from .weights import whole

SAMPLES = 2
"""How many of the matrices of one shape are measured."""

Read = Callable[[str, nn.Module], Frozen]


def derived_rate(config: SubspaceConfig, model: nn.Module, read: Read | None = None) -> float:
    """Return the learning rate at which a method travels as far in a model as LoRA does at its default.

    Args:
        config: the adapter.
        model: the model that it is for, without adapters. Of a model without weights only the shapes count, unless
            ``read`` is given.
        read: returns W and bias of a module of a model without weights, by its name.

    Returns:
        The peak rate, rounded to two digits.

    Raises:
        SubspaceError: no rate follows: what is trained is chosen from data, the formula does not move, or only
            embeddings are adapted.
    """
    return Rates(model, read).derived(config)


class Rates:
    """The derived rates of many configs in one model. The arguments are those of ``derived_rate``."""

    def __init__(self, model: nn.Module, read: Read | None = None) -> None:
        self._model, self._read = model, read or _drawn
        self._known: dict[str, Frozen] = {}
        self._distance: float | None = None

    def derived(self, config: SubspaceConfig) -> float:
        """Return the rate of a config. Raises SubspaceError if none follows."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an inferred placement; attaching warns again
            return float(f"{matched(self._courses(config), self._reference(config)):.1e}")

    def _reference(self, config: SubspaceConfig) -> float:
        """Return the travel of LoRA where it is placed by default; where nothing is, on the config's own targets."""
        if self._distance is not None:
            return self._distance
        reference = SubspaceConfig(method=REFERENCE, r=RANK, alpha=ALPHA)
        try:
            self._distance = travelled(self._courses(reference), RATE)
        except SubspaceError:
            own = {name: getattr(config, name) for name in ("target_modules", "target_parameters", "parts")}
            return travelled(self._courses(replace(reference, **own)), RATE)
        return self._distance

    def _courses(self, config: SubspaceConfig) -> list[Course]:
        """Return the courses of a config's matrices, by shape. Raises SubspaceError if there are none."""
        config = self._placed(config)
        groups: dict[tuple[Sizes, float, bool], list[tuple[str, nn.Module]]] = {}
        for name, module in targets(self._model, config):
            kind = kind_of(module)
            if kind is not None and not kind.one_hot:  # of an embedding's rows, each is trained in few steps
                key = (*_sizes(config, name, module), getattr(module, "bias", None) is not None)
                groups.setdefault(key, []).append((name, module))
        if not groups:
            raise SubspaceError("no learning rate follows from a formula that adapts no linear layers, only embeddings")
        return [
            course
            for (sizes, scale, _), modules in groups.items()
            for course in self._group(config, sizes, scale, modules)
        ]

    def _placed(self, config: SubspaceConfig) -> SubspaceConfig:
        """Return a copy of a config with its targets, and with as many entries as it will choose in each."""
        if config.resolved.needs_calibration:  # of which G knows nothing: they are those with large gradients
            raise SubspaceError(
                "no learning rate follows from a formula if what it trains is chosen from data, by the gradients there"
            )
        config = replace(config)
        place(self._model, config)
        include_all_linear_layers(config, self._model)
        if config.resolved.chooses_by_weight and config.entries is None:
            config.entries = allocate(config, targets(self._model, config))
        return config

    def _group(
        self, config: SubspaceConfig, sizes: Sizes, scale: float, modules: Sequence[tuple[str, nn.Module]]
    ) -> Iterator[Course]:
        """Yield the courses of a few of the matrices of one shape, each standing for its share of all."""
        count = min(SAMPLES, len(modules))
        chosen = [modules[(2 * place + 1) * len(modules) // (2 * count)] for place in range(count)]
        share = sum(copies(module) for _, module in modules) / count
        method = config.resolved.on_axes(len(sizes.window)) if sizes.window else config.resolved
        for seed, (name, module) in enumerate(chosen):
            yield course(method, self._frozen(name, module), sizes, scale, copies=share, seed=100 * seed)

    def _frozen(self, name: str, module: nn.Module) -> Frozen:
        if name not in self._known:
            weight = getattr(module, "weight", None)  # some quantised layers have none
            absent = isinstance(weight, Tensor) and weight.is_meta
            self._known[name] = self._read(name, module) if absent else _held(module)
        return self._known[name]


def _sizes(config: SubspaceConfig, name: str, module: nn.Module) -> tuple[Sizes, float]:
    """Return the dimensions of a config's formula on a module, and the scale."""
    n, m = matrix_shape(module)
    kind, method = kind_of(module), config.resolved
    assert kind is not None
    rank = method.rank_in(n, m, rank_of(config, name))
    entries = (config.entries or {}).get(name, [0])[0]
    sizes = Sizes(n, m, rank, entries, min(config.directions, n, m), kind.window(module))
    return sizes, config.scale(by_pattern(config, config.alpha_pattern, name, config.alpha), rank)


def _held(module: nn.Module) -> Frozen:
    """Return the frozen tensors of a module; of a stack of matrices the first."""
    kind = kind_of(module)
    assert kind is not None
    with whole(module):
        W = kind.matrix(kind.numbers(module)).detach()
        bias: Tensor | None = getattr(module, "bias", None)
        return Frozen(W if W.dim() == 2 else W[0], None if bias is None else bias.detach(), epsilon_of(module))


def _drawn(name: str, module: nn.Module) -> Frozen:
    """Return normal numbers in the shape of W, of the size that keeps that of the rows."""
    n, m = matrix_shape(module)
    if epsilon_of(module) is not None:
        return Frozen(torch.ones(n, m), torch.zeros(m), epsilon_of(module))
    W = torch.randn(n, m, generator=torch.Generator().manual_seed(0)) / math.sqrt(n)
    return Frozen(W, None if getattr(module, "bias", None) is None else torch.zeros(m))


def epsilon_of(module: nn.Module) -> float | None:
    """Return the epsilon of a normalisation of the last dimension, None for another module."""
    return module.eps if isinstance(module, nn.LayerNorm) else None
