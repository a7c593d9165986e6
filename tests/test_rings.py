"""The rings: algebra and methods need torch alone, and no ring looks outward."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import subspace_tuning

SOURCE = Path(subspace_tuning.__file__).parent
# From the inside out; a ring may import what stands before it.
RINGS = ("errors", "algebra", "methods", "theory", "tuner", "tasks", "experiments", "cli")
HEAVY = {"peft", "transformers", "accelerate", "datasets", "sklearn"}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, those of the package as ``.ring``."""
    package = ("subspace_tuning", *path.relative_to(SOURCE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            parts = (*base, *(node.module or "").split(".")) if node.module else base
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            found |= {f".{name}" for name in names}
    return found


@pytest.mark.parametrize("ring", RINGS)
def test_no_ring_looks_outward(ring: str) -> None:
    files = sorted((SOURCE / ring).rglob("*.py")) or [SOURCE / f"{ring}.py"]
    outward = {f".{other}" for other in RINGS[RINGS.index(ring) + 1 :]}
    for path in files:
        found = imports(path)
        assert not found & outward, f"{path} imports {found & outward}"
        if ring in ("errors", "algebra", "methods", "theory"):
            assert not found & HEAVY, f"{path} imports {found & HEAVY}"
        if ring not in ("tuner", "experiments"):
            assert "peft" not in found, f"{path} imports peft"


@pytest.mark.parametrize("module", ["subspace_tuning", "subspace_tuning.algebra", "subspace_tuning.methods"])
def test_the_core_loads_torch_alone(module: str) -> None:
    code = f"import sys, {module}; print(*(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize(
    "order",
    [
        "import subspace_tuning, peft",
        "import peft, subspace_tuning",
        "import transformers, subspace_tuning, peft.mapping",
    ],
)
def test_the_tuner_is_registered_whatever_comes_first(order: str) -> None:
    code = f"{order}; from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as m; print('SUBSPACE' in m)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


def test_nothing_is_evaluated_or_unpickled() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile"), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("torch", "load"), path
                assert node.value.id != "pickle", path
