"""A function as a formula: what it says is the formula of the names of its parameters, refused as a string would be.

A function that Python cannot carry out on formulas, such as ``A % B`` or ``A.t()``, is called once more with names that
only write down what is done with them. What it writes is then read, and refused with place, reason and suggestion.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..algebra import Expression, Formula, FormulaError, parse, symbol
from ..algebra.names import problem
from ..algebra.nodes import Matrix
from ..errors import SubspaceError


def formula_of(own: str, function: Callable[..., Any], usable: Callable[[Formula], bool]) -> Formula:
    """Return the formula that a function makes of the names of its parameters.

    Args:
        own: the name of the method.
        function: a function whose parameters are the names of the formula.
        usable: what must hold for a formula that an error suggests.

    Raises:
        SubspaceError: the parameters cannot be names, or one is not used; as FormulaError, the formula is refused.
    """
    parameters = inspect.signature(function).parameters
    for parameter in parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise SubspaceError(f"method {own!r}: the parameter {parameter} is not a name of the formula")
        if parameter.default is not parameter.empty:
            raise SubspaceError(
                f"method {own!r}: the parameter {parameter.name} has a default, and a formula's names have none; write "
                "the number into the formula"
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
    """Return what the function says of the names, as text."""
    try:
        expression = function(*map(symbol, names))
    except NameError as error:
        raise SubspaceError(f"method {own!r}: {error}; every name of the formula is a parameter") from None
    except Exception as error:
        return _written(own, function, names, error)
    if not isinstance(expression, Expression):
        return _written(own, function, names, f"the function returns {type(expression).__name__}, not a formula")
    return str(expression)


def _written(own: str, function: Callable[..., Any], names: Sequence[str], why: Exception | str) -> str:
    """Return what the function writes with names that refuse nothing. Raises SubspaceError if it fails even then."""
    try:
        expression = function(*map(_Written, names))
        if isinstance(expression, Expression):
            return ast.unparse(ast.parse(str(expression), mode="eval"))
    except SubspaceError as error:
        why = error
    except Exception:  # what was raised first is told
        pass
    told = why if isinstance(why, (str, SubspaceError)) else f"not a formula ({_line(why)})"
    raise SubspaceError(f"method {own!r}: {told}") from None


def _line(error: Exception) -> str:
    """Return what an error says in one line; of an error without words its kind."""
    return " ".join(str(error).split()) or type(error).__name__


class _Written(Matrix):
    """A part of a formula as it is written, with whatever Python can do with it. It is printed, and never evaluated."""

    __iter__ = None  # it has parts by number, and no last one
    __contains__ = None

    def __getattr__(self, name: str) -> _Written:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Written(f"{self}.{name}")

    def __call__(self, *arguments: object) -> _Written:
        return _Written(f"{self}({', '.join(map(_told, arguments))})")

    def __getitem__(self, index: object) -> _Written:
        return _Written(f"{self}[{_told(index)}]")

    @property
    def T(self) -> Expression:
        return _Written(f"{self}.T")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> _Written:
        return _called("torch", function, arguments)

    def __array_function__(self, function: Any, types: Any, arguments: Any, keywords: Any) -> _Written:
        return _called("np", function, arguments)

    def __array_ufunc__(self, function: Any, method: str, *arguments: Any, **keywords: Any) -> _Written:
        return _called("np", function, arguments)


def _called(library: str, function: Any, arguments: Sequence[object]) -> _Written:
    return _Written(f"{library}.{function.__name__.strip('_')}({', '.join(map(_told, arguments))})")


def _told(operand: object) -> str:
    """Return an operand as it stands in a formula. Raises SubspaceError for a tensor."""
    if isinstance(operand, (Tensor, np.ndarray)):
        if operand.ndim:
            raise SubspaceError("a tensor is no part of a formula, whose names stand for all tensors")
        return str(operand.item())
    if isinstance(operand, slice):
        return ":"
    if isinstance(operand, (tuple, list)):
        return f"[{', '.join(map(_told, operand))}]"
    return repr(operand) if isinstance(operand, str) else str(operand)


def _infix(sign: str, turned: bool = False) -> Callable[[_Written, object], _Written]:
    def written(self: _Written, other: object) -> _Written:
        left, right = (other, self) if turned else (self, other)
        return _Written(f"({_told(left)} {sign} {_told(right)})")

    return written


def _prefix(sign: str) -> Callable[[_Written], _Written]:
    return lambda self: _Written(f"({sign}({self}))")


_INFIX = {"matmul": "@", "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**"}
_INFIX |= {"and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>"}
for _name, _sign in _INFIX.items():
    setattr(_Written, f"__{_name}__", _infix(_sign))
    setattr(_Written, f"__r{_name}__", _infix(_sign, turned=True))
for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items():
    setattr(_Written, f"__{_name}__", _infix(_sign))
for _name, _sign in {"neg": "-", "pos": "+", "invert": "~", "abs": "abs"}.items():
    setattr(_Written, f"__{_name}__", _prefix(_sign))
