"""Least squares for any formula: Gauss-Newton steps with a trust region.

A small Jacobian is formed; a large one is used only through products with vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vjp

from ..algebra import dense
from ..algebra.nodes import Expression
from ..extras import needs
from .elements import Values, trainable

STARTS = 3
STEPS = 200
_SMALL = 2**22  # entries of the largest Jacobian that is formed
_FEW = 128  # unknowns up to which each step is solved by a decomposition of the Jacobian


def least_squares(
    expression: Expression, env: Mapping[str, Any], target: Tensor, root: Tensor | None, seed: int
) -> Values:
    """Return trainable factors at which phi(W) is close to the target.

    Args:
        expression: phi(W).
        env: the environment; the first search starts from its trainable factors.
        target: W*, n x m.
        root: if given, the error is that of root @ phi(W).
        seed: the seed for the noise on the starting points, without which factors at zero may have no gradient.

    Returns:
        The best of a few local minima.

    Raises:
        SubspaceError: SciPy is not installed.
    """
    needs("the search for factors that have no closed form", "theory", "scipy")
    import scipy.optimize
    from scipy.sparse.linalg import LinearOperator

    names = [name for name in trainable(expression) if isinstance(env[name], Tensor)]
    shapes = [env[name].shape for name in names]
    sizes = [shape.numel() for shape in shapes]

    def unpacked(flat: Tensor) -> Values:
        parts = flat.split(sizes)
        return {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}

    def residual(flat: Tensor) -> Tensor:
        difference = dense(expression, {**env, **unpacked(flat)}) - target
        return (difference if root is None else root @ difference).flatten()

    start = torch.cat([env[name].flatten() for name in names])
    generator = torch.Generator().manual_seed(seed)
    small = len(start) * target.numel() <= _SMALL
    best: tuple[float, Tensor] | None = None
    for number in range(STARTS):
        noise = torch.randn(start.shape, generator=generator, dtype=start.dtype)
        spread = start + (0.02 if number == 0 else 0.2) * noise
        found = scipy.optimize.least_squares(
            _on_arrays(residual),
            spread.numpy(),
            jac=_on_points(_matrix if small else partial(_operator, LinearOperator), residual),
            method="trf",
            tr_solver="exact" if len(start) <= _FEW else "lsmr",
            max_nfev=STEPS,
            xtol=1e-10,
            ftol=1e-10,
            gtol=1e-10,
        )
        if best is None or found.cost < best[0]:
            best = float(found.cost), torch.from_numpy(found.x)
    assert best is not None
    return unpacked(best[1])


def _on_arrays(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda flat: function(torch.from_numpy(np.array(flat))).numpy()


def _on_points(
    derivative: Callable[[Callable[[Tensor], Tensor], Tensor], Any], function: Callable[[Tensor], Tensor]
) -> Callable[[Any], Any]:
    return lambda flat: derivative(function, torch.from_numpy(np.array(flat)))


def _matrix(function: Callable[[Tensor], Tensor], at: Tensor) -> Any:
    along = jacfwd if len(at) < len(function(at)) else jacrev
    return along(function)(at).numpy()


def _operator(made: Callable[..., Any], function: Callable[[Tensor], Tensor], at: Tensor) -> Any:
    value, pull = vjp(function, at)  # type: ignore[misc]  # three with has_aux alone
    return made(
        (len(value), len(at)),
        matvec=lambda change: jvp(function, (at,), (torch.from_numpy(np.array(change)).flatten(),))[1].numpy(),
        rmatvec=lambda change: pull(torch.from_numpy(np.array(change)).flatten())[0].numpy(),
        dtype=np.float64,
    )
