"""phi(W) - W as a product of narrow factors, if the formula allows it, without forming an n x m matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..algebra import Sizes, dense
from ..algebra.narrow_form import chained, narrow_form, with_bias
from ..algebra.shapes import NodeShapes
from ..linalg import Spectrum
from ..methods import Method
from .solve import factored_svd


class Change(NamedTuple):
    """A change of W: left @ right.T, with left n x k and right m x k."""

    left: Tensor
    right: Tensor

    def svd(self) -> Spectrum:
        """Return the singular value decomposition, computed from the factors."""
        return factored_svd(self.left, self.right)

    @property
    def matrix(self) -> Tensor:
        """The product, n x m."""
        return self.left @ self.right.T


def change_of(method: Method, sizes: Sizes, env: Mapping[str, Any]) -> Change | None:
    """Return the change as narrow factors.

    None if the formula is not W plus narrow products (a scale or a normalisation acts on W itself), or if they name W
    or singular vectors of W that are not in ``env``.
    """
    formula = method.formula
    shapes = NodeShapes(formula.shapes, sizes)
    form = narrow_form(with_bias(formula.evaluated)[0], shapes) if formula.is_linear else None
    if form is None or form.left or form.right or not form.cuts:
        return None
    lows = [chained((*cut.scalars, cut.low)) or cut.low for cut in form.cuts]
    highs = [cut.high for cut in form.cuts]
    needed = {name for node in (*lows, *highs) for name in node.names}
    held = {name for name in needed if isinstance(env.get(name), (Tensor, float, int))}
    if held < needed or any(isinstance(env[name], Tensor) and env[name].is_meta for name in held):
        return None
    left = torch.cat([dense(low, env) for low in lows], 1)
    return Change(left, torch.cat([dense(high, env) for high in highs], 0).T)


def summed(changes: list[Change], weights: list[float]) -> Change:
    """Return the exact weighted sum of changes of one matrix, by concatenating their factors."""
    left = torch.cat([weight * change.left for change, weight in zip(changes, weights, strict=True)], 1)
    return Change(left, torch.cat([change.right for change in changes], 1))
