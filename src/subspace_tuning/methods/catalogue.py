"""The catalogue as a page, generated from the registry, with the laws that each method keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import singledispatch

import torch
from torch import Tensor

from ..algebra import NotLinearError, Sizes, dense, parse
from ..algebra.latex import latex
from ..algebra.nodes import Affine
from .checks import row_norm
from .factors import environment, initial_factors
from .hosted import Hosted
from .method import AnyMethod, Method
from .registry import listed

_CATEGORIES = {
    "reconstruction": "phi(W) = f(W) rescales or rotates the subspaces of W.",
    "extension": "phi(W) = W + s Delta adds a matrix of low rank or low cost.",
    "combination": "phi(W) = g(f(W)) does both.",
}


def laws(method: Method) -> dict[str, bool | None]:
    """Check a method on small matrices in float64.

    Returns:
        Whether it keeps each law; None for a law that does not apply, such as the dense form of a method with a
        nonlinearity.
    """
    return {name: law(method) for name, law in _LAWS.items()}


def _case(method: Method, random: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, object]]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(9, 6, dtype=torch.float64, generator=generator) / 3.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        factors = initial_factors(method, weight, 3, random=random, cache=False, scale=1.5, entries=8, directions=2)
    leaves = {name: tensor.requires_grad_() for name, tensor in factors.parameters.items()}
    env = environment(method, weight, leaves, factors.constants, 1.5, torch.ones(6).double(), norm=row_norm)
    width = 6 if method.formula.wraps_norm else 9
    return torch.randn(5, width, dtype=torch.float64, generator=generator), leaves, dict(env)


def _starts_at_w(method: Method) -> bool:
    return method.start_problem is None


def _applied_is_dense(method: Method) -> bool | None:
    if not method.formula.is_linear:
        return None
    x, _, env = _case(method, random=True)
    expression = method.formula.evaluated
    wanted = (
        x @ dense(expression.matrix, env) + expression.bias.compact(env)  # type: ignore[arg-type]
        if isinstance(expression, Affine)
        else x @ dense(expression, env)  # type: ignore[arg-type]
    )
    return torch.allclose(expression.apply(x, env), wanted)  # type: ignore[arg-type]


def _every_factor_has_a_gradient(method: Method) -> bool:
    x, leaves, env = _case(method, random=True)
    y = method.formula.evaluated.apply(x, env)  # type: ignore[arg-type]
    assert isinstance(y, Tensor)
    found = torch.autograd.grad(y.square().sum(), list(leaves.values()), allow_unused=True)
    return all(gradient is not None and bool(gradient.any()) for gradient in found)


def _counts(method: Method) -> bool:
    sizes = Sizes(9, 6, 3, 8, 2)
    return method.counted(sizes) == method.formula.count(sizes)


def _prints(method: Method) -> bool:
    return parse(str(method.formula)) == method.formula


def _merges(method: Method) -> bool | None:
    if not method.formula.is_linear:
        return None
    _, _, env = _case(method, random=True)
    expression = method.formula.evaluated
    try:
        matrix = dense(expression.matrix if isinstance(expression, Affine) else expression, env)  # type: ignore[arg-type]
    except NotLinearError:
        return False
    return matrix.shape == (9, 6)


_LAWS: dict[str, Callable[[Method], bool | None]] = {
    "phi(W) = W at the start": _starts_at_w,
    "applied to rows = dense matrix": _applied_is_dense,
    "every factor has a gradient": _every_factor_has_a_gradient,
    "merges into W": _merges,
    "count as declared": _counts,
    "unchanged when printed and parsed": _prints,
}


def page(chosen: Sequence[AnyMethod] | None = None) -> str:
    """Return the catalogue as a Markdown page, or the sections of some methods."""
    if chosen is not None:
        return "\n".join(line for known in chosen for line in _section(known)).rstrip() + "\n"
    lines = [
        "# The catalogue",
        "",
        "Generated from the registry by `subspace methods --markdown`. W is n x m = in x out, the rank is r,",
        "k = min(n, m), p trained entries of a mask, q chosen singular directions, and s = alpha / r.",
        "",
        "| method | phi(W) | category | parameters per matrix | merges |",
        "|---|---|---|---|---|",
        *(
            f"| [{known.name}](#{known.name}) | `{known.formula}` | {known.category} | {known.count} "
            f"| {'yes' if known.merges else 'no'} |"
            for known in listed()
        ),
        "",
    ]
    for category, text in _CATEGORIES.items():
        lines += [f"## {category.capitalize()}", "", text, ""]
        lines += [line for known in listed() if known.category == category for line in _section(known)]
    return "\n".join(lines).rstrip() + "\n"


@singledispatch
def _section(known: AnyMethod) -> Iterator[str]:
    """Yield the lines of a method's section."""
    raise NotImplementedError(type(known).__name__)


@_section.register
def _of_formula(method: Method) -> Iterator[str]:
    formula = method.formula
    yield from (f"### {method.name}", "", *method.description.splitlines(), "")
    yield from (f"$$\\phi(W) = {latex(formula.expression)}$$", "")
    if method.convolution is not None:
        yield from (f"On a convolution with two axes: `{method.on_axes(2).formula}`.", "")
    yield from ("| factor | shape | starts at |", "|---|---|---|")
    for name, start in method.starts_for().items():
        yield f"| {name} | {' x '.join(formula.shapes[name]) or 'a number'} | {start} |"
    kept = laws(method)
    yield from (
        "",
        f"* category: {method.category}" + (f", {method.mode}" if method.mode else ""),
        f"* parameters per matrix: {method.count}",
        f"* placement: {', '.join(method.placement)}",
        f"* default learning rate: {method.default_rate}",
        f"* {_merging(method)}",
        *([f"* contains: {', '.join(method.includes)}"] if method.includes else []),
        *([f"* chooses: {method.chooser.text}"] if method.chooser else []),
        *([f"* schedule: {method.schedule}"] if method.schedule else []),
        *([f"* pattern: {'+'.join(method.pattern)}, weight {method.pattern_weight:g}"] if method.pattern else []),
        f"* laws kept: {'; '.join(name for name, holds in kept.items() if holds)}",
        *([f"* laws **broken**: {broken}"] if (broken := "; ".join(n for n, h in kept.items() if h is False)) else []),
        f"* source: {method.citation}",
        "",
    )


def _merging(method: Method) -> str:
    if method.formula.is_linear:
        return "merges into W" + (" and the bias" if method.formula.names_bias else "")
    around = "wraps a normalisation" if method.formula.wraps_norm else "has a nonlinearity between its factors"
    return f"does not merge: it {around}"


@_section.register
def _of_peft(known: Hosted) -> Iterator[str]:
    yield from (f"### {known.name}", "", known.description, "")
    yield from (
        f"* formula: `{known.formula}`",
        f"* category: {known.category}, {known.mode}",
        f"* parameters: {known.count}",
        f"* runs as peft's {known.config}; `subspace train` takes its name",
        "* does not merge: its rows precede those of W",
        f"* source: {known.citation}",
        "",
    )
