"""Ranks methods and ranks for a model by how much of a known change, or of a task's gradients, each can capture."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import methods
from ..algebra import Sizes
from ..errors import SubspaceError
from ..methods import Method
from ..models.checkpoint import Checkpoint
from ..theory.approximate import approximate
from ..theory.budget import parameters, read_budget, spread_ranks, uniform_rank
from ..theory.search import is_solved_by_blocks
from ..tuner import SubspaceConfig
from ..tuner.calibration import Batch, Loss, evaluating, loss_of
from ..tuner.kinds import kind_of
from ..tuner.parameters import unadapted
from ..tuner.recognise import in_short
from ..tuner.targets import place, targets
from .pairs import check_alike, spectrum

SWEEPS, SETTLED = 20, 1e-3
_STEP = 1e-3  # of ||W||: the step along the gradient to W*, so small that nonlinearity in the factors hardly matters
_EVENLY = "lora"

Moves = Mapping[str, tuple[Tensor, Tensor]]  # W and W* by module


@dataclass(frozen=True)
class Recommendation:
    """The result for one method.

    Attributes:
        method: its name.
        formula: phi(W).
        rank: the rank, or None for a method without one; for ranks by spectrum, the mean rank.
        parameters: the number of trained parameters.
        share: the share of the change's energy, over all matrices that any method adapts, that it captures (0 to 1).
        how: how the shares were computed: exact, iterative or heuristic.
        ranks: the rank of each matrix, if they differ.
    """

    method: str
    formula: str
    rank: float | None
    parameters: int
    share: float
    how: str
    ranks: Mapping[str, int] | None = None


def from_tuned(base: Checkpoint, tuned: Checkpoint) -> dict[str, tuple[Tensor, Tensor]]:
    """Return evidence from a known fine-tune: W and W* of every matrix that a method may adapt."""
    check_alike(base, tuned)
    names = matrices(tuned.model)
    return {name: (base.matrix(name).double(), tuned.matrix(name).double()) for name in names}


def from_gradients(
    model: nn.Module, batches: Iterable[Batch], loss: Loss | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return evidence from a few batches: W, and a small step from it against the loss's gradient.

    All steps have the same ratio to their gradients, so that matrices count by what they would gain.
    """
    modules = {name: model.get_submodule(name) for name in matrices(model)}
    weights = [model.get_parameter(f"{name}.weight") for name in modules]
    totals = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    before = [weight.requires_grad for weight in weights]
    seen = 0
    with evaluating(model):
        for weight in weights:
            weight.requires_grad_(True)
        try:
            for batch in batches:
                for total, gradient in zip(
                    totals, torch.autograd.grad(loss_of(model, batch, loss), weights), strict=True
                ):
                    total += gradient.double()
                seen += 1
        finally:
            for weight, state in zip(weights, before, strict=True):
                weight.requires_grad_(state)
    if not seen:
        raise SubspaceError("there are no batches for the gradients")
    largest = max(
        float(total.norm()) / float(weight.detach().norm()) for total, weight in zip(totals, weights, strict=True)
    )
    if not largest > 0 or not math.isfinite(largest):
        raise SubspaceError("the gradients are zero or not finite: nothing can be recommended")
    found = {}
    for (name, module), weight, total in zip(modules.items(), weights, totals, strict=True):
        kind = kind_of(module)
        assert kind is not None
        W = kind.matrix(weight.detach()).double()
        found[name] = W, W - _STEP / largest * kind.matrix(total)
    return found


def matrices(model: nn.Module) -> list[str]:
    """Return the names of the matrices that any method adapts: those of LoRA's placement."""
    config = SubspaceConfig(method=_EVENLY)
    place(model, config)
    if missed := unadapted(model, set()):
        warnings.warn(f"left out: {in_short(missed)}, since only linear layers are compared", stacklevel=2)
    return [name for name, _ in targets(model, config)]


def candidates() -> tuple[list[Method], list[Method]]:
    """Return the registered methods with a dense phi(W) that changes W, one per formula.

    Returns:
        Those that are solved by blocks, and those that need the general solver, which takes minutes for a large matrix.
    """
    found: dict[str, Method] = {}
    for method in methods.every():
        formula = method.formula
        if formula.is_linear and not formula.wraps_norm and not formula.names_bias and not formula.has_gates:
            key = f"{formula} {method.placement} {method.chooses_by_weight}"
            found.setdefault(key, method)
    sides: dict[bool, list[Method]] = {True: [], False: []}
    for method in found.values():
        sides[is_solved_by_blocks(method.formula.matrix)].append(method)
    return sides[True], sides[False]


