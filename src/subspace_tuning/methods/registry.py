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
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Literal, overload

from ..algebra import Formula, FormulaError, Sizes, nearest_formula, parse
from ..algebra.nodes import Leaf
from ..errors import SubspaceError, nearest
from .checks import start_problem, start_refusal
from .factors import Reading
from .functions import formula_of
from .hosted import HOSTED
from .roles import ALL_MATRICES
from .starts import fixed_number, infer_starts, lookup, takes_triples

_UNNAMED = "formula"  # what a formula in a config is called

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
    description: str = field(default="", compare=False)
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
            written, named = str(self.formula), self.name if self.is_named else None
            found = nearest_formula(written, starts_at_weight)
            raise FormulaError(
                "phi(W) has no trainable factor", written, None, None if found is None else str(found), method=named
            )

    def __repr__(self) -> str:
        return f"Method({self.name!r}, {str(self.formula)!r})"

    def __hash__(self) -> int:
        return hash((self.name, self.formula))

    @property
    def is_named(self) -> bool:
        """Whether the method has a name of its own, unlike a formula in a config."""
        return self.name != _UNNAMED

    def like(self, formula: Formula, starts: Mapping[str, str]) -> Method:
        """Return a method of the same name with another formula and other starts, and nothing else."""
        return Method(self.name, formula, self.category, starts=starts)

    def starts_for(self, one_hot: bool = False) -> Mapping[str, str]:
        """Return the start of every trainable factor; ``one_hot`` for an embedding, whose rows are looked up."""
        return _starts(self.formula, tuple(sorted(self.starts.items())), one_hot)

    def anchors(self, one_hot: bool = False) -> Mapping[str, bool]:
        """Return for every trainable factor whether its parameter is the offset from an anchor."""
        return self._anchors[1] if one_hot else self._anchors[0]

    def fixed_anchors(self, one_hot: bool = False) -> Mapping[str, float]:
        """Return the anchors that are one number for every matrix, such as 1 for a scale."""
        return self._fixed_anchors[1] if one_hot else self._fixed_anchors[0]

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
        """Return the method as it is on a convolution with this number of axes."""
        if self.convolution is None:
            return self
        windows = ", ".join(f"C{axis}" for axis in range(1, axes + 1))
        formula = parse(self.convolution.replace("C", windows))
        starts = {name: "identity" for name in formula.trainable if name.startswith("C")} | dict(self.starts)
        return dataclasses.replace(self, formula=formula, starts=starts, count=None, includes={}, convolution=None)

    @cached_property
    def readings(self) -> tuple[Reading, Reading]:
        """How a forward pass reads the factors from parameters and constants, and how where rows are looked up."""
        return Reading.of(self, False), Reading.of(self, True)

    # Kept, since loops over all adapted layers ask for them.

    @cached_property
    def _anchors(self) -> tuple[Mapping[str, bool], Mapping[str, bool]]:
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

    @property
    def start_problem(self) -> str | None:
        """What is wrong with the start at rank 3, in one line; None if nothing is (see ``checks.start_problem``)."""
        return start_problem(self)

    def check_start(self, rank: int = 3, one_hot: bool = False) -> None:
        """Raise FormulaError if phi(W) is not W at the start, or if some factor cannot leave it."""
        rank = rank if self.formula.has_rank else 3
        found = start_problem(self, rank, one_hot)
        if found is not None:
            raise start_refusal(self, rank, one_hot, found)


@lru_cache(maxsize=256)
def _starts(formula: Formula, declared: tuple[tuple[str, str], ...], one_hot: bool) -> Mapping[str, str]:
    return MappingProxyType({**infer_starts(formula, one_hot), **dict(declared)})


# The registry

_REGISTRY: dict[str, Method] = {}


@overload
def method(function: Callable[..., Any], /) -> Method: ...


@overload
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
) -> Callable[[Callable[..., Any]], Method]: ...


def method(
    function: Callable[..., Any] | None = None,
    /,
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
) -> Method | Callable[[Callable[..., Any]], Method]:
    """Declare and register a method: decorate a function whose parameters are the formula's names.

    ``@method`` by itself takes every default.

    Examples:
        >>> @method(count="n")
        ... def scaled_inputs(W, D1):
        ...     return D1 @ W

    ``needs`` are the fields of :class:`Method` from ``mode`` on, for the methods that need more than a formula.

    Raises:
        SubspaceError: the function is no formula of its parameters, the formula does not fit together, phi(W) is not W
            at the start or cannot leave it, or the name is taken (give ``replace=True`` to take it over).
    """

    def declare(function: Callable[..., Any]) -> Method:
        own = name or function.__name__
        formula = formula_of(own, function, starts_at_weight)
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

    return declare if function is None else declare(function)


def register(new: Method, replace: bool = False) -> Method:
    """Add a method to the registry, where every command and law finds it.

    The same declaration may come again, as it does when a cell of a notebook is run twice.

    Raises:
        SubspaceError: another method has the name, unless ``replace`` is given.
    """
    known = _REGISTRY.get(new.name, new)
    if known != new and not replace:
        what = f": {known.formula}" if known.formula != new.formula else ", with other fields"
        raise SubspaceError(f"a method named {new.name!r} exists already{what}; replace=True takes it over")
    if start_problem(new) is not None:
        new.check_start(rank=1)  # some formulas start at W at low ranks alone; the rank of a config is checked there
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


def find(name: str | None) -> Method | None:
    """Return a registered method, None if there is none of that name."""
    return None if name is None else _REGISTRY.get(name)


def every() -> Iterator[Method]:
    """Yield the registered methods in the order of the paper: reconstruction, extension, combination."""
    order = ("reconstruction", "extension", "combination")
    return iter(sorted(_REGISTRY.values(), key=lambda known: (order.index(known.category), known.name)))


def from_formula(text: str, starts: Mapping[str, str] | None = None, name: str = _UNNAMED) -> Method:
    """Return an unregistered method for a formula string. Raises FormulaError, or SubspaceError on a wrong start."""
    formula = parse(text, starts_at_weight)
    return Method(
        name,
        formula,
        categorise(formula),
        starts=dict(starts or {}),
        selection="fisher" if formula.masked else None,
        budget=0.005 if formula.masked else None,
        schedule="lora_dash" if formula.chooses_directions and {"A", "B", "d"} <= set(formula.trainable) else None,
    )


def starts_at_weight(formula: Formula) -> bool:
    """Whether a formula by itself starts at phi(W) = W and can leave it."""
    return bool(formula.trainable) and start_problem(Method(_UNNAMED, formula, "extension")) is None


def categorise(formula: Formula) -> Category:
    """Tell from a formula's form to which of the paper's three kinds it belongs."""
    terms = getattr(formula.matrix, "terms", (formula.matrix,))
    plain = any(isinstance(term, Leaf) and term.name == "W" for term in terms)
    added = "zeros" in infer_starts(formula).values() and formula.bias is None
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
        if isinstance(tree, ast.Name) and re.fullmatch(r"[nmkrpqcg]|[nmwv]\d", tree.id):
            return sizes.dimension(tree.id)
        raise SubspaceError(f"the count {text!r} is not a polynomial in n, m, k, r, p and q")

    return value(ast.parse(text, mode="eval").body)
