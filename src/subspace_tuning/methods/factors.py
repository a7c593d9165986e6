"""From a method and a weight to tensors: parameters, constants, and the environment of the formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..algebra import Sizes, names
from ..algebra.operators import Operator
from ..algebra.rows import wide
from ..linalg import Spectrum, svd
from .selections import Selection
from .starts import Place, fixed_number, lookup, reads_weight, value_at_start

if TYPE_CHECKING:
    from .method import Method


class Factors(NamedTuple):
    """The tensors of one method on one weight.

    ``constants`` holds the decomposition's parts, masks, chosen directions and, as X0, anchors.
    """

    parameters: dict[str, Tensor]
    constants: dict[str, Tensor]


def initial_factors(
    method: Method,
    weight: Tensor,
    rank: int,
    *,
    one_hot: bool = False,
    random: bool = False,
    cache: bool = True,
    scale: float = 1.0,
    entries: int = 0,
    directions: int = 0,
    window: tuple[int, ...] = (),
    positions: Tensor | None = None,
) -> Factors:
    """Return the factors of a method at its start.

    Args:
        method: the method.
        weight: W, n x m. On the meta device only shapes come out.
        rank: r.
        one_hot: the rows of W are looked up, as in an embedding.
        random: draw every parameter, so that phi(W) differs from W (for tests).
        cache: use the disk cache of decompositions.
        scale: s, by which some starts divide.
        entries: p, the number of entries of W that a mask trains.
        directions: q, the number of singular directions chosen in training.
        window: the window of a convolution, for formulas with factors for its axes.
        positions: the mask, as p flat indices into the n x m matrix. By default the smallest entries if the method
            chooses those, random ones if ``random``, and otherwise zeros to be overwritten on loading.

    Raises:
        SubspaceError: singular triples are needed, and the rank is above min(n, m) or the weight is not finite.
    """
    sizes = Sizes(weight.shape[0], weight.shape[1], rank, entries, directions, window)
    shapes = {name: sizes.of(method.formula.shapes[name]) for name in method.formula.trainable}
    constants = _parts_and_anchors(method, weight, sizes, one_hot, scale, cache)
    constants |= {mask: _positions(method, weight, entries, positions, random) for mask in method.formula.masked}
    constants |= _directions(method, sizes, random)
    parameters = {}
    for name, start in method.starts_for(one_hot).items():
        drawn, first, number = torch.zeros(shapes[name]), names.start_of(name), fixed_number(start)
        if not lookup(start)[2]:
            place = Place(shapes[name], weight.detach(), constants, one_hot, scale, cache)
            # Rounded before it is copied, so that a factor starts exactly at X0.
            drawn = torch.as_tensor(value_at_start(name, start, place)).to(weight.dtype)
        parameters[name] = torch.randn(shapes[name]) * _spread(shapes[name]) if random else drawn
        if first in method.formula.shapes and first not in constants:
            constants[first] = drawn.clone() if number is None else torch.full(shapes[name], number)
    dtype = wide(weight.dtype)
    return Factors(
        {name: tensor.to(device=weight.device, dtype=dtype).contiguous() for name, tensor in parameters.items()},
        _kept(method, weight, constants),
    )


def computed_constants(
    method: Method,
    weight: Tensor,
    rank: int,
    *,
    one_hot: bool = False,
    cache: bool = True,
    scale: float = 1.0,
    window: tuple[int, ...] = (),
) -> dict[str, Tensor]:
    """Return the constants determined by W alone, which stay valid while W does: nothing is drawn.

    Args:
        method: the method.
        weight: W, n x m.
        rank: r.
        one_hot: as for ``initial_factors``, and so are the others.
        cache: use the disk cache of decompositions.
        scale: s.
        window: the window of a convolution.
    """
    if not any(reads_weight(start) for start in method.starts_for(one_hot).values()) and not method.formula.spectral:
        return {}
    sizes = Sizes(weight.shape[0], weight.shape[1], rank, 0, 0, window)
    return _kept(method, weight, _parts_and_anchors(method, weight, sizes, one_hot, scale, cache))


def _parts_and_anchors(
    method: Method, weight: Tensor, sizes: Sizes, one_hot: bool, scale: float, cache: bool
) -> dict[str, Tensor]:
    constants = spectral_parts(method, weight, sizes.r, cache)
    triples: dict[str, Spectrum] = {}
    for name, start in method.starts_for(one_hot).items():
        if lookup(start)[2] and fixed_number(start) is None:
            shape = sizes.of(method.formula.shapes[name])
            place = Place(shape, weight.detach(), constants, one_hot, scale, cache, triples)
            constants[names.start_of(name)] = torch.as_tensor(value_at_start(name, start, place))
    return constants


def _kept(method: Method, weight: Tensor, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the constants of the formula, as stored."""
    dtype = wide(weight.dtype)
    return {
        # Contiguous, like tensors loaded from a file: products in another layout differ in the last bit.
        name: constants[name]
        .to(weight.device, dtype if constants[name].is_floating_point() else torch.int64)
        .contiguous()
        for name in sorted(constants)
        if name in method.formula.evaluated.names or names.is_start(name)
    }


