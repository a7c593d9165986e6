"""`subspace serve`: every adapter answers in a batch with others what it answers alone."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subspace_tuning.errors import SubspaceError
from subspace_tuning.serve.app import app_of
from subspace_tuning.serve.choices import Choices, choices_of
from subspace_tuning.training.sections import AdapterSection, TaskSection

from ..tasks.decoders import write_decoder
from ..tasks.own_files import ROWS, TEXT_ROWS, WORDS, write
from .calls import refusal_of
from .language import MODELS
from .serving import alone, close, trained

METHODS = {
    **{method: AdapterSection(method) for method in ("lora", "ssb", "ia3", "dora", "pissa")},
    "activation": AdapterSection(formula="W + s * A @ gelu @ B", r=4),
}
MOST = 16
TEXTS = ["ba dek fi", "go", "lu ne ba de fik gok ba", "dek dek"]


@pytest.fixture(scope="module")
def runs(lively: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method on the same rows."""
    folder = tmp_path_factory.mktemp("runs")
    task = TaskSection("classification", write(folder, "csv", ROWS["classification"]), max_length=16)
    return {
        name: trained(folder / name, lively, task, adapter, seed)
        for seed, (name, adapter) in enumerate(METHODS.items())
    }


@pytest.fixture(scope="module")
def choices(runs: dict[str, Path]) -> Choices:
    return choices_of([*runs.values()])


@pytest.fixture
def client(choices: Choices) -> Iterator[TestClient]:
    with TestClient(app_of(choices, MOST)) as client:
        yield client


def model_of(choices: Choices) -> Any:
    """The model that all adapters are in, without them."""
    model: Any = next(iter(choices.by_name.values())).run.model
    return model.get_base_model()


def asked(client: TestClient, inputs: Any, adapters: Any = None) -> dict[str, Any]:
    response = client.post("/predict", json={"inputs": inputs, **({} if adapters is None else {"adapters": adapters})})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


# The answers


def test_every_method_answers_in_one_batch_what_it_answers_alone(
    client: TestClient, choices: Choices, runs: dict[str, Path]
) -> None:
    passes: list[int] = []
    with model_of(choices).register_forward_hook(lambda *_: passes.append(1)):
        found = asked(client, TEXTS[:2])
    assert len(passes) == 1
    assert found["calls"] == [{"rows": 2 * len(METHODS), "adapters": [*METHODS]}]
    assert found["answers"].keys() == METHODS.keys()
    for name, folder in runs.items():
        assert found["answers"][name] == close(alone(folder, TEXTS[:2]))
    assert len({answer["probability"] for answers in found["answers"].values() for answer in answers}) == 12


def test_more_rows_than_a_batch_takes(client: TestClient, runs: dict[str, Path]) -> None:
    names = ["ssb", "activation", "dora", "lora", "pissa"]
    found = asked(client, TEXTS, names)
    assert [call["rows"] for call in found["calls"]] == [MOST, 4]
    for name in names:
        assert found["answers"][name] == close(alone(runs[name], TEXTS))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=20).map(" ".join), min_size=1, max_size=5),
    names=st.lists(st.sampled_from([*METHODS]), min_size=1, unique=True),
)
def test_any_rows_of_any_adapters_are_answered_as_alone(
    client: TestClient, runs: dict[str, Path], texts: list[str], names: list[str]
) -> None:
    found = asked(client, texts, names)
    assert found["answers"] == {name: close(alone(runs[name], texts)) for name in names}


def test_an_adapter_alone(client: TestClient, runs: dict[str, Path]) -> None:
    found = asked(client, TEXTS, ["dora", "dora"])
    assert found["answers"] == {"dora": close(alone(runs["dora"], TEXTS))}
    assert found["truncated"] == {"dora": 0}
    assert asked(client, ["ba " * 40], ["dora"])["truncated"] == {"dora": 1}


