"""Runs that add tokens to the vocabulary, and train their embeddings beside the adapter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors.torch import load_file

from subspace_tuning.errors import SubspaceError
from subspace_tuning.models.vocabulary import add_tokens, grow
from subspace_tuning.tasks import Task
from subspace_tuning.training import config as configs
from subspace_tuning.training import processes, use
from subspace_tuning.training import run as train
from subspace_tuning.training.merge import merge
from subspace_tuning.training.run import Outcome

from ..tasks.decoders import write_decoder
from ..tasks.own_files import ROWS, TEXT_ROWS
from ..tasks.own_files import write as write_rows
from .calls import printed_by
from .language import MODELS
from .test_resume import _interrupt, _same_weights

NEW = ("<one>", "two words")
TASKS = {"bert": "classification", "t5": "generation", "llama": "generation", "qwen2": "instruction"}
SMALL: Any = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
Write = Callable[[Mapping[str, Any]], Path]


def rows_of(task: str) -> list[dict[str, Any]]:
    """Return rows whose texts have the new tokens."""
    if task == "classification":
        return [{**row, "text": f"{NEW[n % 2]} {row['text']}"} for n, row in enumerate(ROWS[task])]
    names = ("input", "output") if task == "generation" else ("prompt", "answer")
    return [
        dict(zip(names, (f"{row['input']} {NEW[0]}", f"{NEW[n % 2]} {row['output']}"), strict=True))
        for n, row in enumerate(TEXT_ROWS["generation"])
    ]


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[] if kind in ("t5", "qwen2") else [pytest.mark.slow]) for kind in TASKS],
)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def base(kind: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a base model; the output layer of T5 shares the embeddings, the decoders' do not."""
    if kind == "bert":
        return tiny_model
    folder = tmp_path_factory.mktemp(kind)
    return MODELS[kind](folder) if kind in MODELS else write_decoder(folder, kind=kind)


