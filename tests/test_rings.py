"""The rings: algebra and methods need torch alone, and no ring looks outward."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import subspace_tuning

SOURCE = Path(subspace_tuning.__file__).parent
COMMAND = SOURCE.parent / "subspace_cli"
FILES = [*SOURCE.rglob("*.py"), *COMMAND.rglob("*.py")]
# From the inside out; a ring may import what stands before it.
RINGS = (
    "errors",
    "extras",
    "documented",
    "compat",
    "files",
    "provenance",
    "jobs",
    "linalg",
    "algebra",
    "methods",
    "theory",
    "tuner",
    "models",
    "adapters",
    "tasks",
    "counting",
    "statistics",
    "training",
    "comparison",
    "serve",
    "report",
    "bench",
)
INNER = RINGS[: RINGS.index("tuner")]
WITH_PEFT = {"tuner", "adapters", "tasks", "counting", "training", "comparison", "bench"}
HEAVY = {"peft", "transformers", "accelerate", "datasets", "sklearn"}


def imports(source: str, package: tuple[str, ...]) -> set[str]:
    """Return the modules that a file of the package imports, those of the package as ``.ring``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {_top(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *(node.module.split(".") if node.module else ())]
            found |= {_top([*parts, alias.name]) for alias in node.names}
    return found


def _top(parts: list[str]) -> str:
    return f".{parts[1]}" if parts[0] == "subspace_tuning" and len(parts) > 1 else parts[0]


def _imports_of(path: Path) -> set[str]:
    return imports(path.read_text(encoding="utf-8"), ("subspace_tuning", *path.relative_to(SOURCE).parent.parts))


@pytest.mark.parametrize("ring", RINGS)
def test_no_ring_looks_outward(ring: str) -> None:
    files = sorted((SOURCE / ring).rglob("*.py")) or [SOURCE / f"{ring}.py"]
    # The package itself imports the tuner, so what comes from its top may be anything.
    outward = {"subspace_tuning", *(f".{other}" for other in RINGS[RINGS.index(ring) + 1 :])}
    public = {f".{name}" for name in subspace_tuning.__all__} - {f".{other}" for other in (*RINGS, "__version__")}
    for path in files:
        found = _imports_of(path)
        assert not found & (outward | public), f"{path} imports {found & (outward | public)}"
        if ring in INNER:
            assert not found & HEAVY, f"{path} imports {found & HEAVY}"
        if ring not in WITH_PEFT:
            assert "peft" not in found, f"{path} imports peft"


def test_every_module_is_in_a_ring() -> None:
    found = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__"} == set(RINGS)


def test_training_sees_no_task_but_the_protocol() -> None:
    for path in (SOURCE / "training").glob("*.py"):
        names = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)]
        assert not any(node.id.startswith(("glue", "Glue", "AutoModel")) for node in names), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tasks"):
                # The demo makes the sentences that it trains on.
                assert node.module == "tasks" or (path.stem, node.module) == ("demo", "tasks.data.acceptability"), path


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from ..tuner.config import SubspaceConfig", ".tuner"),
        ("from .. import tuner", ".tuner"),
        ("import subspace_tuning.tuner as t", ".tuner"),
        ("from subspace_tuning.tuner import layer", ".tuner"),
        ("from subspace_tuning import tuner", ".tuner"),
        ("from subspace_tuning import SubspaceConfig", ".SubspaceConfig"),
        ("import subspace_tuning", "subspace_tuning"),
        ("def f():\n    from peft import PeftModel", "peft"),
        ("import peft.mapping", "peft"),
        ("from . import nodes", ".algebra"),
    ],
)
def test_every_form_of_import_is_seen(line: str, found: str) -> None:
    assert imports(line, ("subspace_tuning", "algebra")) == {found}