def recommend(
    model: nn.Module,
    moves: Moves,
    budget: str,
    chosen: Sequence[Method],
    on_progress: Callable[[str, int, int], None] = lambda what, done, count: None,
) -> list[Recommendation]:
    """Rank methods by the share of the evidence that each can capture within a budget, the best first.

    Args:
        model: the model, with or without weights.
        moves: the evidence, from ``from_tuned`` or ``from_gradients``.
        budget: parameters, "300k" or "0.3permille". Methods without a rank ignore it.
        chosen: the methods.
        on_progress: called with the current stage, and the numbers of finished and of all matrices.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    wanted = read_budget(budget, total)
    energy = sum(float((W_star - W).square().sum()) for W, W_star in moves.values())
    if energy == 0:
        raise SubspaceError("the evidence contains no change: there is nothing to rank by")
    found = []
    for method in chosen:
        names = _placed(model, method, moves)
        if names:
            found.append(_of(method, {name: moves[name] for name in names}, wanted, energy, on_progress))
    if any(method.name == _EVENLY for method in chosen):
        found.append(_by_spectrum(moves, wanted, energy))
    return sorted(found, key=lambda one: -one.share)


def _placed(model: nn.Module, method: Method, moves: Moves) -> list[str]:
    """Return the matrices that a method adapts by default; none if the architecture has no place for it."""
    config = SubspaceConfig(method=method.name)
    try:
        place(model, config)
    except SubspaceError:
        return []
    return [name for name, _ in targets(model, config) if name in moves]


def without_place(model: nn.Module, moves: Moves, chosen: Sequence[Method]) -> list[str]:
    """Return the methods that have nothing to adapt in a model."""
    return [method.name for method in chosen if not _placed(model, method, moves)]


def _of(
    method: Method, moves: Moves, wanted: int, energy: float, on_progress: Callable[[str, int, int], None]
) -> Recommendation:
    sizes = [_sizes(W, 1) for W, _ in moves.values()]
    rank = uniform_rank(method, sizes, wanted) if method.formula.has_rank else None
    entries = dict.fromkeys(moves, 0)
    if method.formula.masked and rank is None:
        area = sum(one.n * one.m for one in sizes)
        entries = {name: max(1, round(wanted * one.n * one.m / area)) for name, one in zip(moves, sizes, strict=True)}
    count, kept, ways = 0, 0.0, set()
    for number, (name, (W, W_star)) in enumerate(moves.items()):
        own = min(rank or 1, *W.shape)
        result = approximate(method, W, W_star, r=own, entries=entries[name] or None, sweeps=SWEEPS, settled=SETTLED)
        count += sum(factor.numel() for factor in result.factors.values())
        kept += float((W_star - W).square().sum()) - result.error**2
        ways.add(result.how)
        on_progress(method.name, number + 1, len(moves))
    worst = next(how for how in ("heuristic", "iterative", "exact") if how in ways)
    return Recommendation(method.name, str(method.formula), rank, count, max(0.0, kept / energy), worst)


def _sizes(W: Tensor, r: int) -> Sizes:
    n, m = W.shape
    return Sizes(n, m, r)


def _by_spectrum(moves: Moves, wanted: int, energy: float) -> Recommendation:
    """Return LoRA with the budget allocated by the spectra of the changes."""
    lora = methods.get(_EVENLY)
    spectra = {name: spectrum(W_star - W) for name, (W, W_star) in moves.items()}
    least = 0 if wanted < parameters(lora, [_sizes(W, 1) for W, _ in moves.values()], 1) else 1
    ranks = spread_ranks(spectra, lambda name, rank: lora.formula.count(_sizes(moves[name][0], rank)), wanted, least)
    kept = sum(float(values[: ranks[name]].square().sum()) for name, values in spectra.items())
    count = sum(lora.formula.count(_sizes(moves[name][0], rank)) for name, rank in ranks.items())
    mean = sum(ranks.values()) / len(ranks)
    return Recommendation("lora, ranks by spectrum", str(lora.formula), mean, count, kept / energy, "exact", ranks)


def as_rows(found: Sequence[Recommendation]) -> list[dict[str, object]]:
    """Return the recommendations as plain data."""
    return [dataclasses.asdict(one) for one in found]
