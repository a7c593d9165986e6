"""What README and documentation say is what happens: every snippet is run, in order, page by page.

A page may take for granted what stands in ``world``: a model, batches, weights. It imports all else itself. What cannot
be run here is named in ``NOT_RUN``, with the reason, and is at least read as a command.
"""

from __future__ import annotations

import copy
import inspect
import pydoc
import re
import shutil
import tarfile
import typing
import zipfile
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import griffe
import peft
import pytest
import torch
import transformers
import typer

import subspace_tuning
from subspace_cli import main, reference
from subspace_cli.app import app
from subspace_cli.inspect import COLUMNS, COSINE
from subspace_tuning import SubspaceConfig
from subspace_tuning.algebra import parse
from subspace_tuning.comparison import sections as comparison
from subspace_tuning.comparison.sections import CompareConfig
from subspace_tuning.documented import settings
from subspace_tuning.training import config as configs
from subspace_tuning.training.attach import build_adapter
from subspace_tuning.training.run import run
from subspace_tuning.training.sections import (
    SECTIONS,
    AdapterSection,
    Device,
    RunConfig,
    TaskSection,
    TrainingSection,
)
from subspace_tuning.training.template import template

from ..tasks.own_files import TEXT_ROWS, write
from .language import t5
from .snippets import CODE, SHELL, SHOWN, commands, fences, placed, run_python

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
COMPARISON = [CompareConfig, *comparison.SECTIONS.values()]
HUB = {"google-bert/bert-base-uncased"}  # of which a tiny model takes the place

# A command by its page and its first words: why it is not run.
NOT_RUN = {
    ("README.md", "subspace train examples/mrpc_ssb.yaml"): "trains on the hub's MRPC",
    ("README.md", "subspace push"): "needs a hub; test_push.py has it",
    ("README.md", "subspace bench"): "takes minutes",
    ("README.md", "subspace demo"): "takes minutes",
    ("README.md", "subspace params roberta-base --paper"): "takes a minute; test_catalogue.py has it",
    ("counts.md", "subspace params roberta-base --paper"): "takes a minute; test_catalogue.py has it",
    ("extract.md", "subspace convert ADAPTER --to diffusers-lora"): "needs a pipeline's; test_diffusion.py has it",
    ("explain.md", "subspace explain --watch"): "reads a terminal or a pipe; test_explain_command.py has it",
    ("first-hour.md", "subspace train run.yaml"): "trains on the hub's MRPC",
    ("own-data.md", "subspace train examples/own_images.yaml"): "needs the hub's ViT; test_image_runs.py has it",
    ("own-data.md", "subspace train examples/own_generation.yaml"): "needs the hub's T5; test_new_tokens.py has it",
    ("own-data.md", "subspace predict runs/photos"): "uses that run; test_image_runs.py has it",
    ("language-models.md", "subspace"): "needs a model from the hub; test_language_runs.py has it on a tiny one",
    ("own-data.md", "subspace push"): "needs a hub; test_push.py has it",
    ("README.md", "subspace compare examples/compare.yaml"): "takes minutes; test_compare_runs.py has it",
    ("README.md", "subspace report"): "needs that comparison; test_report.py has it",
    ("compare.md", "subspace report"): "needs that comparison; test_report.py has it",
    ("report.md", "subspace report"): "needs that comparison; test_report.py has it",
    ("compare.md", "subspace compare"): "takes minutes; test_compare_runs.py has it",
    ("README.md", "subspace serve"): "ends when it is interrupted; test_serve_process.py has it",
    ("serve.md", "subspace serve"): "ends when it is interrupted; test_serve_process.py has it",
    ("speed.md", "subspace bench"): "takes minutes",
}
OTHER_PROGRAMS = {"accelerate", "curl", "make", "pip", "sqlite3", "torchrun"}


def _reason(page: str, words: list[str]) -> str | None:
    line = " ".join(words)
    return next((why for (at, begin), why in NOT_RUN.items() if at == page and line.startswith(begin)), None)


def shell_lines() -> Iterator[tuple[str, list[str]]]:
    """Every command of every page."""
    for page in PAGES:
        for fence in fences(page):
            if fence.kind in SHELL:
                for words in commands(fence):
                    yield page.name, words


# Snippets


