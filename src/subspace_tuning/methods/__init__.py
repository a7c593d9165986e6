"""The catalogue of methods. Every module in the three folders is imported, so a new method is one new file."""

from __future__ import annotations

import importlib
import pkgutil

from .explanation import Explanation, explain
from .factors import Factors, computed_constants, environment, initial_factors
from .hosted import HOSTED, Hosted, hosted
from .method import AnyMethod, Method
from .registry import every, find, from_formula, get, listed, method, named, register, unregister
from .roles import ALL_MATRICES, CROSS_ATTENTION, EVERY_BIAS, FFN_NORM, ROLES, SCALED
from .selections import SELECTIONS, Selection

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
    "SELECTIONS",
    "AnyMethod",
    "Explanation",
    "Factors",
    "Hosted",
    "Method",
    "Selection",
    "computed_constants",
    "environment",
    "every",
    "explain",
    "find",
    "from_formula",
    "get",
    "hosted",
    "initial_factors",
    "listed",
    "method",
    "named",
    "register",
    "unregister",
]