@pytest.fixture(scope="module")
def words(kind: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The settings of a run, without its output."""
    task = TASKS[kind]
    data = write_rows(tmp_path_factory.mktemp("data"), "jsonl", rows_of(task))
    given = {"name": task, "data": data, "max_length": 128 if task == "instruction" else 16}
    given |= {} if task == "classification" else {"max_new_tokens": 5}
    training = {"max_steps": 6, "batch_size": 8, "threads": 1, "device": "cpu", "precision": "float32"}
    training |= {"learning_rate": 0.01, "save_steps": 2}
    return [
        f"model={base}",
        "adapter.method=lora",
        f"adapter.new_tokens=[{','.join(NEW)}]",
        *(f"task.{name}={value}" for name, value in given.items()),
        *(f"training.{name}={value}" for name, value in training.items()),
    ]


class Trained(NamedTuple):
    """A finished run, and the model that it trained."""

    outcome: Outcome
    model: Any
    folder: Path


@pytest.fixture(scope="module")
def trained(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    held: list[Any] = []
    fit = train._fit
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_fit", lambda trainer, *given: (held.append(trainer.model), fit(trainer, *given))[1])
        outcome = train.run(configs.load(None, [*words, f"output={folder}"]), progress=False)
    return Trained(outcome, held[0].eval(), folder)


@torch.no_grad()
def logits(task: Task[Any], model: Any, vocabulary: int) -> torch.Tensor:
    """Return the outputs for every token of a vocabulary."""
    tokens = torch.arange(8 * (vocabulary // 8 + 1)).remainder(vocabulary).view(-1, 8)
    return task.forward(model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


def embeddings(model: Any) -> list[torch.Tensor]:
    """Return the weights whose rows are tokens, of a model without an adapter."""
    owners = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [owner.weight.detach() for owner in owners if owner is not None]


def test_a_run_is_used_on_the_plain_base(trained: Trained, base: Path) -> None:
    known = transformers.AutoTokenizer.from_pretrained(base).get_vocab()
    made = use.finished(trained.folder)
    assert made.processor.get_vocab() == known | {token: len(known) + n for n, token in enumerate(NEW)}
    assert torch.equal(*(logits(made.task, model, len(known) + 2) for model in (made.model, trained.model)))
    _, rows = made.task.prepare(trained.outcome.record["config"]["task"]["data"])
    figures, _ = use.evaluate(made, rows["validation"], 8)
    assert figures[made.task.primary] == pytest.approx(trained.outcome.record["score"], rel=1e-5)


def test_only_the_new_rows_train_and_are_saved(kind: str, trained: Trained, base: Path) -> None:
    saved = load_file(trained.outcome.folder / "adapter_model.safetensors")
    rows = [tensor for name, tensor in saved.items() if "trainable_tokens_delta" in name]
    assert len(rows) == (2 if kind in ("llama", "qwen2") else 1) and all(len(tensor) == 2 for tensor in rows)
    assert trained.outcome.record["parameters"]["new_tokens"] == sum(tensor.numel() for tensor in rows)
    layers = [part for part in trained.model.modules() if isinstance(part, TrainableTokensLayer)]
    for layer in layers:
        now, before = (of["default"] for of in (layer.trainable_tokens_delta, layer.trainable_tokens_original))
        assert (now != before).any(dim=1).all()
    size = len(transformers.AutoTokenizer.from_pretrained(base))
    assert all(size not in tensor.shape and size + 2 not in tensor.shape for tensor in saved.values())


def test_a_merged_run_stands_alone_with_its_vocabulary(trained: Trained, base: Path, tmp_path: Path) -> None:
    made = use.finished(trained.folder)
    size = len(made.processor) - 2
    before = logits(made.task, made.model, size + 2)
    merge(made, tmp_path / "merged")
    model = made.task.model_class.from_pretrained(tmp_path / "merged").eval()
    plain = made.task.model_class.from_pretrained(base)
    assert model.config.vocab_size == size + 2 == len(transformers.AutoTokenizer.from_pretrained(tmp_path / "merged"))
    assert torch.allclose(logits(made.task, model, size + 2), before, rtol=1e-3, atol=1e-3)
    for found, wanted in zip(embeddings(model), embeddings(plain), strict=True):
        assert torch.equal(found[:size], wanted) and found[size:].isfinite().all()


def test_a_converted_adapter_keeps_them(
    trained: Trained, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for form, kind in (("peft-lora", "LORA"), ("trilora", "SUBSPACE")):
        printed_by(["convert", str(trained.outcome.folder), "--to", form, "-o", str(tmp_path / form)], capfd)
        made = use.finished(trained.folder)
        plain = made.task.model_class.from_pretrained(base, **made.task.model_settings)
        grow(plain, len(made.processor))
        loaded = peft.PeftModel.from_pretrained(plain, tmp_path / form).eval()
        assert loaded.peft_config["default"].peft_type == kind
        outputs = (logits(made.task, model, len(made.processor)) for model in (loaded, trained.model))
        assert torch.allclose(*outputs, rtol=1e-3, atol=1e-3)


def test_an_interrupted_run_goes_on(
    words: list[str], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configs.load(None, [*words, f"output={tmp_path / 'run'}"])
    _interrupt(config, 5, monkeypatch)
    parted = train.run(config, progress=False)
    assert parted.record["resumed_from_step"] == 4
    assert parted.record["history"] == trained.outcome.record["history"]
    assert _same_weights(parted.folder, trained.outcome.folder)


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"new_tokens": ["<a>", "bak"]}, "has 'bak', which is already in the vocabulary: leave it out"),
        ({"new_tokens": ["<a>", "<a>"]}, "has '<a>', which is already in the list"),
        ({"new_tokens": [" "]}, "has ' ': write a text"),
        ({"method": "full", "new_tokens": ["<a>"]}, "adapter.new_tokens has no meaning with method 'full'"),
        ({"method": "prefix_tuning", "new_tokens": ["<a>"]}, "adapter.new_tokens has no meaning with method 'prefix"),
    ],
)
def test_what_cannot_be_added_is_refused(
    adapter: dict[str, Any], told: str, settings: dict[str, Any], write: Write
) -> None:
    settings["adapter"] |= adapter
    with pytest.raises(SubspaceError, match=told.replace("[", r"\[")):
        train.run(configs.load(write(settings)), progress=False)
    assert not Path(settings["output"]).exists()


def test_output_layers_that_are_divided_are_refused(
    settings: dict[str, Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "sharding", lambda: "FSDP")
    data = str(write_rows(tmp_path, "jsonl", rows_of("instruction")))
    settings |= {"model": str(write_decoder(tmp_path / "model")), "adapter": {"method": "lora", "new_tokens": ["<a>"]}}
    settings["task"] = {"name": "instruction", "data": data, "max_length": 128}
    with pytest.raises(SubspaceError, match=r"adapter\.new_tokens adds rows .* which FSDP divides: launch without it"):
        train.run(configs.load(write(settings)), progress=False)
    assert not Path(settings["output"]).exists()


def test_free_rows_of_the_embeddings_are_used(tiny_model: Path) -> None:
    """Many models have more rows than their tokenizer has tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    size = len(tokenizer)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=size + 8, **SMALL))
    before = embeddings(model)
    assert add_tokens(model, tokenizer, NEW) == {name: [size, size + 1] for name in ("model.embed_tokens", "lm_head")}
    assert all(torch.equal(*pair) for pair in zip(embeddings(model), before, strict=True))


def test_an_output_layer_with_a_bias_is_refused(tiny_model: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    model = transformers.PhiForCausalLM(transformers.PhiConfig(vocab_size=64, **SMALL))
    with pytest.raises(SubspaceError, match="needs an output layer without a bias"):
        add_tokens(model, tokenizer, NEW)


def test_params_counts_them(capfd: pytest.CaptureFixture[str]) -> None:
    plain, more = (printed_by(["params", "minilm", "-m", "lora", *new], capfd) for new in ([], ["--new-tokens", "3"]))
    counts = [int(re.findall(r"[0-9,]{7,}", text)[0].replace(",", "")) for text in (plain, more)]
    assert counts[1] - counts[0] == 3 * 384
