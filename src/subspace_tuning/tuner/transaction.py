"""All or nothing: a change of a model that fails half-way is undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .walking import Outside


@contextmanager
def undone_on_failure(model: Outside) -> Iterator[None]:
    """Undo what happens to a model inside if it ends in any exception, a keyboard interrupt included.

    Of the adapters only those can change that the ``Outside`` names.

    Modules get their attributes back: children, parameters, hooks, what lies in their dictionaries, and the parameters
    their flags. Their tensors are not copied, so changes of their content stay.
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
            if parameter.requires_grad != flag:  # one that is not initialised yet allows no change
                parameter.requires_grad_(flag)
        raise


def _contents(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return each attribute with a copy of what it contains, None if it is no container."""
    return {
        name: (value, value.copy() if isinstance(value, dict | list | set) else None)
        for name, value in attributes.items()
    }


def _refill(value: Any, content: Any) -> None:
    """Give a container its content back; the container itself stays, since handles of hooks refer to it."""
    if content is None:
        return
    value.clear()
    if isinstance(value, list):
        value.extend(content)
    else:
        value.update(content)
