"""Functions as formulas: the text that a function builds from its parameters' names is parsed like any other formula.

The function is called with symbols that record Python's operators and the functions of torch and numpy as text. So both
ways to write a formula have the same operations and the same messages.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from ..algebra import Expression, Formula, FormulaError, parse, symbol
from ..algebra.names import problem
from ..algebra.nodes import Matrix
from ..algebra.nodes.base import ATOM, PRODUCT, SUM, UNARY
from ..errors import SubspaceError, described

_LOWEST = SUM - 1  # comparisons and operations on bits


def formula_of(own: str, function: Callable[..., Any], usable: Callable[[Formula], bool]) -> Formula:
    """Return the formula that a function builds from the names of its parameters.

    Args:
        own: the name of the method.
        function: a function whose parameters are the names of the formula.
        usable: a condition on formulas that an error may suggest.

    Raises:
        SubspaceError: a parameter cannot be a name, or is not used; or, as FormulaError, the formula is refused.
    """
    parameters = inspect.signature(function).parameters
    for parameter in parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise SubspaceError(f"method {own!r}: the parameter {parameter} is not a name of the formula")
        if parameter.default is not parameter.empty:
            raise SubspaceError(
                f"method {own!r}: the parameter {parameter.name} has a default, which a formula's names cannot have; "
                "write the number into the formula"
            )
        if problem(parameter.name) is not None:
            raise SubspaceError(f"method {own!r}: {problem(parameter.name)}")
    try:
        formula = parse(_text_of(own, function, tuple(parameters)), usable)
    except FormulaError as error:
        raise error.within(own) from None
    unused = [name for name in parameters if name not in formula.expression.names and symbol(name).names]
    if unused:
        raise SubspaceError(f"method {own!r}: the formula {formula} does not use the parameter {unused[0]}")
    return formula


def _text_of(own: str, function: Callable[..., Any], names: Sequence[str]) -> str:
    """Return the text that the function builds. Raises SubspaceError if it fails."""
    try:
        written = function(*map(Name, names))
    except NameError as error:
        raise SubspaceError(f"method {own!r}: {error}; every name of the formula is a parameter") from None
    except SubspaceError as error:
        raise SubspaceError(f"method {own!r}: {error}") from None
    except Exception as error:
        # If Python cannot apply an operation to a name, its message suffices; other errors need their type, too.
        reason = str(error) if isinstance(error, (TypeError, AttributeError)) else described(error)
        raise SubspaceError(f"method {own!r}: not a formula ({' '.join(reason.split())})") from None
    if not isinstance(written, Expression):
        raise SubspaceError(f"method {own!r}: the function returns {type(written).__name__}, not a formula")
    return str(written)


class Name(Matrix):
    """A part of a formula as text. It is combined and printed, and never evaluated."""

    __iter__ = None  # it can be indexed, but not iterated
    __contains__ = None
    precedence: int

    def __init__(self, text: str, precedence: int = ATOM) -> None:
        super().__init__(text)
        object.__setattr__(self, "precedence", precedence)

    def __bool__(self) -> bool:
        raise SubspaceError("a formula has no conditions: a name is neither true nor false")

    def __getattr__(self, name: str) -> Name:
        if name.startswith("_"):
            raise AttributeError(f"a name has no {name}")
        return Name(f"{self.inside(UNARY)}.{name}")

    def __abs__(self) -> Name:
        return Name(f"abs({self})")

    @property
    def T(self) -> Expression:
        return Name(f"{self.inside(UNARY)}.T")

    def __call__(self, *arguments: object) -> Name:
        return Name(f"{self.inside(UNARY)}({_listed(arguments)})")

    def __getitem__(self, index: object) -> Name:
        return Name(f"{self.inside(UNARY)}[{_listed(index if isinstance(index, tuple) else (index,))}]")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Name:
        return _called("torch", function, arguments)

    def __array_function__(self, function: Any, types: Any, arguments: Any, keywords: Any) -> Name:
        return _called("np", function, arguments)

    def __array_ufunc__(self, function: Any, method: str, *arguments: Any, **keywords: Any) -> Name:
        return _called("np", function, arguments)


_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "matmul": "@", "truediv": "/", "floordiv": "//", "mod": "%"}
_OPERATORS |= {"pow": "**", "and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>"}
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_UNARY = {"neg": "-", "pos": "+", "invert": "~"}
_BINDS = {"+": SUM, "-": SUM} | dict.fromkeys(("*", "@", "/", "//", "%"), PRODUCT)


def _called(library: str, function: Any, arguments: Sequence[object]) -> Name:
    """Record the call of a library function, or the operation if it is one on a number, as in ``tensor * A``."""
    name = function.__name__.strip("_")
    operator = _OPERATORS.get({"multiply": "mul", "subtract": "sub", "divide": "truediv"}.get(name, name))
    if operator is not None and len(arguments) == 2 and not isinstance(arguments[0], Expression):
        return _joined(arguments[0], arguments[1], operator)
    return Name(f"{library}.{name}({_listed(arguments)})")


def _listed(operands: Sequence[object]) -> str:
    return ", ".join(map(str, map(_operand, operands)))


def _operand(operand: object) -> Expression:
    """Return an operand as text. Raises SubspaceError for a tensor that is not a number."""
    if isinstance(operand, Expression):
        return operand
    if isinstance(operand, (Tensor, np.ndarray)):
        if operand.ndim:
            raise SubspaceError("a formula contains no tensors, only names for them")
        return _operand(operand.item())
    if isinstance(operand, slice):
        return Name(":")
    if isinstance(operand, (tuple, list)):
        return Name(f"[{_listed(operand)}]")
    if operand is None or isinstance(operand, (bool, str)):
        return Name(repr(operand))
    if isinstance(operand, Real):
        return Name(str(int(operand)) if isinstance(operand, Integral) else repr(float(operand)))
    raise SubspaceError(f"{operand!r} cannot be part of a formula, which has names and numbers")


def _joined(left: object, right: object, sign: str) -> Name:
    binds = _BINDS.get(sign, _LOWEST)
    first, second = _operand(left).inside(max(binds - 1, _LOWEST)), _operand(right).inside(max(binds, SUM))
    return Name(f"{first} {sign} {second}", binds)


def _infix(sign: str) -> Callable[[object, object], Name]:
    return lambda self, other: _joined(self, other, sign)


def _turned(sign: str) -> Callable[[object, object], Name]:
    return lambda self, other: _joined(other, self, sign)


def _sum_begun(self: Name, other: object) -> Name:
    """Return ``other + self``, or the name itself for the 0 with which Python's ``sum`` begins."""
    return self if type(other) is int and other == 0 else _joined(other, self, "+")


def _prefix(sign: str) -> Callable[[Name], Name]:
    return lambda self: Name(f"{sign}{self.inside(UNARY)}", UNARY)


for _name, _sign in (_OPERATORS | _COMPARISONS).items():
    setattr(Name, f"__{_name}__", _infix(_sign))
for _name, _sign in _OPERATORS.items():
    setattr(Name, f"__r{_name}__", _turned(_sign))
Name.__radd__ = _sum_begun  # type: ignore[assignment]
for _name, _sign in _UNARY.items():
    setattr(Name, f"__{_name}__", _prefix(_sign))