def test_requests_that_wait_share_a_call(client: TestClient, choices: Choices) -> None:
    """While the model is held in its first call, a request for each adapter arrives; one more call answers them all."""
    held, release, passes = threading.Event(), threading.Event(), []

    def hold(*_: Any) -> None:
        passes.append(1)
        held.set()
        assert release.wait(60)

    before = client.get("/health").json()
    with model_of(choices).register_forward_pre_hook(hold), ThreadPoolExecutor(8) as threads:
        first = threads.submit(asked, client, TEXTS[:1], ["lora"])
        assert held.wait(60)
        others = [threads.submit(asked, client, TEXTS[:1], [name]) for name in METHODS]
        deadline = time.monotonic() + 60
        while client.get("/health").json()["waiting"] < len(METHODS):
            assert time.monotonic() < deadline
        release.set()
        found = [one.result(60) for one in others]
    assert first.result(60)["calls"] == [{"rows": 1, "adapters": ["lora"]}]
    assert len(passes) == 2
    for one in found:
        [call] = one["calls"]
        assert call["rows"] == len(METHODS) and {*call["adapters"]} == METHODS.keys()
    after = client.get("/health").json()
    counted = {name: after[name] - before[name] for name in ("requests", "calls", "mixed", "rows", "waiting")}
    assert counted == {"requests": 7, "calls": 2, "mixed": 1, "rows": 7, "waiting": 0}


def test_a_call_that_fails_leaves_the_server_alone(client: TestClient, choices: Choices) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    def spoil(*parts: Any) -> None:
        parts[-1].logits[0] = torch.nan

    with model_of(choices).register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="broken"):
        asked(client, TEXTS)
    with model_of(choices).register_forward_hook(spoil):
        response = client.post("/predict", json={"inputs": TEXTS[:1], "adapters": ["dora", "lora"]})
    assert response.status_code == 400
    assert response.json() == {"error": "the outputs of adapter 'dora' are NaN or infinite"}
    assert asked(client, TEXTS, ["lora"])["answers"].keys() == {"lora"}


