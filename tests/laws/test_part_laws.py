"""Parts of fused projections: which outputs they are, and that each is adapted as a matrix of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    ModernBertConfig,
    MptConfig,
    Phi3Config,
    PretrainedConfig,
)

from subspace_tuning import SubspaceConfig, SubspaceError
from subspace_tuning.methods import Method
from subspace_tuning.tuner.fused import parts_of
from subspace_tuning.tuner.walking import layers_of, modules_of

from .mixtures import options
from .registry import METHODS, method_id

SIZES = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 30}
FALCON = {**SIZES, "alibi": False, "bias": True}
LLAMA = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "pad_token_id": 0}
MODELS: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "gpt2": (lambda: GPT2Config(n_embd=16, n_head=4, n_layer=2, vocab_size=30), "attn.c_attn"),
    "phi3": (lambda: Phi3Config(**LLAMA), "qkv_proj"),
    "gpt_neox": (lambda: GPTNeoXConfig(**SIZES, intermediate_size=24), "query_key_value"),
    "bloom": (lambda: BloomConfig(hidden_size=16, n_head=4, n_layer=2, vocab_size=30), "query_key_value"),
    "falcon": (
        lambda: FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
        "query_key_value",
    ),
    "falcon_multi_query": (lambda: FalconConfig(**FALCON, multi_query=True), "query_key_value"),
    "falcon_by_head": (lambda: FalconConfig(**FALCON, multi_query=False), "query_key_value"),
    "mpt": (lambda: MptConfig(d_model=16, n_heads=4, n_layers=2, vocab_size=30), "Wqkv"),
    "modernbert": (lambda: ModernBertConfig(**SIZES, intermediate_size=24, pad_token_id=0), "Wqkv"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def built(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModel.from_config(MODELS[name][0](), attn_implementation="eager").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    return model


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, 30, (2, 6), generator=torch.Generator().manual_seed(seed))


def output(model: Any, seed: int = 0) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens(seed)).last_hidden_state
    return found


def columns_of(model: Any, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the first layer's fused projection and its three parts."""
    path, module = next((path, one) for path, one in modules_of(model) if path.endswith(MODELS[name][1]))
    config = SubspaceConfig(method="lora", parts={MODELS[name][1].replace(".", r"\."): ["q", "k", "v"]})
    found = parts_of(model, config, path, module)
    assert found is not None
    return module, {path.rpartition(".")[2]: part for path, part in found.items()}


@every_model
def test_parts_are_what_the_model_makes_of_them(name: str) -> None:
    """Without queries or keys the attention does not look at the input, without values it looks but sees nothing."""
    model = built(name)
    module, parts = columns_of(model, name)
    every = torch.cat([part.columns for part in parts.values()])
    assert torch.equal(every.sort().values, torch.arange(len(every)))
    assert len(every) == (module.weight.shape[1] if name == "gpt2" else module.weight.shape[0])  # type: ignore[index]

    def attention(seed: int) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(tokens(seed), output_attentions=True).attentions[0]
        return found

    frozen = attention(0)
    assert not torch.allclose(frozen, attention(1))
    for part, own in parts.items():
        weight, bias = module.weight, module.bias
        own.weight = torch.zeros_like(own.weight)
        if bias is not None:
            own.bias = torch.zeros_like(own.bias)
        if part == "v":
            torch.testing.assert_close(attention(0), frozen)
        else:
            torch.testing.assert_close(attention(0), attention(1))
        module.weight, module.bias = weight, bias


