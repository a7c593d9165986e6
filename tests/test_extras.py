"""The core and the extras: what each part imports is declared, and what is not installed is named in one line."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import subspace_tuning
from subspace_tuning import methods
from subspace_tuning.cli.app import app
from subspace_tuning.extras import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
SOURCE = Path(subspace_tuning.__file__).parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

CORE = {"torch", "peft", "transformers", "safetensors", "numpy", "platformdirs"}
ON_TOP = {"accelerate", "huggingface-hub", "psutil"}  # imported, too, and brought by peft
# What a ring imports beyond the core; other rings import the core alone.
OF_RING = {
    "linalg": "theory",
    "theory": "theory",
    "adapters": "theory",
    "tasks": "train",
    "training": "train",
    "bench": "train",
    "models": "demo",
    "report": "report",
    "cli": "cli",
}
GUARDED = {"adapters", "tasks", "training"}  # rings that need their extra as soon as they are imported
OF_ITS_WEIGHTS = {"deepspeed"}  # imported only for a weight that DeepSpeed itself made


def requirements(extra: str = "") -> dict[str, Requirement]:
    """Return what pyproject.toml declares for an extra, or for the core; extras of its own are resolved."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    found: dict[str, Requirement] = {}
    for one in map(Requirement, lines):
        own = one.name == PROJECT["name"]
        found |= {name: r for part in one.extras for name, r in requirements(part).items()} if own else {one.name: one}
    return found