@pytest.fixture
def world(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a page may take for granted, besides the builtins."""
    monkeypatch.chdir(tmp_path)
    auto = transformers.AutoModelForSequenceClassification
    tiny = auto.from_pretrained(tiny_model)
    from_pretrained = auto.from_pretrained
    monkeypatch.setattr(
        auto, "from_pretrained", lambda name, **kwargs: copy.deepcopy(tiny) if name in HUB else from_pretrained(name)
    )
    batch = {"input_ids": torch.randint(5, 30, (4, 6)), "labels": torch.tensor([0, 1, 0, 1])}
    W = torch.randn(32, 24, dtype=torch.float64)
    return {
        "model": copy.deepcopy(tiny),
        "peft_lora_model": peft.get_peft_model(copy.deepcopy(tiny), peft.LoraConfig(task_type="SEQ_CLS")),
        "batch": batch,
        "batches": [batch] * 12,
        "my_loss": lambda logits: logits.square().mean(),
        "W": W,
        "W_star": W + 0.1 * torch.randn_like(W),
        "inputs_of_the_layer": lambda batch: torch.randn(8, 32),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_snippet_runs(page: Path, world: dict[str, Any]) -> None:
    assert {fence.kind for fence in fences(page)} <= CODE | SHELL | SHOWN
    run_python(page, world)


def test_snippets_are_found() -> None:
    count = {page.name: sum(fence.kind in CODE for fence in fences(page)) for page in PAGES}
    assert count["README.md"] == 3 and count["first-hour.md"] == 6 and count["theory-checked.md"] == 15
    assert sum(1 for _ in shell_lines()) > 40
    for (page, begin), why in NOT_RUN.items():
        assert why and any(at == page and " ".join(words).startswith(begin) for at, words in shell_lines()), begin


def test_a_name_stands_for_one_formula_on_all_pages() -> None:
    """Pages that declare the same method declare it alike, so that a reader of both can run both."""
    seen: dict[str, dict[str, Any]] = {}
    for page in PAGES:
        for fence in fences(page):
            if fence.kind == "python" and "@method" in fence.text:
                body = fence.text[fence.text.index("@method") :].split("\n\n\n")[0].strip()
                name = body.split("def ")[1].split("(")[0]
                assert seen.setdefault(name, body) == body, page.name
    assert "scaled_lora" in seen


@pytest.mark.parametrize(("page", "words"), shell_lines(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_can_be_read(page: str, words: list[str]) -> None:
    """Its subcommand, its arguments and its options exist."""
    if words[0] != "subspace":
        assert words[0] in OTHER_PROGRAMS
        return
    given = words[1 : words.index(">")] if ">" in words else words[1:]
    root: Any = typer.main.get_command(app)
    if given[0] in root.commands and not {"--help", "--template", "--preset"} & {*given}:
        root.commands[given[0]].make_context(given[0], given[1:])


@pytest.fixture(scope="module")
def stand_ins(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the words of the pages stand for: models, adapters, data, and budgets of their size."""
    folder = tmp_path_factory.mktemp("stand_ins")
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification.from_pretrained(tiny_model)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.bert.encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    base.save_pretrained(folder / "base")
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "base")
    tuned.save_pretrained(folder / "tuned")
    for name in ("ADAPTER", "OTHER"):
        config = SubspaceConfig(method="lora", r=2, target_modules=["query", "value"], init_weights=False)
        peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(folder / name)
    adapters = {"ADAPTER": "ADAPTER", "OTHER": "OTHER", "A": "ADAPTER", "B": "OTHER"}
    news = RunConfig(str(tiny_model), str(folder / "news"))
    news.task = TaskSection("classification", str(ROOT / "examples/data/news.csv"), max_length=32, label="category")
    news.adapter, news.training = AdapterSection("ssb"), TrainingSection(max_steps=1, device=Device.cpu)
    run(news, progress=False)
    language = t5(folder / "language")
    inputs = write(folder, "csv", TEXT_ROWS["generation"], "inputs")
    texts = RunConfig(str(language), str(folder / "texts"), task=TaskSection("generation", inputs, max_length=16))
    texts.adapter, texts.training = news.adapter, news.training
    run(texts, progress=False)
    return {
        **dict.fromkeys(("runs/news", "RUN"), news.output),
        "ROWS": str(ROOT / "examples/data/news_test.csv"),
        "GENERATOR": texts.output,
        "INPUTS": inputs,
        "model=MODEL": f"model={language}",
        **{word: str(folder / name) for word, name in adapters.items()},
        **dict.fromkeys(("BASE", "MODEL"), str(folder / "base")),
        "TUNED": str(folder / "tuned"),
        "FOLDER": str(data),
        "mrpc": "cola",
        "300k": "3k",
        "500k": "3k",
        "0.3permille": "20permille",
    }


SECONDS = (
    "params",
    "recommend",
    "--markdown",
    "--figures",
    "D1 @ W",
    "subspace train",
)  # what makes a command take seconds


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param(page, words, marks=[pytest.mark.slow] if any(word in " ".join(words) for word in SECONDS) else [])
        for page, words in shell_lines()
        if words[0] == "subspace" and _reason(page, words) is None
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[1:4]),
)
def test_every_command_runs(
    page: str, words: list[str], stand_ins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")

    def stand_in(word: str, before: str) -> str:
        return str(tmp_path / word) if before in ("-o", "--figures") else stand_ins.get(word, word)

    given = placed(words, stand_in)[1:]
    with pytest.raises(SystemExit) as ended:
        main(given[: given.index(">")] if ">" in given else given)
    assert ended.value.code == 0


# Pages made from the code


def test_the_page_of_settings_is_the_codes() -> None:
    """`subspace reference > docs/settings.md` brings it up to date."""
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert reference.page() == text
    for one in settings(SubspaceConfig):
        assert f"| `{one.name}` |" in text
    for name, section in SECTIONS.items():
        assert all(f"| `{name}.{one.name}` |" in text for one in settings(section))


def test_every_term_of_the_glossary_is_used() -> None:
    """Each term stands on another page, whose text may break it over lines."""
    glossary = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    terms = [term for line in re.findall(r"^\*\*(.+)\*\*$", glossary, re.MULTILINE) for term in line.split(", ")]
    text = " ".join(" ".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "glossary.md").split())
    assert len(terms) > 30
    assert not [term for term in terms if not re.search(rf"\b{term}s?\b", text, re.IGNORECASE)]


