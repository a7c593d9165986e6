"""phi(W) - W as a product of narrow factors, where a formula makes it one; no n x m matrix is formed then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..algebra import Sizes, dense
from ..algebra.fuse import fuse
from ..algebra.nodes import Number
from ..algebra.plan import shape_in
from ..algebra.svd import Spectrum
from ..methods import Method
from .solve import factored_svd


class Change(NamedTuple):
    """A change of W: left @ right.T, with left n x k and right m x k."""

    left: Tensor
    right: Tensor

    def svd(self) -> Spectrum:
        """Its singular value decomposition, from its factors."""
        return factored_svd(self.left, self.right)

    @property
    def matrix(self) -> Tensor:
        """The product, n x m."""
        return self.left @ self.right.T


def change_of(method: Method, sizes: Sizes, env: Mapping[str, Any]) -> Change | None:
    """Return the change as narrow factors.

    None if the formula is not W plus narrow products (a scale or a normalisation acts on W itself), or if it names
    singular vectors of W that ``env`` does not hold.
    """
    formula = method.formula
    fused = fuse(formula.evaluated, shape_in(formula, sizes)) if formula.is_linear else None
    if fused is None or fused.left is not None or fused.right is not None or not fused.lows:
        return None
    needed = {name for node in (*fused.lows, *fused.highs) for name in node.names}
    if any(not isinstance(env.get(name), (Tensor, float, int)) for name in needed):
        return None
    scale = 1.0
    for scalar in fused.scalars:
        scale *= float(scalar.value if isinstance(scalar, Number) else env["s"])
    left = torch.cat([dense(low, env) for low in fused.lows], 1)
    right = torch.cat([dense(high, env) for high in fused.highs], 0)
    return Change(scale * left, right.T)


def summed(changes: list[Change], weights: list[float]) -> Change:
    """Return the weighted sum of changes of one matrix, exactly: their factors side by side."""
    left = torch.cat([weight * change.left for change, weight in zip(changes, weights, strict=True)], 1)
    return Change(left, torch.cat([change.right for change in changes], 1))