def closure(wanted: Iterable[Requirement]) -> set[str]:
    """Return the names of all distributions that come with some, as far as they are installed here."""
    found: set[tuple[str, str]] = set()
    waiting = [(one.name, extra) for one in wanted for extra in ("", *one.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (canonicalize_name(name), extra) in found:
            continue
        found.add((canonicalize_name(name), extra))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        for one in map(Requirement, lines):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                waiting += [(one.name, part) for part in ("", *one.extras)]
    return {name for name, _ in found}


def refused(*extras: str) -> set[str]:
    """Return the top-level modules that would be missing were only the core and some extras installed."""
    allowed = closure([one for extra in ("", *extras) for one in requirements(extra).values()])
    return {module for module, names in _modules().items() if not allowed & set(map(canonicalize_name, names))}


@cache
def _modules() -> dict[str, list[str]]:
    known = {module: list(names) for module, names in metadata.packages_distributions().items()}
    known.pop("subspace_tuning", None)
    return known


def run(function: str, refusing: Iterable[str], **arguments: Any) -> Any:
    """Run a function of only_installed.py where some modules cannot be imported, and return its result."""
    task = json.dumps({"run": function, "refused": sorted(refusing), **arguments})
    command = [sys.executable, str(HERE / "only_installed.py"), task]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# What is declared


def test_the_core_is_small() -> None:
    assert set(requirements()) == CORE | ON_TOP
    assert closure(requirements().values()) == closure(one for name, one in requirements().items() if name in CORE)


def test_the_extras_are_those_of_pyproject() -> None:
    declared = {extra: set(requirements(extra)) for extra in PROJECT["optional-dependencies"]}
    assert {extra: set(packages) for extra, packages in EXTRAS.items() if extra != "demo"} == {
        extra: declared[extra] for extra in EXTRAS if extra != "demo"
    }
    assert declared["demo"] == {package for extra in ("demo", "cli", "train", "report") for package in EXTRAS[extra]}
    assert declared["all"] == {package for packages in EXTRAS.values() for package in packages}
    assert declared["all"] <= declared["dev"]


class Imports(ast.NodeVisitor):
    """Collects the imports of a file that run, each with the extras that its functions check with ``needs``."""

    def __init__(self) -> None:
        self.found: list[tuple[str, frozenset[str]]] = []
        self._checked: frozenset[str] = frozenset()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = self._checked
        self._checked |= checked(node)
        self.generic_visit(node)
        self._checked = before

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name.partition(".")[0], self._checked) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not node.level and node.module:
            self.found.append((node.module.partition(".")[0], self._checked))


def checked(node: ast.AST) -> frozenset[str]:
    """Return the extras that are named in calls of ``needs``."""
    calls = [one for one in ast.walk(node) if isinstance(one, ast.Call) and ast.unparse(one.func) == "needs"]
    return frozenset(arg.value for call in calls for arg in call.args[1:] if isinstance(arg, ast.Constant))  # type: ignore[misc]


def third_party() -> Iterator[tuple[Path, str, str, frozenset[str]]]:
    """Every import of another distribution's module: file, ring, module, and what is checked before."""
    for path in SOURCE.rglob("*.py"):
        visitor = Imports()
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for module, before in visitor.found:
            if module not in sys.stdlib_module_names and module not in OF_ITS_WEIGHTS:
                yield path, name, module, before


def test_every_import_is_of_a_declared_package() -> None:
    core = {name.replace("-", "_") for name in CORE | ON_TOP}
    seen = 0
    for path, name, module, before in third_party():
        seen += 1
        if module in core:
            continue
        extra = OF_RING.get(name, "")
        assert module in EXTRAS.get(extra, {}).values(), f"{path} imports {module}"
        entered = name == "cli" or name in GUARDED  # main() checks what the command needs
        assert entered or extra in before, f"{path} imports {module} and does not check that it is installed"
    assert seen > 100


def test_guarded_rings_check_their_extra_first() -> None:
    for name in GUARDED:
        body = ast.parse((SOURCE / name / "__init__.py").read_text(encoding="utf-8")).body
        calls = [number for number, node in enumerate(body) if OF_RING[name] in checked(node)]
        assert calls, name
        assert all(
            ast.unparse(node).startswith("from ..extras")
            or isinstance(node, ast.Expr)
            or "__future__" in ast.unparse(node)
            for node in body[: calls[0]]
        ), name


def test_nothing_is_declared_that_nobody_imports() -> None:
    imported = {(OF_RING.get(name, ""), module) for _, name, module, _ in third_party()}
    modules = {module for _, module in imported}
    assert {name.replace("-", "_") for name in CORE | ON_TOP} <= modules
    for extra, packages in EXTRAS.items():
        for module in packages.values():
            assert (extra, module) in imported or _named(extra, module), f"[{extra}] declares {module}"


def _named(extra: str, module: str) -> bool:
    """Whether a ring of the extra hands the name of a module to something that imports it."""
    rings = [name for name, own in OF_RING.items() if own == extra]
    files = [path for name in rings for path in (SOURCE / name).rglob("*.py")]
    return any(f'"{module}"' in path.read_text(encoding="utf-8") for path in files)


# What is installed

EXTRA_OF_PART = {
    "subspace_tuning.adapters.extract": "theory",
    "subspace_tuning.tasks": "train",
    "subspace_tuning.tasks.glue": "train",
    "subspace_tuning.training.run": "train",
}
EXTRA_OF_CALL = {"solve": "theory", "find_minilm": "demo", "draw": "report", "write_parquet": "report"}
# A call of every subcommand, and the extra that it asks for besides [cli].
COMMANDS = {
    "methods": "",
    "methods dora": "",
    "methods --markdown": "",
    "explain D1@W@D2": "",
    "params MODEL -m ssb -m lora": "",
    "inspect MODEL --plan": "",
    "params minilm": "demo",
    "inspect MODEL none": "theory",
    "extract MODEL MODEL -o none": "theory",
    "convert none --to lora -o none": "theory",
    "combine none none -o none": "theory",
    "recommend MODEL --tuned MODEL": "theory",
    "train none.yaml": "train",
    "train --template": "train",
    "reference": "train",
    "bench -o none.json": "train",
    "demo -o none": "demo",
}


def test_the_core_works_alone(tmp_path: Path) -> None:
    """Also without what [cli] declares, which transformers brings at present."""
    command = set(EXTRAS["cli"].values())
    commands = [words.split() for words in COMMANDS]
    parts, calls = list(EXTRA_OF_PART), list(EXTRA_OF_CALL)
    arguments = {"parts": parts, "calls": calls, "commands": commands, "of_the_command": sorted(command)}
    found = run("core", refused() | command, **arguments)

    assert found["methods"] == {case.name: True for case in methods.every()}
    for name, extra in (EXTRA_OF_PART | EXTRA_OF_CALL).items():
        assert_names(extra, (found["parts"] | found["calls"])[name])
    code, out, err = found["without the command"]
    assert (code, out) == (2, "")
    assert_names("cli", err)
    assert {words.split()[0] for words in COMMANDS} == {one.name for one in app.registered_commands}
    for (words, extra), (code, out, err) in zip(COMMANDS.items(), found["commands"], strict=True):
        if extra:
            assert (code, out) == (2, ""), words
            assert_names(extra, err)
        else:
            assert (code, bool(out), err) == (0, True, ""), (words, err)


def assert_names(extra: str, line: str) -> None:
    """The line names missing packages of the extra and the command that installs it."""
    found = re.fullmatch(r"(?:subspace: )?[^\n]+ needs ([a-z0-9, -]+): pip install 'subspace-tuning\[(\w+)\]'\n?", line)
    assert found, (extra, line)
    assert found[2] == extra
    assert set(found[1].split(", ")) <= set(requirements(extra))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_RING)
def test_a_ring_works_with_its_extra_alone(name: str) -> None:
    extra = OF_RING[name]
    call = {"theory": "solve", "models": "find_minilm", "report": "write_parquet"}.get(name)
    found = run("ring", refused(extra), name=name, call=call)
    assert len(found) > 1