KINDS = {
    "generation of a decoder": "llama",
    "token_classification": "bert",
    "regression": "bert",
    "multi_label": "bert",
    "question_answering": "bert",
    "generation of an encoder-decoder": "t5",
    "instruction": "decoder",
    "commonsense": "decoder",
}
OPTIONS: dict[str, Any] = {
    "generation": {"max_new_tokens": 5},
    "instruction": {"max_new_tokens": 5, "template": "alpaca"},
    "question_answering": {"stride": 2},
}
CHATS = [
    {"prompt": row["input"], "instruction": row["input"], "answer": row["output"].split()[0]}
    for row in TEXT_ROWS["generation"]
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_answers_as_alone(kind: str, lively: Path, tmp_path: Path) -> None:
    name, architecture = kind.split()[0], KINDS[kind]
    model = lively if architecture == "bert" else {**MODELS, "decoder": write_decoder}[architecture](tmp_path)
    rows = {**ROWS, **TEXT_ROWS, "instruction": CHATS, "commonsense": CHATS}[name]
    length = {"question_answering": 12, "instruction": 400, "commonsense": 400}.get(name, 16)
    task = TaskSection(name, write(tmp_path, "jsonl", rows), max_length=length, **OPTIONS.get(name, {}))
    two = enumerate(("ssb", "activation"))
    runs = [trained(tmp_path / method, model, task, METHODS[method], seed) for seed, method in two]
    choices = choices_of(runs)
    contexts = ["ba de fi go lu ne ba bak"] * 4
    texts = [TEXTS] if len(choices.columns) == 1 else [contexts, ["ba", "de", "fi", "go"]]
    with TestClient(app_of(choices, MOST)) as client:
        inputs = [dict(zip(choices.columns, row, strict=True)) for row in zip(*texts, strict=True)]
        found = asked(client, inputs, [run.name for run in runs])
    shared = name != "commonsense"  # which scores unequal numbers of choices
    assert all((len({*call["adapters"]}) > 1) is shared for call in found["calls"])
    for run in runs:
        assert found["answers"][run.name] == close(alone(run, *texts))
    one, other = found["answers"].values()
    assert one != other
    assert ("base" in choices.by_name) is (name in ("generation", "instruction", "commonsense"))


def test_the_base_model_answers_where_no_head_is_trained(tmp_path: Path) -> None:
    model = MODELS["llama"](tmp_path)
    source = write(tmp_path, "csv", TEXT_ROWS["generation"])
    task = TaskSection("generation", source, max_length=16, **OPTIONS["generation"])
    run = trained(tmp_path / "base", model, task, METHODS["lora"])
    choices = choices_of([run / "adapter"])
    [own, base] = choices.by_name
    assert own.endswith("/base") and base == "base"
    with TestClient(app_of(choices, MOST)) as client:
        found = asked(client, TEXTS)
        assert found["answers"][own] == alone(run, TEXTS)
        one = choices.by_name["base"].run
        with torch.no_grad(), one.model.disable_adapter():  # type: ignore[operator]
            tokens = one.processor(["ba dek fi\n"], return_tensors="pt")["input_ids"]
            written = one.model.generate(input_ids=tokens, max_new_tokens=5)[0, tokens.shape[1] :]  # type: ignore[operator]
        text = one.processor.decode(written, skip_special_tokens=True).strip()
        assert found["answers"]["base"][0]["predicted"] == text
        known = {one["name"]: one for one in client.get("/adapters").json()["adapters"]}
        assert known["base"] == {
            "name": "base",
            "method": None,
            "formula": "W",
            "trained": {"adapter": 0, "head": 0},
            "score": None,
            "apart": None,
        }


def test_what_cannot_be_mixed_has_calls_of_its_own(tmp_path: Path) -> None:
    """The query alone of GPT-2's fused projection is no layer that rows could be told apart in."""
    model = write_decoder(tmp_path / "model", kind="gpt2")
    source = write(tmp_path, "csv", TEXT_ROWS["generation"])
    task = TaskSection("generation", source, max_length=40, **OPTIONS["generation"])
    adapters = {
        "part": AdapterSection("lora", r=2, target_modules=["c_attn"], parts={"c_attn": ["q"]}),
        "lora": AdapterSection("lora", r=2, target_modules=["c_fc"]),
    }
    runs = {name: trained(tmp_path / name, model, task, adapter) for name, adapter in adapters.items()}
    choices = choices_of([*runs.values()])
    with TestClient(app_of(choices, MOST)) as client:
        found = asked(client, TEXTS)
        known = {one["name"]: one["apart"] for one in client.get("/adapters").json()["adapters"]}
    assert "all rows share" in known["part"] and known["lora"] is known["base"] is None
    assert [{*call["adapters"]} for call in found["calls"]] == [{"part"}, {"lora", "base"}]
    for name, folder in runs.items():
        assert found["answers"][name] == alone(folder, TEXTS)


# What is told


def test_the_adapters_are_described_as_their_records_do(client: TestClient, runs: dict[str, Path]) -> None:
    found = client.get("/adapters").json()
    assert found["task"] == "classification" and found["columns"] == ["text"]
    assert [one["name"] for one in found["adapters"]] == [*METHODS]
    for one in found["adapters"]:
        record = json.loads((runs[one["name"]] / "run.json").read_text(encoding="utf-8"))
        assert found["base"] == Path(record["config"]["model"]).name
        assert one["trained"] == {part: record["parameters"][part] for part in ("adapter", "head")}
        assert (one["method"] or one["formula"]) == record["method"]
        score = one["score"]
        names = {"metric": "metric", "value": "score", "interval": "score_interval", "constant": "baseline_score"}
        assert score == {key: record[name] for key, name in names.items()}
        low, high = score["interval"]
        assert low <= score["value"] <= high and one["apart"] is None


def test_the_page_loads_nothing_else(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"https?:|//\w|@import|<link(?! rel=\"icon\" href=\"data:,\")|src=", page.text)
    assert client.get("/openapi.json").json()["paths"].keys() == {"/", "/health", "/adapters", "/predict"}
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ({"inputs": ["ba"], "adapters": ["lroa"]}, 400, "there is no adapter 'lroa'; did you mean lora?"),
        ({"inputs": ["ba"], "adapters": []}, 400, "adapters is empty"),
        ({"inputs": ["ba", " "]}, 400, "inputs, input 2: column 'text' has no text"),
        ({"inputs": [{"txt": "ba"}]}, 400, "input 1 has columns txt, and the task has text"),
        ({"inputs": [{}]}, 400, "input 1 has no columns, and the task has text"),
        ({"inputs": []}, 422, "inputs: List should have at least 1 item"),
        ({"inputs": ["ba"] * 1001}, 422, "inputs: List should have at most 1000 items"),
        ({"inputs": [3]}, 422, r"inputs\.0.*: Input should be a valid string"),
        ({"inputs": ["\ud800"]}, 4, ""),
        ({"inputs": ["ba"], "adapters": ["\ud800"]}, 4, ""),
        ({"adapters": ["lora"]}, 422, "inputs: Field required"),
        ("{", 422, "the body: JSON decode error"),
        ([], 422, ""),
    ],
)
def test_bad_input_is_one_line_of_json(client: TestClient, body: Any, status: int, line: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    response = client.post("/predict", content=content, headers={"Content-Type": "application/json"})
    assert str(response.status_code).startswith(str(status)), response.text
    found = response.json()
    assert found.keys() == {"error"} and "\n" not in found["error"]
    assert re.match(line, found["error"]), found
    assert client.get("/health").json()["waiting"] == 0


def test_other_addresses_are_one_line_of_json(client: TestClient) -> None:
    assert client.get("/nothing").json() == {"error": "there is no GET /nothing: /openapi.json lists what there is"}
    assert client.get("/predict").status_code == 405
    assert "there is no GET /predict" in client.get("/predict").json()["error"]
    assert client.post("/predict", content='{"inputs": ["ba"]}', headers={"Content-Type": "text/plain"}).is_error


# What does not go together


def changed(folder: Path, **content: Any) -> None:
    file = folder / "adapter/task.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | content), encoding="utf-8")


def other_base(folder: Path) -> None:
    model = json.loads((folder / "adapter/task.json").read_text(encoding="utf-8"))["model"]
    changed(folder, model=str(shutil.copytree(model, folder / "copy")))


def whole_model(folder: Path) -> None:
    (folder / "adapter/adapter_config.json").unlink()


def hosted(folder: Path) -> None:
    (folder / "adapter/adapter_config.json").unlink()
    peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2).save_pretrained(folder / "adapter")