def _positions(method: Method, weight: Tensor, entries: int, positions: Tensor | None, random: bool) -> Tensor:
    if positions is not None:
        return positions
    chooser = method.chooser or Selection()
    if random and chooser.needs_data:
        return torch.randperm(weight.numel())[:entries]
    return chooser.without_data(weight, entries)


def _directions(method: Method, sizes: Sizes, random: bool) -> dict[str, Tensor]:
    """Return the chosen directions: zeros until the schedule chooses some, so that nothing trains along them."""
    if not method.formula.chooses_directions:
        return {}
    shapes = {name: sizes.of(shape) for name, shape in names.CHOSEN_SHAPES.items()}
    if random:
        return {name: torch.linalg.qr(torch.randn(shape))[0] for name, shape in shapes.items()}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def spectral_parts(method: Method, weight: Tensor, rank: int, cache: bool = True) -> dict[str, Tensor]:
    """Return those of U, S, V, U_r, S_r, V_r that a method's formula or starts need (always S with U and V)."""
    parts: dict[str, Tensor] = {}
    if {"U", "S", "V"} & set(method.formula.spectral):
        parts.update(zip(("U", "S", "V"), _decomposed(weight, None, cache), strict=True))
    if {"U_r", "S_r", "V_r", "rest"} & set(method.formula.spectral):
        parts.update(zip(("U_r", "S_r", "V_r"), _decomposed(weight, rank, cache), strict=True))
    return parts


def _decomposed(weight: Tensor, rank: int | None, cache: bool) -> tuple[Tensor, Tensor, Tensor]:
    if weight.is_meta:
        (n, m), k = weight.shape, rank or min(weight.shape)
        return weight.new_empty(n, k), weight.new_empty(k), weight.new_empty(m, k)
    return svd(weight, rank, cache=cache)


def _spread(shape: tuple[int, ...]) -> float:
    """Return a standard deviation that keeps a product of drawn factors near the size of W."""
    return 0.3 if len(shape) < 2 else max(shape[0], 1) ** -0.5


class Reading(NamedTuple):
    """How factors are read from parameters and constants.

    ``anchors`` holds the anchors of factors that are an anchor plus their parameter: a number, or the name of a
    constant. ``sums`` are those that the evaluated formula names. ``offsets`` holds the factors whose offset from the
    start it names, each with the name of the start's constant, or None if the parameter itself is the offset.
    """

    anchors: Mapping[str, float | str]
    sums: tuple[tuple[str, float | str], ...]
    offsets: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, method: Method, one_hot: bool) -> Reading:
        """Return how a method's factors are read."""
        anchors, numbers = method.anchors(one_hot), method.fixed_anchors(one_hot)
        found = {name: numbers.get(name, names.start_of(name)) for name, anchored in anchors.items() if anchored}
        return cls(
            found,
            tuple((name, anchor) for name, anchor in found.items() if name in method.formula.evaluated.names),
            tuple(
                (name, None if anchored else names.start_of(name))
                for name, anchored in anchors.items()
                if name in method.formula.offsets
            ),
        )

    def value(self, name: str, parameter: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Return the value of a factor."""
        anchor = self.anchors.get(name)
        if anchor is None:
            return parameter
        return (constants[anchor] if isinstance(anchor, str) else anchor) + parameter


def environment(
    method: Method,
    weight: Tensor | Operator,
    parameters: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    scale: float,
    bias: Tensor | None = None,
    one_hot: bool = False,
    norm: Callable[[Tensor], Tensor] | None = None,
    evaluated: bool = False,
) -> dict[str, Tensor | Operator | float | Callable[[Tensor], Tensor]]:
    """Return the formula's environment, in which a factor is its parameter, or its anchor plus its parameter.

    With ``evaluated``, only the names in ``formula.evaluated`` are computed.
    """
    reading = method.readings[1 if one_hot else 0]
    env: dict[str, Tensor | Operator | float | Callable[[Tensor], Tensor]] = {
        "W": weight,
        "s": scale,
        **constants,
        **parameters,
    }
    if norm is not None:
        env["N"] = norm
    if method.formula.names_bias:
        env["b"] = torch.zeros(weight.shape[1], dtype=weight.dtype, device=weight.device) if bias is None else bias
    for name, anchor in reading.sums if evaluated else reading.anchors.items():
        env[name] = (constants[anchor] if type(anchor) is str else anchor) + parameters[name]  # type: ignore[operator]
    for name, start in reading.offsets:
        env[f"{name}{names.OFFSET}"] = parameters[name] if start is None else parameters[name] - constants[start]
    return env
