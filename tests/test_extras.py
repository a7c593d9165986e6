"""The core and the extras: what each part imports is declared, and what is not installed is named in one line."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import subspace_tuning
from subspace_cli.app import app
from subspace_tuning.extras import EXTRAS

from .packaged import packaged

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
SOURCE = Path(subspace_tuning.__file__).parent
COMMAND = SOURCE.parent / "subspace_cli"
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

CORE = {"torch", "peft", "transformers", "safetensors", "numpy", "platformdirs"}
ON_TOP = {"accelerate", "filelock", "huggingface-hub", "psutil"}  # imported, too, and brought by peft
# What a ring imports beyond the core; other rings import the core alone.
OF_RING = {
    "linalg": "theory",
    "theory": "theory",
    "adapters": "theory",
    "tasks": "train, language",
    "statistics": "compare",
    "training": "train",
    "serve": "serve",
    "comparison": "compare",
    "bench": "train",
    "models": "demo, quantised, diffusion",
    "report": "report",
    "cli": "cli",
}


def extras_of(ring: str) -> list[str]:
    return OF_RING[ring].split(", ") if ring in OF_RING else []


# Rings that check their (first) extra before any of their modules loads.
GUARDED = ("adapters", "tasks", "statistics", "training", "comparison", "serve")
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
    for extra, packages in EXTRAS.items():
        assert set(packages) == set(requirements(extra)), extra
    assert set(requirements("all")) == {package for packages in EXTRAS.values() for package in packages}
    assert set(requirements("all")) <= set(requirements("dev"))
    assert set(PROJECT["optional-dependencies"]) == {*EXTRAS, "all", "docs", "dev"}


class Imports(ast.NodeVisitor):
    """Collects the modules that a file imports when it runs, each with those that ``needs`` checks in its function."""

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
    """Return the modules that calls of ``needs`` ask for."""
    found: set[str] = set()
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "needs":
            extra, *packages = (ast.literal_eval(word) for word in call.args[1:])
            found |= {EXTRAS[extra][package] for package in packages or EXTRAS[extra]}
    return frozenset(found)


@cache
def third_party() -> list[tuple[Path, str, str, frozenset[str]]]:
    """Every import of another distribution's module: file, ring, module, and the modules that are checked before."""
    found = []
    for path in (*SOURCE.rglob("*.py"), *COMMAND.rglob("*.py")):
        visitor = Imports()
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        name = path.relative_to(SOURCE).parts[0].removesuffix(".py") if SOURCE in path.parents else "cli"
        found += [
            (path, name, module, before)
            for module, before in visitor.found
            if module not in (*sys.stdlib_module_names, *OF_ITS_WEIGHTS, "subspace_tuning")
        ]
    return found


def test_every_import_is_of_a_declared_package() -> None:
    """What is not of the core is of the ring's extra, and is looked for before it is imported."""
    core = {name.replace("-", "_") for name in CORE | ON_TOP}
    optional = [found for found in third_party() if found[2] not in core]
    assert len(optional) > 20
    for path, name, module, before in optional:
        assert any(module in EXTRAS[extra].values() for extra in extras_of(name)), f"{path} imports {module}"
        # The command looks for its own extra before its modules load.
        if name not in (*GUARDED, "cli") or module not in EXTRAS[extras_of(name)[0]].values():
            assert module in before, f"{path} imports {module} and does not check that it is installed"


@pytest.mark.parametrize("name", GUARDED)
def test_guarded_rings_check_their_extra_first(name: str) -> None:
    body = ast.parse((SOURCE / name / "__init__.py").read_text(encoding="utf-8")).body
    first = next(number for number, node in enumerate(body) if checked(node))
    assert checked(body[first]) == set(EXTRAS[extras_of(name)[0]].values())
    own = [node.module for node in body[:first] if isinstance(node, ast.ImportFrom) and node.level]
    assert own == ["extras"]


def test_subcommands_import_the_library_when_they_run() -> None:
    for path in COMMAND.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in getattr(node, "names", ())]
            )
            assert not any(str(name).startswith("subspace_tuning") for name in names), path


def test_nothing_is_declared_that_nobody_imports() -> None:
    imported = {(extra, module) for _, name, module, _ in third_party() for extra in extras_of(name) or [""]}
    assert {name.replace("-", "_") for name in CORE | ON_TOP} <= {module for _, module in imported}
    for extra, packages in EXTRAS.items():
        joins = extra in ("compare", "demo", "serve")  # other extras, with something of its own
        others = {package for other in EXTRAS if other != extra for package in EXTRAS[other]} if joins else ()
        for package in packages.keys() - others:
            module = packages[package]
            assert (extra, module) in imported or _named(extra, module), f"[{extra}] declares {package}"


def _named(extra: str, module: str) -> bool:
    """Whether a ring of the extra hands the name of a module to something that imports it."""
    rings = [name for name in OF_RING if extra in extras_of(name)]
    files = [path for name in rings for path in (COMMAND if name == "cli" else SOURCE / name).rglob("*.py")]
    return any(f'"{module}"' in path.read_text(encoding="utf-8") for path in files)


# What is installed

EXTRA_OF_PART = {
    "subspace_tuning.adapters.extract": "theory",
    "subspace_tuning.tasks": "train",
    "subspace_tuning.tasks.glue": "train",
    "subspace_tuning.training.run": "train",
    "subspace_tuning.statistics": "compare",
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
    "evaluate none --data none": "train",
    "predict none --text word": "train",
    "generate none --text word": "train",
    "merge none -o other": "train",
    "push none owner/name": "train",
    "serve none": "serve",
    "compare none.yaml": "compare",
    "report none.sqlite": "compare",
    "train --template": "train",
    "reference": "compare",
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

    assert found["methods"] == {case.name: True for case in packaged()}
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
    extra = extras_of(name)[0]
    call = {"theory": "solve", "models": "find_minilm", "report": "write_parquet"}.get(name)
    found = run("ring", refused(extra), name=name, call=call)
    assert len(found) > 1
