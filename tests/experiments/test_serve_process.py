"""`subspace serve` as a process of its own: over HTTP, in a browser, and to its end."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from subspace_tuning.training.sections import AdapterSection, TaskSection

from ..tasks.own_files import ROWS, write
from .calls import refusal_of
from .serving import trained

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two runs on pairs of texts."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"a": row["text"], "b": "go", "label": row["label"]} for row in ROWS["classification"]]
    task = TaskSection("classification", write(folder, "csv", rows), max_length=16, text="a", text_pair="b")
    adapters = {"first": AdapterSection("ssb"), "second": AdapterSection(formula="D1 @ W @ D2 + s * A @ B", r=2)}
    made = enumerate(adapters.items())
    return [str(trained(folder / name, tiny_model, task, adapter, seed)) for seed, (name, adapter) in made]


@contextmanager
def served(runs: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield the process of a server at a free port, and its address."""
    command = [sys.executable, "-m", "subspace_cli", "serve", *runs, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().rpartition(" ")[2].strip()
        finally:
            process.kill()


def fetched(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_a_server_answers_until_it_is_interrupted(runs: list[str]) -> None:
    with served(runs) as (process, url):
        assert url.startswith("http://127.0.0.1:"), process.communicate()
        assert [one["name"] for one in fetched(f"{url}/adapters")["adapters"]] == ["first", "second"]
        found = fetched(f"{url}/predict", {"inputs": [{"a": "ba dek", "b": "fi"}]})
        assert found["answers"].keys() == {"first", "second"} and len(found["calls"]) == 1
        for [answer] in found["answers"].values():
            assert (answer["a"], answer["b"]) == ("ba dek", "fi")
            assert sum(answer["probabilities"].values()) == pytest.approx(1)
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetched(f"{url}/predict", {"inputs": ["ba"]})
        assert json.load(refused.value) == {"error": "input 1 has columns a, and the task has a, b"}
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "")
    assert "Traceback" not in errors and "subspace:" not in errors  # libraries say things of their own


def test_a_port_in_use_is_one_line(runs: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refusal_of(["serve", *runs, "--port", port], capfd)
    assert f"cannot listen on port {port} of 127.0.0.1: Address already in use" in line


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(width: int, scheme: Any, runs: list[str], tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    addresses: list[str] = []
    told: list[str] = []
    with served(runs) as (_, url), playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("request", lambda request: addresses.append(request.url))
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(url)
        page.get_by_label("a", exact=True).fill("ba dek fi")
        page.get_by_label("b", exact=True).fill("go")
        boxes = page.get_by_role("checkbox")
        assert boxes.count() == 2 and boxes.first.is_checked()
        page.get_by_role("checkbox", name="second").uncheck()
        page.get_by_role("button", name="Answer").click()
        table = page.get_by_role("table")
        table.get_by_role("columnheader", name="first").wait_for()
        assert table.get_by_role("columnheader", name="second").count() == 0
        page.get_by_role("checkbox", name="second").focus()
        page.keyboard.press("Space")
        page.get_by_label("b", exact=True).press("Control+Enter")
        table.get_by_role("columnheader", name="second").wait_for()
        wanted = fetched(f"{url}/predict", {"inputs": [{"a": "ba dek fi", "b": "go"}]})["answers"]
        shown = table.get_by_role("row", name="answer").get_by_role("cell").all_inner_texts()
        assert shown == [answer["predicted"] for [answer] in wanted.values()]
        spoken = [f"{name}: {text}" for name, text in zip(wanted, shown, strict=True)]
        assert page.get_by_role("status").inner_text() == "; ".join(spoken)
        assert table.get_by_role("rowheader").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for box in boxes.all():
            box.uncheck()
        page.get_by_role("button", name="Answer").click()
        assert page.get_by_role("alert").inner_text() == "Choose at least one adapter."
        for box in boxes.all():
            box.check()
        page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
        browser.close()
    assert told == [] and addresses
    assert all(address.startswith(f"{url}/") or address == "data:," for address in addresses)
