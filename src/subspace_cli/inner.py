"""The inner rings without the tuner, for commands that answer from the catalogue alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

from .refuse import UsageError

_PACKAGE = "subspace_tuning"


@contextmanager
def inner_rings() -> Iterator[None]:
    """Import rings within the body as if the package imported nothing itself: peft and transformers take seconds.

    A bare package stands in its place until the body ends. Nothing changes if the package has been imported before.

    Raises:
        UsageError: in place of a SubspaceError of the body, whose class is forgotten with the rings.
    """
    if _PACKAGE in sys.modules:
        yield
        return
    found = find_spec(_PACKAGE)
    assert found is not None
    bare = sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
    bare.__path__ = list(found.submodule_search_locations or ())
    from subspace_tuning.errors import SubspaceError

    try:
        yield
    except SubspaceError as error:
        raise UsageError(str(error)) from error
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
            del sys.modules[name]