@pytest.mark.parametrize(
    "cls", [SubspaceConfig, RunConfig, *SECTIONS.values(), *COMPARISON], ids=lambda cls: cls.__name__
)
def test_every_field_says_what_it_means(cls: type) -> None:
    hints = typing.get_type_hints(cls)
    sections = {name for name in hints if any(map(is_dataclass, (hints[name], *typing.get_args(hints[name]))))}
    own = [name for name in inspect.get_annotations(cls) if name not in sections]
    assert own and own == [one.name for one in settings(cls)]
    text = pydoc.plain(pydoc.render_doc(cls))
    for one in settings(cls):
        assert one.meaning and f"{one.name}: " in text


def test_every_option_has_a_help_text() -> None:
    root: Any = typer.main.get_command(app)
    assert len(root.commands) > 10
    for command in root.commands.values():
        assert command.help
        context = typer.Context(command, info_name="subspace")
        for parameter in command.get_params(context):
            word, meaning = parameter.get_help_record(context)
            assert word and meaning.split("[")[0].strip(), (command.name, word)


def test_the_template_is_a_config(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(template(), encoding="utf-8")
    short = configs.load(file)
    assert (short.adapter.method, short.training) == ("ssb", SECTIONS["training"]())
    own = configs.load(file, ["adapter.method=null", "adapter.formula=D1 @ W @ D2 + s * A @ B"])  # of the first hour
    assert build_adapter(own.adapter, []).resolved.formula == parse("D1 @ W @ D2 + s * A @ B")
    # With every default written out it is the same run; for the adapter's, SubspaceConfig's own are written out.
    head, *lines = template().splitlines()
    whole = [line if line.lstrip()[:2] != "# " else line.replace("# ", "", 1) for line in lines]
    assert head.startswith("#") and whole != lines
    file.write_text("\n".join(whole), encoding="utf-8")
    full = configs.load(file)
    assert (full.training, full.task) == (short.training, short.task)
    assert build_adapter(full.adapter, ["classifier"]) == build_adapter(short.adapter, ["classifier"])


def test_help_on_the_package_tells_every_public_name() -> None:
    assert subspace_tuning.__doc__
    for name in subspace_tuning.__all__:
        assert name in dir(subspace_tuning)
        assert name == "__version__" or f"`{name}" in subspace_tuning.__doc__, name


def test_the_columns_of_inspect_are_those_of_its_page(
    stand_ins: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist's
    words = ["inspect", stand_ins["MODEL"], stand_ins["ADAPTER"], "--against", stand_ins["OTHER"], "-k", "4"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "-o", str(tmp_path / "table.csv")])
    assert ended.value.code == 0
    header = capsys.readouterr().out.splitlines()[0]
    page = (ROOT / "docs/extract.md").read_text(encoding="utf-8")
    rows = page.partition("| printed | in the file | meaning |\n")[2].partition("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    printed = [name.partition(",")[0] if name.startswith("intruders") else name for name, *_ in cells]
    printed = list(dict.fromkeys(one for names in printed for one in names.split(", ") if one))
    assert printed == ["matrix", *COLUMNS, COSINE]
    assert header.split() == " ".join(printed).split()
    told = [name.strip("`") for _, names, *_ in cells for name in names.split(", ")]
    assert set(told) == set(pd.read_csv(tmp_path / "table.csv").columns)


def test_examples_of_the_reference_are_code() -> None:
    """A prompt outside an `Examples` section would be a quotation in a quotation in a quotation."""
    package = griffe.load("subspace_tuning", search_paths=[str(ROOT / "src")], docstring_parser="google")
    examples = 0
    for docstring in _docstrings(package):
        for section in docstring.parsed:
            if section.kind is griffe.DocstringSectionKind.examples:
                examples += 1
            elif section.kind is griffe.DocstringSectionKind.text:
                assert not any(line.startswith(">>> ") for line in section.value.splitlines()), docstring.parent.path
    assert examples > 5


def _docstrings(of: griffe.Object | griffe.Alias) -> Iterator[griffe.Docstring]:
    if of.docstring is not None:
        yield of.docstring
    for member in of.members.values():
        if not member.is_alias:
            yield from _docstrings(member)


# What is shipped


def test_the_source_archive_has_examples_docs_and_tests(tmp_path: Path) -> None:
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="the build backend is not installed")
    [archive] = sdist.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(archive) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
    for folder, pattern in {"examples": "*.yaml", "docs": "*.md", "tests": "**/test_*.py"}.items():
        wanted = {str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern)}
        assert wanted and wanted <= names


def test_the_wheel_has_the_page_that_is_served(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="the build backend is not installed")
    [archive] = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(archive) as held:
        assert "subspace_tuning/serve/page.html" in held.namelist()
