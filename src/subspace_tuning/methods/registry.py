"""A method is data: its formula, how its factors start, where it goes, what it counts, who invented it.

The declaration *is* the formula::

    @method(category="reconstruction", placement=SCALED, count="n + m", citation="arXiv:2407.05417")
    def ssb(W, D1, D2):
        '''Scale the rows and the columns of W.'''
        return D1 @ W @ D2
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Literal

import torch

from ..algebra import Expression, Formula, NotLinearError, Sizes, parse, symbol
from ..algebra.nodes import Affine, Leaf
from ..errors import SubspaceError, nearest
from .factors import environment, initial_factors
from .hosted import HOSTED
from .roles import ALL_MATRICES
from .starts import fixed_number, infer_starts, lookup, takes_triples

Category = Literal["reconstruction", "extension", "combination"]

SELECTIONS = {
    "magnitude": "the entries of W that are smallest in absolute value; no data are needed",
    "fisher": "the entries with the largest Fisher information, over all adapted matrices together",
    "sensitivity": "as fisher, but a matrix that holds more such entries than a low-rank term gets the latter",
    "importance": "the biases whose training lowers the loss most to first order, per parameter",
}


@dataclass(frozen=True)
class Method:
    """A way to fine-tune a frozen W (n x m).

    ``starts`` names the start of those factors that the formula's form does not settle (see ``starts.infer_starts``);
    ``count`` is the number of trainable parameters per matrix, a polynomial in the dimensions of ``Sizes``;
    ``includes`` says which methods are special cases, and which factor to replace by what to see it.

    ``mode`` is the paper's finer division of the category. What some methods need besides: ``selection`` tells how a
    mask or the adapted modules are chosen (see SELECTIONS) and ``budget`` which share of them by default; ``schedule``
    names the schedule that acts on the factors between optimiser steps; ``pattern`` and ``pattern_weight`` are
    constraints that belong to the method; ``convolution`` is the formula on a convolution with one, two or three axes,
    where C stands for a factor per axis.
    """

    name: str
    formula: Formula
    category: Category
    placement: tuple[str, ...] = ALL_MATRICES
    count: str | None = None
    starts: Mapping[str, str] = field(default_factory=dict)
    includes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    learning_rate: float = 1e-3
    citation: str = ""
    description: str = ""
    mode: str = ""
    selection: str | None = None
    budget: float | None = None
    schedule: str | None = None
    pattern: tuple[str, ...] = ()
    pattern_weight: float = 0.0
    convolution: str | None = None

    def __post_init__(self) -> None:
        if self.selection not in (None, *SELECTIONS):
            raise SubspaceError(f"method {self.name!r}: unknown selection; {nearest(str(self.selection), SELECTIONS)}")
        unknown = set(self.starts) - set(self.formula.trainable)
        if unknown:
            wrong = min(unknown)
            raise SubspaceError(
                f"method {self.name!r}: a start is given for {wrong!r}; {nearest(wrong, self.formula.trainable)}"
            )
        for start in self.starts.values():
            lookup(start)
        if not self.formula.trainable:
            raise SubspaceError(f"method {self.name!r}: the formula {self.formula} has no trainable factor")

    def __hash__(self) -> int:
        return hash((self.name, self.formula))

    def starts_for(self, one_hot: bool = False) -> Mapping[str, str]:
        """Return the start of every trainable factor; ``one_hot`` for an embedding, whose rows are looked up."""
        return _starts(self.formula, tuple(sorted(self.starts.items())), one_hot)

    def anchors(self, one_hot: bool = False) -> Mapping[str, bool]:
        """Return for every trainable factor whether its parameter is the offset from an anchor."""
        return self._anchors[one_hot]

    def fixed_anchors(self, one_hot: bool = False) -> Mapping[str, float]:
        """Return the anchors that are one number for every matrix, such as 1 for a scale."""
        return self._fixed_anchors[one_hot]

    @property
    def needs_calibration(self) -> bool:
        """Whether data must be seen before the factors can be made."""
        return self.selection not in (None, "magnitude")

    @cached_property
    def takes_triples(self) -> bool:
        """Whether the rank is a number of singular triples of W, of which there are min(n, m)."""
        starts = {start for one_hot in (False, True) for start in self.starts_for(one_hot).values()}
        leading = {"U_r", "S_r", "V_r"} & set(self.formula.spectral)
        return bool(leading) or any(map(takes_triples, starts))

    def rank_in(self, n: int, m: int, r: int) -> int:
        """Return the rank on an n x m matrix: r, or min(n, m) where there are no r singular triples."""
        return min(r, n, m) if self.takes_triples else r

    def on_axes(self, axes: int) -> Method:
        """Return the method as it is on a convolution with so many axes."""
        if self.convolution is None:
            return self
        windows = ", ".join(f"C{axis}" for axis in range(1, axes + 1))
        formula = parse(self.convolution.replace("C", windows))
        starts = {name: "identity" for name in formula.trainable if name.startswith("C")} | dict(self.starts)
        return dataclasses.replace(self, formula=formula, starts=starts, count=None, includes={}, convolution=None)

    @cached_property
    def _anchors(self) -> tuple[Mapping[str, bool], Mapping[str, bool]]:
        # Kept here, since every forward pass asks for them.
        dense_rows, one_hot = (
            {name: lookup(start)[2] for name, start in self.starts_for(kind).items()} for kind in (False, True)
        )
        return dense_rows, one_hot

    @cached_property
    def _fixed_anchors(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        dense_rows, one_hot = (
            {
                name: number
                for name, start in self.starts_for(kind).items()
                if (number := fixed_number(start)) is not None
            }
            for kind in (False, True)
        )
        return dense_rows, one_hot

    def counted(self, sizes: Sizes) -> int:
        """Return the number of trainable parameters of one matrix."""
        return self.formula.count(sizes) if self.count is None else polynomial(self.count, sizes)

    @cached_property
    def start_problem(self) -> str | None:
        """What is wrong with the start, in one line; None if phi(W) = W there (checked on a small W)."""
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(7, 5, dtype=torch.float64, generator=generator)
        bias = torch.randn(5, dtype=torch.float64, generator=generator)
        around = self.formula.wraps_norm
        rows = torch.randn(4, 5 if around else 7, dtype=torch.float64, generator=generator)
        with torch.random.fork_rng(devices=[]):
            factors = initial_factors(self, weight, rank=3, cache=False, scale=2.0, entries=6, directions=2)
        env = environment(self, weight, factors.parameters, factors.constants, scale=2.0, bias=bias, norm=row_norm)
        try:
            output = self.formula.evaluated.apply(rows, env)
        except NotLinearError as error:
            return f"phi(W) = {self.formula} cannot be evaluated: {error}"
        assert isinstance(output, torch.Tensor)
        wanted = row_norm(rows) if around else rows @ weight + (bias if self.formula.names_bias else 0.0)
        if torch.allclose(output, wanted):
            return None
        told = ", ".join(f"{name} at {start}" for name, start in self.starts_for().items())
        return f"phi(W) = {self.formula} is not W at its start ({told}); say how the factors start"

    def check_start(self) -> None:
        """Raise SubspaceError if phi(W) is not W at the start."""
        if self.start_problem is not None:
            raise SubspaceError(f"method {self.name!r}: {self.start_problem}")


def row_norm(rows: torch.Tensor) -> torch.Tensor:
    """Return normalised rows: what stands for N where a formula is checked by itself."""
    return torch.nn.functional.layer_norm(rows, rows.shape[-1:])


@lru_cache(maxsize=256)
def _starts(formula: Formula, declared: tuple[tuple[str, str], ...], one_hot: bool) -> Mapping[str, str]:
    return MappingProxyType({**infer_starts(formula, one_hot), **dict(declared)})


# The registry

_REGISTRY: dict[str, Method] = {}


def method(
    *,
    category: Category | None = None,
    placement: tuple[str, ...] = ALL_MATRICES,
    count: str | None = None,
    starts: Mapping[str, str] | None = None,
    includes: Mapping[str, Mapping[str, str]] | None = None,
    learning_rate: float = 1e-3,
    citation: str = "",
    name: str | None = None,
    replace: bool = False,
    **needs: Any,
) -> Callable[[Callable[..., Expression]], Method]:
    """Declare and register a method: decorate a function whose parameters are the formula's names.

    >>> @method(count="n")
    ... def scaled_inputs(W, D1):
    ...     return D1 @ W

    ``needs`` are the fields of :class:`Method` from ``mode`` on, for the methods that need more than a formula.

    Raises:
        SubspaceError: the formula does not fit together, phi(W) is not W at the start, or the name is taken (give
            ``replace=True`` to take it over).
    """

    def declare(function: Callable[..., Expression]) -> Method:
        own = name or function.__name__
        expression = function(*(symbol(parameter) for parameter in inspect.signature(function).parameters))
        formula = parse(str(expression))
        declared = Method(
            name=own,
            formula=formula,
            category=category or categorise(formula),
            placement=placement,
            count=count,
            starts=dict(starts or {}),
            includes=dict(includes or {}),
            learning_rate=learning_rate,
            citation=citation,
            description=inspect.getdoc(function) or "",
            **needs,
        )
        return register(declared, replace=replace)

    return declare


def register(new: Method, replace: bool = False) -> Method:
    """Add a method to the registry, where every command and law finds it."""
    if new.name in _REGISTRY and not replace:
        raise SubspaceError(f"a method named {new.name!r} exists already: {_REGISTRY[new.name].formula}")
    new.check_start()
    _REGISTRY[new.name] = new
    return new


def unregister(name: str) -> None:
    """Take a method out of the registry."""
    _REGISTRY.pop(get(name).name)


def get(name: str) -> Method:
    """Return a registered method. Raises SubspaceError with the nearest known names."""
    if name in HOSTED:
        raise SubspaceError(
            f"method {name!r} is no formula over one matrix: use peft's {HOSTED[name].config}, or `subspace train`"
        )
    try:
        return _REGISTRY[name]
    except KeyError:
        raise SubspaceError(f"unknown method {name!r}; {nearest(name, [*_REGISTRY, *HOSTED])}") from None


def every() -> Iterator[Method]:
    """Yield the registered methods in the order of the paper: reconstruction, extension, combination."""
    order = ("reconstruction", "extension", "combination")
    return iter(sorted(_REGISTRY.values(), key=lambda known: (order.index(known.category), known.name)))


def from_formula(text: str, starts: Mapping[str, str] | None = None, name: str = "formula") -> Method:
    """Return an unregistered method for a formula string. Raises FormulaError, or SubspaceError on a wrong start."""
    formula = parse(text)
    return Method(
        name,
        formula,
        categorise(formula),
        starts=dict(starts or {}),
        selection="fisher" if formula.masked else None,
        budget=0.005 if formula.masked else None,
        schedule="lora_dash" if formula.chooses_directions and {"A", "B", "d"} <= set(formula.trainable) else None,
    )


def categorise(formula: Formula) -> Category:
    """Tell from a formula's form to which of the paper's three kinds it belongs."""
    expression = formula.expression.matrix if isinstance(formula.expression, Affine) else formula.expression
    terms = getattr(expression, "terms", (expression,))
    plain = any(isinstance(term, Leaf) and term.name == "W" for term in terms)
    added = "zeros" in infer_starts(formula).values() and expression is formula.expression
    if plain and added:
        return "extension"
    return "combination" if added else "reconstruction"


_OPERATIONS: Mapping[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}


def polynomial(text: str, sizes: Sizes) -> int:
    """Return the value of a count such as ``r * (n + m)``."""

    def value(tree: ast.expr) -> int:
        if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATIONS:
            return _OPERATIONS[type(tree.op)](value(tree.left), value(tree.right))
        if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
            return tree.value
        if isinstance(tree, ast.Name) and tree.id in "nmkrpq":
            return sizes.dimension(tree.id)
        raise SubspaceError(f"the count {text!r} is not a polynomial in n, m, k, r, p and q")

    return value(ast.parse(text, mode="eval").body)
