"""The catalogue of methods. Every module of the three folders is read, so a new method is one new file."""

from __future__ import annotations

import importlib
import pkgutil

from .explanation import Explanation, explain
from .factors import Factors, computed_constants, environment, initial_factors
from .hosted import HOSTED, Hosted, hosted
from .registry import Method, every, find, from_formula, get, method, register, unregister
from .roles import ALL_MATRICES, CROSS_ATTENTION, EVERY_BIAS, FFN_NORM, ROLES, SCALED

for _category in ("reconstruction", "extension", "combination"):
    _package = importlib.import_module(f"{__name__}.{_category}")
    for _module in pkgutil.iter_modules(_package.__path__):
        importlib.import_module(f"{_package.__name__}.{_module.name}")

__all__ = [
    "ALL_MATRICES",
    "CROSS_ATTENTION",
    "EVERY_BIAS",
    "FFN_NORM",
    "HOSTED",
    "ROLES",
    "SCALED",
    "Explanation",
    "Factors",
    "Hosted",
    "Method",
    "computed_constants",
    "environment",
    "every",
    "explain",
    "find",
    "from_formula",
    "get",
    "hosted",
    "initial_factors",
    "method",
    "register",
    "unregister",
]
