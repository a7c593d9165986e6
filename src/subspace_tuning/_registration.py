"""Registers the tuner with peft without loading peft: whoever uses the algebra alone does not wait for it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_TUNER = f"{__package__}.tuner"


def register_with_peft() -> None:
    """Register now if peft is loaded, else right after somebody loads it."""
    peft = sys.modules.get("peft")
    if peft is not None and not getattr(peft.__spec__, "_initializing", False):
        importlib.import_module(_TUNER)
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


class _AfterPeft(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("peft")
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                importlib.import_module(_TUNER)

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
