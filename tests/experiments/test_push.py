"""`subspace push` against a hub on this machine, which speaks as much of the hub's protocol as a commit needs."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub import ModelCard

from subspace_tuning.training import run as train
from subspace_tuning.training.sections import AdapterSection, Device, RunConfig, TaskSection, TrainingSection

from .conftest import sentences, write_split

BASE = "someone/base-model"


class Hub(BaseHTTPRequestHandler):
    """Keeps what is asked of it in ``server.repositories`` and ``server.files``."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer secret":
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            content = json.loads(body)
            name = f"{content.get('organization') or 'me'}/{content['name']}"
            self.server.repositories[name] = content.get("private") or content.get("visibility") == "private"
            return self._answer({"url": f"{self.server.address}/{name}", "id": name, "name": name})
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            made = f"{self.server.address}/someone/tuned/commit/1"
            return self._answer({"commitUrl": made, "commitOid": "1", "success": True})
        return self._answer({"errors": [], "warnings": []})  # the check of a card's metadata

    def _answer(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushed")
    for seed, split in enumerate(("train", "validation")):
        write_split(folder / "my-data", split, sentences(24, seed))
    config = RunConfig(
        model=str(tiny_model),
        output=str(folder / "run"),
        task=TaskSection(name="cola", data=str(folder / "my-data"), max_length=16),
        adapter=AdapterSection(method="ssb"),
        training=TrainingSection(max_steps=1, threads=1, device=Device.cpu),
    )
    train.run(config, progress=False)
    return folder / "run"


CALLS = """
import contextlib, io, json, os, sys
from subspace_cli import main

done = {}
for name, (words, token) in json.load(sys.stdin).items():
    os.environ["HF_TOKEN"] = token
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main(["push", *words])
        except SystemExit as ended:
            done[name] = (ended.code, output.getvalue(), errors.getvalue())
json.dump(done, sys.stdout)
"""


class Pushed(NamedTuple):
    """What each call has printed, and what has come to the hub."""

    done: dict[str, tuple[int, str, str]]
    address: str
    repositories: dict[str, bool]
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def pushed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    """All calls in one process of their own, since huggingface_hub reads its surroundings when it is imported."""
    empty = tmp_path_factory.mktemp("empty")
    calls = {
        "whole": ([str(trained), "someone/tuned", "--base", BASE, "--private"], "secret"),
        "local base": ([str(trained), "someone/other"], "secret"),
        "name": ([str(trained), "a/b/c", "--base", BASE], "secret"),
        "no token": ([str(trained / "adapter"), "someone/other", "--base", BASE], ""),
        "refused": ([str(trained / "adapter"), "someone/other", "--base", BASE], "wrong"),
        "no run": ([str(empty), "someone/other"], "secret"),
    }
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.files = {}, {}
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    surroundings |= {"HF_ENDPOINT": server.address, "HF_HOME": str(empty / "home"), "HF_HUB_DISABLE_XET": "1"}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", CALLS],
            input=json.dumps(calls),
            env=surroundings,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
    finally:
        server.shutdown()
        server.server_close()
    return Pushed(json.loads(ended.stdout), server.address, server.repositories, server.files)


def test_a_run_is_pushed_whole_and_tells_nothing_of_the_machine(trained: Path, pushed: Pushed) -> None:
    code, output, errors = pushed.done["whole"]
    assert code == 0, errors
    assert output.strip() == f"{pushed.address}/someone/tuned/commit/1"
    assert pushed.repositories == {"someone/tuned": True}
    assert set(pushed.files) == {file.name for file in (trained / "adapter").iterdir()}
    weights = "adapter_model.safetensors"
    assert pushed.files[weights] == (trained / "adapter" / weights).read_bytes()
    assert json.loads(pushed.files["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert json.loads(pushed.files["task.json"])["model"] == BASE
    for name, content in pushed.files.items():
        assert str(trained.parent).encode() not in content, name


def test_the_card_has_what_a_reader_asks_for(trained: Path, pushed: Pushed) -> None:
    record = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    card = ModelCard(pushed.files["README.md"].decode())
    data: Any = card.data
    (score,) = data.eval_results
    assert (score.metric_type, score.dataset_name) == (record["metric"], "my-data")
    assert score.metric_value == pytest.approx(record["score"], abs=1e-6)
    assert (data.base_model, data.library_name) == (BASE, "peft")
    assert "* Formula: `D1 @ W @ D2`" in card.text
    assert "(95 % interval over the rows: {:.4f} to {:.4f})".format(*record["score_interval"]) in card.text
    assert f"{record['parameters']['adapter']:,} parameters" in card.text
    assert f"train {record['data']['train']['rows']:,} rows" in card.text


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("local base", "which no other machine has: give --base"),
        ("name", "is not of the form owner/name"),
        ("no token", "call `hf auth login`, or set HF_TOKEN"),
        ("refused", "cannot push to 'someone/other': "),
        ("no run", "empty0 has no run"),
    ],
)
def test_what_cannot_be_pushed_is_refused(call: str, told: str, pushed: Pushed) -> None:
    code, output, errors = pushed.done[call]
    assert (code, output) == (2, "")
    assert errors.startswith("subspace: ") and errors.count("\n") == 1
    assert told in errors
