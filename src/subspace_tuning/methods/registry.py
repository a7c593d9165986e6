"""The registry of methods: declaring them, finding them by name, listing them, or making one from a formula string.

The declaration *is* the formula::

    @method(category="reconstruction", placement=SCALED, count="n + m", citation="arXiv:2407.05417")
    def ssb(W, D1, D2):
        '''Scale the rows and the columns of W.'''
        return D1 @ W @ D2
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, overload

from ..algebra import Formula, parse
from ..algebra.nodes import Leaf
from ..errors import SubspaceError, nearest
from .checks import start_problem
from .functions import formula_of
from .hosted import HOSTED
from .method import UNNAMED, AnyMethod, Category, Method, starts_at_weight
from .roles import ALL_MATRICES
from .schedules.lora_dash import LoRADash
from .starts import infer_starts

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
    learning_rate: float | None = None,
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
    learning_rate: float | None = None,
    citation: str = "",
    name: str | None = None,
    replace: bool = False,
    **needs: Any,
) -> Method | Callable[[Callable[..., Any]], Method]:
    """Declare and register a method: decorate a function whose parameters are the formula's names.

    ``@method`` without arguments uses every default.

    Examples:
        >>> @method(count="n")
        ... def scaled_inputs(W, D1):
        ...     return D1 @ W

    ``needs`` are the fields of :class:`Method` from ``mode`` on, for methods that need more than a formula. Without a
    ``learning_rate``, the default is the one that follows from the formula.

    Raises:
        SubspaceError: the function does not return a formula of its parameters, shapes do not fit, phi(W) is not W at
            the start or cannot leave it, or the name is taken (``replace=True`` replaces the method).
    """

    def declare(function: Callable[..., Any]) -> Method:
        own = name or function.__name__
        formula = formula_of(own, function, starts_at_weight)
        catalogued = (function.__module__ or "").startswith(f"{__package__}.")
        derives = learning_rate is None and not catalogued  # those of the catalogue need the support of a sweep
        declared = Method(
            name=own,
            formula=formula,
            category=category or categorise(formula),
            placement=placement,
            count=count,
            starts=dict(starts or {}),
            includes=dict(includes or {}),
            learning_rate=Method.learning_rate if learning_rate is None else learning_rate,
            citation=citation,
            description=inspect.getdoc(function) or "",
            **({"derives_rate": derives} | needs),
        )
        return register(declared, replace=replace, check=not catalogued)  # the tests check it; a check costs 10 ms

    return declare if function is None else declare(function)


def register(new: Method, replace: bool = False, check: bool = True) -> Method:
    """Add a method to the registry, where every command and law finds it.

    The same declaration may be repeated, as when a notebook cell is run twice.

    Args:
        new: the method.
        replace: whether it may take the place of another one of its name.
        check: whether to check that it starts at W and can leave it.

    Raises:
        SubspaceError: another method has the name, or the start is wrong.
    """
    if new.name in HOSTED:
        raise SubspaceError(f"a method named {new.name!r} already exists as a class of peft's; choose another name")
    known = _REGISTRY.get(new.name, new)
    if known != new and not replace:
        what = f": {known.formula}" if known.formula != new.formula else ", with other fields"
        raise SubspaceError(f"a method named {new.name!r} already exists{what}; replace=True replaces it")
    if check and start_problem(new) is not None:
        new.check_start(rank=1)  # some formulas start at W only at low ranks; a config checks its own rank
    _REGISTRY[new.name] = new
    return new


def unregister(name: str) -> None:
    """Remove a method from the registry."""
    _REGISTRY.pop(get(name).name)


def named(name: str) -> AnyMethod:
    """Return a method of either kind. Raises SubspaceError with the nearest known names."""
    known: Mapping[str, AnyMethod] = {**_REGISTRY, **HOSTED}
    if name not in known:
        raise SubspaceError(f"unknown method {name!r}; {nearest(name, known)}")
    return known[name]


def get(name: str) -> Method:
    """Return a registered method. Raises SubspaceError with the nearest known names, or if it is not a formula."""
    return named(name).on_matrices


def find(name: str | None) -> Method | None:
    """Return a registered method, or None if none has that name."""
    return None if name is None else _REGISTRY.get(name)


def every() -> Iterator[Method]:
    """Yield the registered methods in the order of the paper: reconstruction, extension, combination."""
    order = ("reconstruction", "extension", "combination")
    return iter(sorted(_REGISTRY.values(), key=lambda known: (order.index(known.category), known.name)))


def listed() -> Iterator[AnyMethod]:
    """Yield the methods of both kinds, those that are peft's own last."""
    yield from every()
    yield from HOSTED.values()


def from_formula(text: str, starts: Mapping[str, str] | None = None, name: str = UNNAMED) -> Method:
    """Return an unregistered method for a formula string. Raises FormulaError, or SubspaceError on a wrong start."""
    formula = parse(text, starts_at_weight)
    return Method(
        name,
        formula,
        categorise(formula),
        starts=dict(starts or {}),
        selection="fisher" if formula.masked else None,
        budget=0.005 if formula.masked else None,
        schedule="lora_dash" if LoRADash.lacking(formula) is None else None,
        derives_rate=True,
    )


def categorise(formula: Formula) -> Category:
    """Tell from a formula's form to which of the paper's three kinds it belongs."""
    terms = getattr(formula.matrix, "terms", (formula.matrix,))
    plain = any(isinstance(term, Leaf) and term.name == "W" for term in terms)
    added = "zeros" in infer_starts(formula).values() and formula.bias is None
    if plain and added:
        return "extension"
    return "combination" if added else "reconstruction"
