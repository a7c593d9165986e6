"""Saving and loading: bit-equal outputs, in this process and in another, by peft's and by transformers' doors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import subspace_tuning
from subspace_tuning import SubspaceConfig, methods
from subspace_tuning.linalg import svd

from .conftest import EVERY, Batch, Builder, Variant, logits

TARGETS = ["query", "value", "output.dense"]


def saved(build: Builder, config: SubspaceConfig, folder: Path, batch: Batch) -> Tensor:
    """Save an adapter with random factors and return its output."""
    torch.manual_seed(5)
    model: Any = get_peft_model(build(), config).eval()
    model.save_pretrained(folder)
    return logits(model, batch)


def factors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if "subspace_params" in name}


def test_a_loaded_adapter_is_bit_equal(bert: Builder, variant: Variant, tmp_path: Path, batch: Batch) -> None:
    expected = saved(bert, variant.config(init_weights=False, modules_to_save=["classifier"]), tmp_path, batch)
    base = bert()
    nn.init.zeros_(base.classifier.weight)  # type: ignore[union-attr]
    model: Any = PeftModel.from_pretrained(base, tmp_path)
    assert not model.training
    assert torch.equal(logits(model, batch), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_only_the_adapter_is_saved(bert: Builder, variant: Variant, tmp_path: Path, batch: Batch) -> None:
    saved(bert, variant.config(target_modules=TARGETS), tmp_path, batch)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    trained = set(variant.method.formula.trainable)
    assert {name.split(".")[-1] for name in tensors} == trained | variant.persistent
    parts = {name.split(".")[-1]: name.split(".")[-2] for name in tensors}
    assert all(parts[name] == "subspace_params" for name in trained)
    assert len(tensors) == (len(trained) + len(variant.persistent)) * 2 * 4
    text = (tmp_path / "adapter_config.json").read_text()
    told = json.loads(text)
    assert told["formula"] == str(variant.method.formula)
    assert told["peft_type"] == "SUBSPACE"


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_loaded_adapter_goes_on_training(
    bert: Builder, variant: Variant, tmp_path: Path, batch: Batch, low_cpu_mem_usage: bool
) -> None:
    expected = saved(bert, variant.config(init_weights=False), tmp_path, batch)
    options: Any = {"is_trainable": True, "low_cpu_mem_usage": low_cpu_mem_usage}
    model: Any = PeftModel.from_pretrained(bert(), tmp_path, **options)
    assert torch.equal(logits(model.eval(), batch), expected)
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in factors(model).values())
    loss = model.train()(**batch, labels=torch.tensor([0, 1, 2, 0])).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in factors(model).values())


def test_a_second_adapter_is_loaded_beside_the_first(
    bert: Builder, variant: Variant, tmp_path: Path, batch: Batch
) -> None:
    expected = saved(bert, variant.config(init_weights=False), tmp_path / "own", batch)
    other = saved(bert, SubspaceConfig(method="ssb", init_weights=False), tmp_path / "other", batch)
    model: Any = PeftModel.from_pretrained(bert(), tmp_path / "other", adapter_name="ssb_adapter").eval()
    model.load_adapter(tmp_path / "own", "own")
    assert torch.equal(logits(model, batch), other)
    model.set_adapter("own")
    assert torch.equal(logits(model, batch), expected)
    model.save_pretrained(tmp_path / "both")
    for name, wanted in (("own", expected), ("ssb_adapter", other)):
        again = PeftModel.from_pretrained(bert(), tmp_path / "both" / name)
        assert torch.equal(logits(again, batch), wanted)


@pytest.mark.parametrize("save_constants", [False, True])
def test_saved_constants_do_not_depend_on_another_decomposition(
    bert: Builder,
    variant: Variant,
    tmp_path: Path,
    batch: Batch,
    save_constants: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = saved(bert, variant.config(init_weights=False, save_constants=save_constants), tmp_path, batch)

    def other_svd(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(part + 0.01 for part in svd(*args, **kwargs))

    monkeypatch.setattr("subspace_tuning.methods.factors.svd", other_svd)
    model: Any = PeftModel.from_pretrained(bert(), tmp_path)
    decomposes = bool(variant.method.formula.spectral)
    assert torch.equal(logits(model, batch), expected) == (save_constants or not decomposes)
    stored = {name.split(".")[-1] for name in load_file(tmp_path / "adapter_model.safetensors")}
    kept = stored - set(variant.method.formula.trainable)
    if save_constants:
        assert kept >= set(variant.method.formula.spectral) - {"rest"}
    else:
        assert kept == variant.persistent


def test_auto_peft_model_for_sequence_classification(
    variant: Variant, bert_folder: Path, tmp_path: Path, batch: Batch
) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(bert_folder)
    torch.manual_seed(5)
    model: Any = get_peft_model(base, variant.config(init_weights=False, task_type="SEQ_CLS")).eval()
    model.save_pretrained(tmp_path)
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_auto_peft_model_for_causal_lm(
    request: pytest.FixtureRequest, architecture: str, matrix: Variant, tmp_path: Path, batch: Batch
) -> None:
    request.getfixturevalue(architecture)().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model: Any = get_peft_model(base, matrix.config(init_weights=False, task_type="CAUSAL_LM")).eval()
    model.save_pretrained(tmp_path / "adapter")
    again: Any = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again, batch), logits(model, batch))


SUBPROCESS = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import subspace_tuning
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
base, batch, result = sys.argv[1], load_file(sys.argv[2]), {}
for folder in sys.argv[4:]:
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), folder)
    with torch.no_grad():
        result[folder] = model(**batch).logits
save_file(result, sys.argv[3])
"""


@pytest.fixture
def own_method() -> Iterator[methods.Method]:
    """A method of a person's own, which exists in this process only."""

    @methods.method(name="rotated_inputs", starts={"A": "normal(0.1)", "B": "zeros"})
    def declared(W: Any, A: Any, B: Any, s: Any) -> Any:
        """Turn the inputs."""
        return W + s * A @ B @ W

    yield declared
    methods.unregister("rotated_inputs")


def test_another_process_loads_the_same(
    bert: Builder, bert_folder: Path, tmp_path: Path, batch: Batch, own_method: methods.Method
) -> None:
    save_file(batch, tmp_path / "batch")
    expected = {}
    for variant in [*EVERY, Variant(own_method.name)]:
        folder = tmp_path / variant.name
        expected[str(folder)] = saved(bert, variant.config(init_weights=False), folder, batch)
    home = Path(subspace_tuning.__file__).parents[1]
    arguments = [str(bert_folder), str(tmp_path / "batch"), str(tmp_path / "result"), *expected]
    code = f"import sys; sys.path.insert(0, {str(home)!r})\n{SUBPROCESS}"
    without_cache = os.environ | {"SUBSPACE_CACHE": ""}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=600, env=without_cache)
    found = load_file(tmp_path / "result")
    for folder, wanted in expected.items():
        if Path(folder).name == own_method.name:
            # It multiplies W itself: mapped from a file W begins anywhere in memory, and a BLAS rounds accordingly.
            torch.testing.assert_close(found[folder], wanted, rtol=0.0, atol=1e-5)
        else:
            assert torch.equal(found[folder], wanted), folder
