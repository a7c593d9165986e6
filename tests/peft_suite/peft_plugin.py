"""A pytest plugin that runs peft's parametrised tests on this package's configs.

When a test module has been imported, every parametrisation whose rows are one of its tables of configs gets ours
instead. Tests that then have none of our configs are deselected.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from typing import Any

import peft_spec
import pytest
import torch

if importlib.util.find_spec("diffusers") is None:  # imported only to ask whether a model is one of its pipelines
    stub = types.ModuleType("diffusers")
    stub.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore[attr-defined]
    sys.modules["diffusers"] = stub


def pytest_collectstart(collector: pytest.Collector) -> None:
    if not isinstance(collector, pytest.Module):
        return
    try:
        module = collector.obj
    except BaseException:  # pytest reports it when it collects
        return
    name = module.__name__.rpartition(".")[2]
    tables, rows = peft_spec.tables(name), peft_spec.rows_of_tests(name)
    exchanged = [(getattr(module, table), new) for table, new in tables.items()]
    for table, new in tables.items():
        setattr(module, table, new)
    for function in _test_functions(module):
        _exchange(function, exchanged, rows)
    peft_spec.lift_skips(name, module)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if hasattr(item, "callspec") and any(map(_ours, item.callspec.params.values()))]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draw the same factors in every run: peft's comparisons of whole and mixed batches allow hardly any rounding."""
    torch.manual_seed(0)


def _test_functions(module: types.ModuleType) -> list[Any]:
    own = [member for member in vars(module).values() if getattr(member, "__module__", None) == module.__name__]
    classes = [vars(member).values() for member in own if inspect.isclass(member)]
    return [member for members in (own, *classes) for member in members if inspect.isfunction(member)]


def _exchange(function: Any, tables: list[tuple[Any, Any]], rows: dict[tuple[str, str], list[Any]]) -> None:
    for index, mark in enumerate(getattr(function, "pytestmark", ())):
        if mark.name != "parametrize":
            continue
        names, values = mark.args[:2]
        new = next((new for old, new in tables if old is values), rows.get((function.__name__, names)))
        if new is not None:
            options = {key: value for key, value in mark.kwargs.items() if key != "ids"}
            function.pytestmark[index] = pytest.mark.parametrize(names, new, *mark.args[2:], **options).mark


def _ours(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_ours, value))
    kind = value if isinstance(value, type) else type(value)
    return issubclass(kind, peft_spec.SubspaceConfig)
