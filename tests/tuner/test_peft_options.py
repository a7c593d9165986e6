"""Options of peft that other libraries set on any adapter's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from subspace_tuning import SubspaceConfig, SubspaceError

from .conftest import Batch, Builder, Variant, logits


@pytest.mark.parametrize("name", ["ssb", "lora", "dora", "svdiff", "formula"])
def test_new_tokens_train(llama: Builder, name: str, batch: Batch, tmp_path: Path) -> None:
    config = Variant(name).config(task_type="CAUSAL_LM")
    assert config.trainable_token_indices is None
    rows = sorted(set(batch["input_ids"][0].tolist()))[:2]
    config.trainable_token_indices = {"embed_tokens": rows}  # as trainers set it that add tokens
    model: Any = get_peft_model(llama(), config)
    before = model.base_model.model.model.embed_tokens.weight.detach().clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    merged = model.base_model.model.model.embed_tokens.token_adapter.get_merged_weights(["default"])
    moved = (merged != before).any(1).nonzero().flatten().tolist()
    assert moved == rows
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), str(tmp_path)).eval()
    assert torch.equal(logits(loaded, batch), logits(model, batch))


@pytest.mark.parametrize(("option", "value"), [("use_dora", True), ("lora_alpha", 32)])
def test_an_option_of_lora_alone_is_refused(bert: Builder, option: str, value: object, unchanged: Any) -> None:
    model = bert()
    check = unchanged(model)
    config = SubspaceConfig(method="lora")
    setattr(config, option, value)
    with pytest.raises(SubspaceError, match=f"^{option} = .* is an option of peft's LoRA"):
        get_peft_model(model, config)
    check()
    for same in (False, None, []):  # what leaves LoRA as it is means nothing here either
        setattr(config, option, same)
    get_peft_model(model, config)