@pytest.mark.parametrize("name", ["gpt2", "falcon"])
@pytest.mark.parametrize(
    "case",
    [case for case in METHODS if case.chooser is None and not case.formula.wraps_norm and case.formula.is_linear],
    ids=method_id,
)
def test_a_life(case: Method, name: str, tmp_path: Path) -> None:
    """A part is adapted and all else stays W, from the start to the merged model."""
    base = built(name)
    y, end = output(base), MODELS[name][1].rpartition(".")[2]
    if case.formula.names_bias and name == "falcon":
        pytest.skip("Falcon's linear layers have a forward of their own")
    config = SubspaceConfig(**options(case), target_modules=[end], parts={end: ["q", "v"]})
    model: Any = get_peft_model(copy.deepcopy(base), config).eval()
    torch.testing.assert_close(output(model), y)
    layers = dict(layers_of(model))
    assert {path.rpartition(".")[2] for path in layers} == {"q", "v"} and len(layers) == 4
    frozen = {key: parameter for key, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(".subspace_" not in key for key in frozen)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    changed = output(model)
    if case.schedule != "lora_dash":
        assert (changed - y).abs().max() > 1e-5
    model.train()(tokens()).last_hidden_state.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(output(loaded), changed)
    with model.disable_adapter():
        assert torch.equal(output(model), y)
    model.merge_adapter()
    torch.testing.assert_close(output(model), changed)
    model.unmerge_adapter()
    assert torch.equal(output(model), changed)
    own = dict(base.named_parameters())
    kept = {key.removeprefix("base_model.model.").replace(".base_layer", ""): p for key, p in model.named_parameters()}
    assert all(torch.equal(kept[key], own[key]) for key in own)

    merged = loaded.merge_and_unload()
    torch.testing.assert_close(output(merged), changed)
    fused, parts = columns_of(merged, name)
    before, _ = columns_of(base, name)
    rows = fused.weight if name == "falcon" else fused.weight.T  # type: ignore[union-attr]
    old = before.weight if name == "falcon" else before.weight.T  # type: ignore[union-attr]
    differ = (rows != old).any(1).nonzero().flatten()  # type: ignore[union-attr]
    assert not set(differ.tolist()) & set(parts["k"].columns.tolist())


def test_rows_methods_and_two_adapters() -> None:
    """A method with an activation runs on a part's rows; parts of another adapter are switched to."""
    model: Any = get_peft_model(
        built("phi3"),
        SubspaceConfig(
            method="parallel_adapter", r=2, init_weights=False, parts={"qkv_proj": ["k"]}, target_modules=["qkv_proj"]
        ),
    ).eval()
    first = output(model)
    config = SubspaceConfig(
        method="lora",
        r=2,
        init_weights=False,
        target_modules=["qkv_proj", "o_proj", "gate_up_proj"],
        parts={"qkv_proj": ["q", "v"], "gate_up_proj": ["up"]},
        rank_pattern={"qkv_proj": 3, "qkv_proj.v": 1},
    )
    model.add_adapter("second", config)
    model.set_adapter("second")
    assert (output(model) - first).abs().max() > 1e-4
    ranks = {path.split(".", 4)[-1]: layer.r["second"] for path, layer in layers_of(model) if "second" in layer.r}
    assert ranks == {
        "self_attn.qkv_proj.q": 3, "self_attn.qkv_proj.v": 1, "self_attn.o_proj": 2, "mlp.gate_up_proj.up": 2
    }  # fmt: skip
    model.set_adapter("default")
    assert torch.equal(output(model), first)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("phi3", {"parts": {"qkv_proj": ["query"]}}, r"^parts: layers\.0\.self_attn\.qkv_proj has no part 'query'; "),
        (
            "phi3",
            {"parts": {"o_proj": ["q"]}},
            r"^parts: what layers\.0\.self_attn\.o_proj of model type 'phi3' is put",
        ),
        ("phi3", {"parts": {"qkv_proj": "q"}}, r"^parts = \{'qkv_proj': 'q'\} is not a mapping from modules to lists"),
        ("phi3", {"parts": {"qkv_proj": ["q"]}, "method": "fishmask"}, r"^method 'fishmask' chooses what it trains"),
        ("falcon", {"parts": {"query_key_value": ["q"]}, "method": "houlsby"}, r"forward of its own|does more than"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    def attached() -> PeftModel:
        fields = {"method": "lora", "r": 2, "target_modules": ["qkv_proj", "o_proj", "query_key_value"], **options}
        return get_peft_model(built(name), SubspaceConfig(**fields).with_choice())

    with pytest.raises(SubspaceError, match=message):
        attached()
