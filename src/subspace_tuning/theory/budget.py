"""Ranks within a parameter budget: uniform, or where they matter most."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..algebra import Sizes
from ..errors import SubspaceError
from ..methods import Method

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(permille|‰|percent|%|k|M|B)?")
_UNITS = {None: 1.0, "": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}
_SHARES = {"permille": 1e-3, "‰": 1e-3, "percent": 1e-2, "%": 1e-2}


def read_budget(text: str, total: int) -> int:
    """Return a budget as a number of parameters.

    Args:
        text: "300k", "1.5M", "300000", or a share of the model as "0.3permille" or "1%".
        total: the parameters of the model.

    Raises:
        SubspaceError: the text has none of these forms, or the number is not between 1 and the total.
    """
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise SubspaceError(f"budget {text!r} is neither a number such as 300k or 1.5M nor a share such as 0.3permille")
    number, unit = float(match[1]), match[2]
    count = round(number * _SHARES[unit] * total) if unit in _SHARES else round(number * _UNITS[unit])
    if not 1 <= count <= total:
        raise SubspaceError(f"budget {text!r} is {count:,} parameters, and the model has {total:,}")
    return count


def parameters(method: Method, sizes: Sequence[Sizes], r: int) -> int:
    """Return how many parameters a method trains on matrices of these sizes at one rank."""
    return sum(method.formula.count(one._replace(r=method.rank_in(one.n, one.m, r))) for one in sizes)


def uniform_rank(method: Method, sizes: Sequence[Sizes], budget: int) -> int:
    """Return the rank whose parameter count is closest to a budget.

    Raises:
        SubspaceError: the method has no rank, so its count is fixed.
    """
    if not method.formula.has_rank:
        raise SubspaceError(
            f"method {method.name!r} has no rank: it trains {parameters(method, sizes, 1):,} parameters, and no budget "
            "changes that"
        )
    highest = max(one.m if method.formula.wraps_norm else min(one.n, one.m) for one in sizes)
    low, high = 1, highest
    while low < high:  # the smallest rank that reaches the budget
        middle = (low + high) // 2
        if parameters(method, sizes, middle) >= budget:
            high = middle
        else:
            low = middle + 1
    below = max(1, low - 1)
    nearer = abs(parameters(method, sizes, below) - budget) <= abs(parameters(method, sizes, low) - budget)
    return below if nearer else low


def spread_ranks(
    spectra: Mapping[str, Tensor], cost: Callable[[str, int], int], budget: int, least: int = 1
) -> dict[str, int]:
    """Allocate a budget over matrices so that their ranks keep most of the sum of squared singular values.

    The next rank always goes where it gains most per parameter. Since gains decrease within a matrix, no other choice
    of the same cost keeps more, up to the last rank.

    Args:
        spectra: the singular values to keep, in falling order, by name of the matrix.
        cost: the parameters of a matrix at a rank.
        budget: the number of parameters.
        least: the minimum rank of every matrix; 0 allows matrices to be left out.

    Raises:
        SubspaceError: the budget is below the least ranks.
    """
    ranks = {name: min(least, len(values)) for name, values in spectra.items()}
    left = budget - sum(cost(name, rank) for name, rank in ranks.items())
    if left < 0:
        raise SubspaceError(f"a budget of {budget:,} parameters is below rank {least} everywhere: {budget - left:,}")
    waiting: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        rank, values = ranks[name], spectra[name]
        if rank < len(values):
            price = cost(name, rank + 1) - cost(name, rank)
            heapq.heappush(waiting, (-(float(values[rank]) ** 2) / price, name))

    for name in spectra:
        offer(name)
    while waiting:
        gain, name = heapq.heappop(waiting)
        price = cost(name, ranks[name] + 1) - cost(name, ranks[name])
        if gain == 0.0 or price > left:
            continue
        ranks[name] += 1
        left -= price
        offer(name)
    return ranks


def energy_rank(values: Tensor, share: float) -> int:
    """Return the lowest rank, at least 1, that keeps a share of the squared singular values (in falling order)."""
    squares = values.double().square().cumsum(0)
    if not len(values) or squares[-1] == 0:
        return 1
    return int((squares < share * squares[-1]).sum()) + 1
