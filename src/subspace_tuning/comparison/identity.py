"""The identity of a run: everything that its result depends on, as one digest."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..jobs.description import canonical
from ..models.locate import locate
from ..provenance import versions

# A run executes nothing of these.
_BESIDE = {"adapters", "bench", "comparison", "counting", "report", "serve", "statistics"}
_OF_A_MODEL = {".bin", ".json", ".model", ".safetensors", ".txt"}


def run_id(config: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a run in hexadecimal digits.

    Args:
        config: the run's resolved config; its output is left out, since a folder may be moved.
        origin: the digests of its data, its model and the code.
    """
    known = {key: value for key, value in config.items() if key != "output"}
    return hashlib.sha256(canonical({"config": known, **origin}).encode()).hexdigest()


@cache
def code() -> dict[str, str]:
    """Return the versions of the packages that affect a run, and a digest of this package's source.

    Comments, docstrings and layout do not count, nor do the parts that no run executes.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in _BESIDE:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            digest.update(f"{name.as_posix()}\n{ast.dump(_without_docstrings(tree))}\n".encode())
    return {"source": digest.hexdigest(), **versions()}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in _documented(tree):
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            del node.body[0]
    return tree


def _documented(tree: ast.Module) -> Iterator[Any]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return (node for node in ast.walk(tree) if isinstance(node, kinds))


@cache
def model_digest(name: str) -> str:
    """Return the digest of a model's files, or a hub name itself, whose files only the hub knows.

    Raises:
        SubspaceError: the model cannot be found.
    """
    source = locate(name)
    if not Path(source).is_dir():
        return source
    digest = hashlib.sha256()
    for path in sorted(Path(source).iterdir()):
        if path.is_file() and path.suffix in _OF_A_MODEL:
            digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    return digest.hexdigest()
