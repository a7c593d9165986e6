"""A saved adapter says what must be imported to load it, whoever saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from .conftest import Batch, Builder, Variant, logits

IMPORT = "import subspace_tuning"


def check_card(folder: Path, formula: str) -> str:
    card = ModelCard.load(folder / "README.md")
    assert "subspace-tuning" in card.data.tags
    assert card.data.library_name == "peft"
    assert card.text.count(IMPORT) == 1
    assert f"`{formula}`" in card.text
    return str(card.text)


def test_saved_by_peft(bert: Builder, variant: Variant, tmp_path: Path) -> None:
    model: Any = get_peft_model(bert(), variant.config())
    model.save_pretrained(tmp_path)
    check_card(tmp_path, str(variant.method.formula))


def test_saved_again_over_a_card_that_was_edited(bert: Builder, tmp_path: Path, batch: Batch) -> None:
    model: Any = get_peft_model(bert(), Variant("ssb").config(init_weights=False))
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    card.text += "\n\n## Notes\n\nMine.\n"
    card.save(tmp_path / "README.md")
    model.add_adapter("more", Variant("formula").config(init_weights=False))
    model.save_pretrained(tmp_path)
    assert check_card(tmp_path, "D1 @ W @ D2").rstrip().endswith("## Notes\n\nMine.")
    check_card(tmp_path / "more", "D1 @ W @ D2 + s * A @ B")
    assert (logits(PeftModel.from_pretrained(bert(), str(tmp_path)), batch) == logits(model, batch)).all()


def test_saved_by_transformers(bert: Builder, tmp_path: Path) -> None:
    model: Any = bert()
    model.add_adapter(Variant("dora").config())
    model.save_pretrained(tmp_path)
    check_card(tmp_path, str(Variant("dora").method.formula))


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_saved_by_a_trainer(bert: Builder, batch: Batch, tmp_path: Path) -> None:
    model: Any = get_peft_model(bert(), Variant("lora").config(task_type="SEQ_CLS"))
    rows = [{name: rows[i] for name, rows in batch.items()} | {"labels": i % 3} for i in range(4)]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        save_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        per_device_train_batch_size=2,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    check_card(tmp_path / "checkpoint-1", "W + s * A @ B")
    trainer.save_model()
    check_card(tmp_path, "W + s * A @ B")
    trainer.create_model_card()  # as before a push: the Trainer writes the card anew
    assert "subspace-tuning" in ModelCard.load(tmp_path / "README.md").data.tags
    trainer.save_model()
    check_card(tmp_path, "W + s * A @ B")


def test_the_base_model_stays_what_it_is(bert: Builder) -> None:
    model = bert()
    assert isinstance(model, BertForSequenceClassification)
    get_peft_model(model, Variant("ssb").config())
    assert BertForSequenceClassification.model_tags is None
