"""Runs on a model with quantised weights, and models that transformers loads in that way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

from subspace_tuning import SubspaceConfig, SubspaceError
from subspace_tuning.models.quantise import Quantise
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.tuner.quantised import door_of
from subspace_tuning.tuner.unpacked import keep_unpacked

pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")

Settings = dict[str, Any]
Write = Callable[[Mapping[str, Any]], Path]


@pytest.mark.parametrize(
    "format",
    [
        Quantise.qlora,
        Quantise.torchao_int8,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (Quantise.nf4, Quantise.fp4, Quantise.int8)),
    ],
    ids=str,
)
def test_a_run(settings: Settings, write: Write, format: Quantise) -> None:
    path = write(settings | {"quantise": format.value, "adapter": {"method": "lora", "r": 2}})
    outcome = train.run(configs.load(path), progress=False)
    plain = write(settings | {"adapter": {"method": "lora", "r": 2}, "output": settings["output"] + "-plain"})
    counts = train.run(configs.load(plain), progress=False).record["parameters"]
    assert outcome.record["config"]["quantise"] == format.value
    assert outcome.record["parameters"] == counts, "counted as what the packed numbers stand for"


@pytest.mark.parametrize("method", ["full", "head"])
def test_only_adapters_train_on_quantised_weights(settings: Settings, write: Write, method: str) -> None:
    with pytest.raises(SubspaceError, match=f"^quantise has no meaning with method '{method}'"):
        configs.load(write(settings | {"quantise": "nf4", "adapter": {"method": method}}))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small Llama."""
    folder = str(tmp_path_factory.mktemp("llama"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _nf4() -> Any:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def _int8() -> Any:
    return BitsAndBytesConfig(load_in_8bit=True)


@pytest.mark.parametrize("method", ["lora", "dora", pytest.param("liera", marks=pytest.mark.slow)])
@pytest.mark.parametrize("quantise", [_nf4, _int8, _torchao])
def test_the_way_through_transformers(llama: str, tmp_path: Path, quantise: Callable[[], Any], method: str) -> None:
    def load(loader: Any, folder: str) -> Any:
        loaded = loader.from_pretrained(folder, quantization_config=quantise(), device_map="cpu").eval()
        keep_unpacked(loaded)  # some CPUs cannot evaluate the base in these sizes
        return loaded

    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    base = prepare_model_for_kbit_training(
        load(AutoModelForCausalLM, llama), gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    with torch.no_grad():
        before = base(ids).logits
    fields = {"target_modules": "all-linear"} if method == "lora" else {}
    model = get_peft_model(base, SubspaceConfig(method=method, r=4, task_type="CAUSAL_LM", **fields))
    assert all(door_of(layer.get_base_layer()) for layer in model.modules() if hasattr(layer, "subspace_params"))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, before, atol=1e-5, rtol=0)
    optimiser = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=2e-2)
    losses = []
    for _ in range(4):
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        after = model.eval()(ids).logits
        model.save_pretrained(str(tmp_path))
        again = PeftModel.from_pretrained(load(AutoModelForCausalLM, llama), str(tmp_path)).eval()
        assert torch.equal(again(ids).logits, after)
        assert torch.equal(load(AutoPeftModelForCausalLM, str(tmp_path))(ids).logits, after)
        with pytest.warns(UserWarning, match="14 merged weights were quantised again, with an error"):
            merged = model.merge_and_unload()
        assert (merged(ids).logits - after).norm() < 0.5 * (before - after).norm()
    assert door_of(merged.model.layers[0].self_attn.q_proj) is not None
