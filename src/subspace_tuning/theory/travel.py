"""Travel: how far training moves phi(W) at a learning rate, from the formula and W alone.

Adam moves every trained number by about the learning rate, whatever the size of its gradient. So the same rate moves
phi(W) far in one formula and hardly in another. Travel measures how far. Let G (n x m) stand for the gradient of the
loss in phi(W): normal numbers, with the left spectrum of W, since that of the inputs is unknown without data:

    G = X.T @ Y / sqrt(k)    with X.T @ X / k = W @ W.T / mean(diag(W @ W.T)),  Y (k x m) normal,  k = min(n, m)

and let the factors theta go down the linear loss <G, phi(W)> in sign steps, of PATH times the rate in all:

    theta <- theta - rate * PATH / STEPS * sign(d <G, phi(W)> / d theta)        STEPS times
    travel(rate) = <G, phi(W) at the start - phi(W) at the end>

As G has the factors X and Y, <G, phi(W)> = <Y, X @ phi(W)> / sqrt(k): the formula is applied to the rows X by its plan.
That holds for any map on rows, so a formula that has no matrix, or a bias, travels like any other.

Source: this project; ``benchmarks/rates`` compares the rates that follow from it with sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..algebra import Sizes, plan
from ..algebra.evaluate import multiply_adds
from ..algebra.rows import as_tensor, wide
from ..errors import SubspaceError
from ..methods import Method, environment, initial_factors

STEPS = 12
PATH = 27.5
"""How many full steps of the optimiser all sign steps make: a tenth of the 275 in a schedule of 550 steps that falls
linearly. The tenth is the share of Adam's steps that add up, chosen among 0.03, 0.1 and 0.3 by a sweep."""

LARGEST = 2.0**25
"""Multiply-adds of one gradient. A matrix that takes more is cut (see :func:`course`)."""
_LEAST = 32  # rows and columns that are left of a matrix when it is cut


@dataclass(frozen=True)
class Frozen:
    """What a formula adapts: W (n x m) with a bias (m) or None, or a normalisation of the last dimension.

    ``epsilon`` is that of the normalisation, whose scales are the one row of ``weight``.
    """

    weight: Tensor
    bias: Tensor | None = None
    epsilon: float | None = None