def test_the_inner_rings_load_without_peft() -> None:
    """The package imports peft; put a bare one in its place, and its inner rings load as they would alone."""
    code = (
        "import sys, types; package = sys.modules['subspace_tuning'] = types.ModuleType('subspace_tuning'); "
        f"package.__path__ = [{str(SOURCE)!r}]; "
        "import subspace_tuning.algebra, subspace_tuning.methods, subspace_tuning.theory; "
        f"print(*(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    )
    assert _run(code) == ""


CORE = ("torch", "peft", "transformers", "safetensors.torch", "numpy", "platformdirs")


def test_the_core_needs_few_packages() -> None:
    """What these packages import themselves does not count; nothing else comes in, nor for training and saving."""
    code = (
        f"import sys, tempfile; import {', '.join(CORE)}; before = set(sys.modules); import subspace_tuning as st; "
        "model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 3)), "
        "st.SubspaceConfig(method='pissa', r=2, target_modules=['0'])); "
        "model(torch.randn(2, 4)).sum().backward(); model.save_pretrained(tempfile.mkdtemp()); "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    found = set(_run(code).split())
    assert "subspace_tuning" in found
    assert found <= {"subspace_tuning", *(name.partition(".")[0] for name in CORE)}


PROBES = (
    "import subspace_tuning, importlib.util as i; i.find_spec('peft'); i.find_spec('peft'); import peft",
    "from peft import PeftModel; from transformers import AutoModel; import subspace_tuning.algebra",
)
MORE_PROBES = (
    "import subspace_tuning, peft",
    "import transformers, subspace_tuning, peft.mapping",
    "import subspace_tuning.algebra",
    "from subspace_tuning.methods import every",
    "import importlib.util as i; i.find_spec('peft'); import subspace_tuning; i.find_spec('peft')",
    "from transformers.utils import is_peft_available as a; a(); import subspace_tuning; a(); import peft",
    "import subspace_tuning; from transformers import AutoModel; from peft import PeftModel",
)


@pytest.mark.parametrize("order", [*PROBES, *(pytest.param(order, marks=pytest.mark.slow) for order in MORE_PROBES)])
def test_the_tuner_is_registered_whatever_comes_first(order: str) -> None:
    code = (
        "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as a, PEFT_TYPE_TO_CONFIG_MAPPING as b, "
        "PEFT_TYPE_TO_PREFIX_MAPPING as c; print(all('SUBSPACE' in mapping for mapping in (a, b, c)))"
    )
    assert _run(f"{order}; {code}") == "True"


CALLS = (["--help"], ["--version"], ["train"], ["predict", "run"], ["merge", "run", "--no-such"], ["bench", "--help"])


def test_the_command_answers_without_the_library() -> None:
    """Help, versions and calls that cannot be meant; importing torch and peft takes seconds."""
    code = (
        "import contextlib, io, sys\nfrom subspace_cli import main\n"
        f"for words in {CALLS!r}:\n"
        "    try:\n        with contextlib.redirect_stdout(io.StringIO()): main(words)\n"
        "    except SystemExit as end: print(end.code, end=' ')\n"
        "print(*({'subspace_tuning', 'torch', 'peft', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert _run(code).split() == ["0", "0", "2", "2", "2", "0"]


def test_the_catalogue_is_printed_without_the_tuner() -> None:
    code = (
        "import contextlib, io, sys\nfrom subspace_cli import main\n"
        "for words in (['methods'], ['methods', 'lora'], ['methods', 'lroa']):\n"
        "    try:\n        with contextlib.redirect_stdout(io.StringIO()): main(words)\n"
        "    except SystemExit as end: print(end.code, end=' ')\n"
        "print(*({'peft', 'transformers'} & set(sys.modules)))\n"
        "import subspace_tuning; print(subspace_tuning.SubspaceConfig.__name__)"
    )
    assert _run(code).split() == ["0", "0", "2", "SubspaceConfig"]


def test_public_names() -> None:
    assert set(subspace_tuning.__all__) <= set(dir(subspace_tuning))
    assert all(getattr(subspace_tuning, name) is not None for name in subspace_tuning.__all__)


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_nothing_is_evaluated_or_unpickled() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile"), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("torch", "load"), path
                assert node.value.id != "pickle", path


LONGEST_FILE, LONGEST_FUNCTION = 300, 40
# What is longer still. An entry goes once it is split.
LONG = {
    "algebra/parse.py",
    "theory/approximate.py: approximate",
    "tuner/layer.py: update_layer",
}


def test_files_and_functions_are_short() -> None:
    """Of a function counts what stands below its signature and its docstring."""
    long = set()
    for path in FILES:
        name, text = (
            path.relative_to(SOURCE if SOURCE in path.parents else COMMAND).as_posix(),
            path.read_text(encoding="utf-8"),
        )
        if len(text.splitlines()) > LONGEST_FILE:
            long.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and (body[-1].end_lineno or 0) - body[0].lineno >= LONGEST_FUNCTION:
                    long.add(f"{name}: {node.name}")
    assert long == LONG
