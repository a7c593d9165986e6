"""Transactions: a change of a model that fails half-way is undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .walking import Outside


@contextmanager
def undone_on_failure(model: Outside) -> Iterator[None]:
    """Undo the changes of a model if the body ends with any exception, including a keyboard interrupt.

    Only the adapters that the ``Outside`` names may change.

    Restored are the attributes of modules (children, parameters, hooks, the contents of their dictionaries) and the
    flags of parameters. Tensors are not copied, so changes of their content remain.
    """
    attributes = [(module, _contents(vars(module))) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, contents in attributes:
            vars(module).clear()
            for name, (value, content) in contents.items():
                vars(module)[name] = value
                _refill(value, content)
        for parameter, flag in flags:
            if parameter.requires_grad != flag:  # an uninitialised one cannot be changed
                parameter.requires_grad_(flag)
        raise


def _contents(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return each attribute with a copy of its content, or None if it is not a container."""
    return {
        name: (value, value.copy() if isinstance(value, dict | list | set) else None)
        for name, value in attributes.items()
    }


def _refill(value: Any, content: Any) -> None:
    """Restore the content of a container in place, since handles of hooks refer to it."""
    if content is None:
        return
    value.clear()
    if isinstance(value, list):
        value.extend(content)
    else:
        value.update(content)