class Journey:
    """The travel of one formula on one matrix.

    Args:
        method: the method.
        frozen: what it adapts.
        sizes: n, m, the rank and the other dimensions of the formula's shapes.
        scale: s.
        seed: the seed of the factors, of X and of Y. Two formulas with the same seed meet the same G.

    Raises:
        SubspaceError: a start does not fit the matrix.
    """

    def __init__(self, method: Method, frozen: Frozen, sizes: Sizes, scale: float, seed: int = 0) -> None:
        W = frozen.weight.detach()
        self._wraps_norm = method.formula.wraps_norm
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.rows, self.slopes = self._drawn(W)
            torch.manual_seed(seed + 1)
            factors = initial_factors(
                method,
                W,
                sizes.r,
                cache=False,
                scale=scale,
                entries=sizes.p,
                directions=sizes.q,
                window=sizes.window,
                positions=torch.randperm(W.numel())[: sizes.p] if method.needs_calibration else None,
            )
        self._start: Mapping[str, Tensor] = factors.parameters
        self._environment = partial(
            environment,
            method,
            W,
            constants=factors.constants,
            scale=scale,
            bias=frozen.bias,
            norm=_norm(frozen) if self._wraps_norm else None,
        )
        # Gates are closed or open by chance in training; without chance they take their mean.
        planned = plan(method.formula, sizes, training=not method.formula.has_gates)
        self._expression = planned.stage(len(self.rows)).expression

    def _drawn(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows X and Y / sqrt(k)."""
        n, m = W.shape
        k = m if self._wraps_norm else min(n, m)
        Y = torch.randn(k, m, dtype=W.dtype)
        turned = torch.linalg.qr(torch.randn(k, k, dtype=W.dtype)).Q
        if self._wraps_norm:  # its rows come out of a block, and it has scales in place of a matrix
            return turned * math.sqrt(k), Y / math.sqrt(k)
        half = torch.linalg.qr(W.T, mode="r").R  # half.T @ half = W @ W.T
        mean = half.square().sum() / n
        if not mean > 0:
            raise SubspaceError("a weight of zeros has no spectrum, from which a learning rate could follow")
        return turned @ half * (k / mean).sqrt(), Y / math.sqrt(k)

    @torch.enable_grad()
    def travel(self, rate: float) -> float:
        """Return the travel at a learning rate."""
        factors = {name: value.clone().requires_grad_() for name, value in self._start.items()}
        start = self._outputs(factors)
        ahead, step = start, rate * PATH / STEPS
        for _ in range(STEPS):
            slopes = torch.autograd.grad(ahead, list(factors.values()), self.slopes, allow_unused=True)
            with torch.no_grad():
                for factor, slope in zip(factors.values(), slopes, strict=True):
                    if slope is not None:
                        factor -= step * slope.sign()
            ahead = self._outputs(factors)
        return float(((start - ahead) * self.slopes).detach().sum(dtype=torch.float64))

    def _outputs(self, factors: Mapping[str, Tensor]) -> Tensor:
        """Return X @ phi(W), up to what does not depend on the factors."""
        env: Any = self._environment(factors)
        return as_tensor(self._expression.apply(self.rows, env))


def _norm(frozen: Frozen) -> Any:
    scales = frozen.weight.squeeze(0)
    return lambda x: torch.nn.functional.layer_norm(x, scales.shape, scales, frozen.bias, frozen.epsilon or 1e-5)


@dataclass(frozen=True)
class Course:
    """The travel of one formula on several matrices of one shape, of which one is measured.

    A matrix that is large is measured on a part of its rows and columns, and on half of these. Travel grows like a
    power of the size, so the two give that of the whole.

    Attributes:
        journeys: on the whole matrix; or on the smaller and the larger part.
        ahead: how many times the ratio between the parts leads from the larger to the whole, as a power; 0: the whole.
        copies: the number of matrices.
    """

    journeys: tuple[Journey, ...]
    ahead: float = 0.0
    copies: float = 1.0

    def travel(self, rate: float) -> float:
        """Return the travel of all matrices together at a learning rate."""
        last = self.journeys[-1].travel(rate)
        if self.ahead and last > 0:
            before = self.journeys[0].travel(rate)
            last *= (last / before) ** self.ahead if before > 0 else 1.0
        return self.copies * last


def course(
    method: Method,
    frozen: Frozen,
    sizes: Sizes,
    scale: float,
    *,
    copies: float = 1.0,
    seed: int = 0,
    largest: float = LARGEST,
) -> Course:
    """Return the travel of a formula on matrices of one shape.

    Args:
        method: the method.
        frozen: one of the matrices.
        sizes: n, m, the rank and the other dimensions of the formula's shapes.
        scale: s.
        copies: the number of matrices of the shape.
        seed: of all that is drawn.
        largest: multiply-adds of one gradient, above which the matrix is cut.
    """
    parts = _parts(method, sizes, largest)
    generator = torch.Generator().manual_seed(seed)
    journeys = tuple(
        Journey(method, _cut(frozen, part, generator), part, scale, seed + 2 * place)
        for place, part in enumerate(parts)
    )
    if len(parts) == 1:
        return Course(journeys, 0.0, copies)
    smaller, larger = (math.log(part.n * part.m) for part in parts)
    return Course(journeys, (math.log(sizes.n * sizes.m) - larger) / (larger - smaller), copies)


def _parts(method: Method, sizes: Sizes, largest: float) -> list[Sizes]:
    """Return the sizes of a matrix that is measured whole, or of the smaller and the larger part."""
    least = max(_LEAST, 2 * sizes.r if method.formula.has_rank else 0)

    def fits(part: Sizes) -> bool:
        return all(cut >= min(least, whole) for cut, whole in zip(part[:2], sizes[:2], strict=True))

    part = sizes
    while _gradient(method, part) > largest and fits(_halved(_halved(part))):
        part = _halved(part)
    return [part] if part == sizes else [_halved(part), part]


def _halved(sizes: Sizes) -> Sizes:
    """Return the sizes of half of the rows (whole channels of a convolution) and half of the columns."""
    window = math.prod(sizes.window)
    n, m = max(sizes.n // window // 2, 1) * window, max(sizes.m // 2, 1)
    entries = math.ceil(sizes.p * n * m / (sizes.n * sizes.m))
    return sizes._replace(n=n, m=m, p=entries, q=min(sizes.q, n, m))


def _gradient(method: Method, sizes: Sizes) -> float:
    """Return the multiply-adds of one gradient."""
    k = sizes.m if method.formula.wraps_norm else min(sizes.n, sizes.m)
    expression = plan(method.formula, sizes).stage(k).expression
    return multiply_adds(expression, method.formula, sizes, k)


def _cut(frozen: Frozen, sizes: Sizes, generator: torch.Generator) -> Frozen:
    """Return some of the rows and columns, drawn, in a precision that can be computed with."""
    W, window = frozen.weight.detach(), math.prod(sizes.window)
    bias = None if frozen.bias is None else frozen.bias.detach()
    if sizes.n < W.shape[0]:
        channels = torch.randperm(W.shape[0] // window, generator=generator)[: sizes.n // window].sort().values
        W = W[(channels[:, None] * window + torch.arange(window)).flatten()]
    if sizes.m < W.shape[1]:
        columns = torch.randperm(W.shape[1], generator=generator)[: sizes.m].sort().values
        W, bias = W[:, columns], None if bias is None else bias[columns]
    dtype = wide(W.dtype)
    return replace(frozen, weight=W.to("cpu", dtype).contiguous(), bias=None if bias is None else bias.to("cpu", dtype))