def other_words(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "adapter")
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(folder / "adapter")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (other_base, "has base model .*copy, and that in .*lora/adapter"),
        (whole_model, "is a whole model, which shares no base"),
        (hosted, "is of peft's own PREFIX_TUNING"),
        (other_words, "was trained on a vocabulary of 36 tokens, but model .* has 35"),
        (lambda folder: changed(folder, quantise="nf4"), "has weights in nf4, and that in .* float32"),
        (lambda folder: changed(folder, task="cola", options={}), "has task cola, and that in .* classification"),
        (lambda folder: changed(folder, options={"classes": ["a", "b", "c"]}), "has outputs a, b, c, and that in"),
        (lambda folder: changed(folder, options={"classes": ["a", "b", "c"], "text": "t"}), "has columns t, and that"),
    ],
)
def test_a_run_that_does_not_fit_is_named(
    change: Callable[[Path], None], why: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(runs["ssb"], tmp_path / "other"))
    change(other)
    with pytest.raises(SubspaceError, match=rf"{other}.*{why}") as caught:
        choices_of([runs["lora"], other])
    assert "\n" not in str(caught.value)


def test_a_call_that_cannot_be_served(runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = str(runs["lora"])
    assert "is given twice" in refusal_of(["serve", run, f"{run}/adapter", "--port", "0"], capfd)
    assert "does not exist" in refusal_of(["serve", str(tmp_path / "none"), "--port", "0"], capfd)
    assert "cannot listen" in refusal_of(["serve", run, "--host", "256.1.1.1"], capfd)
