"""The example of a LightningModule."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import peft
import pytest
import torch
import transformers

from ..scripts import module_of
from .test_resume import _same_weights

lightning = pytest.importorskip("lightning")
EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning_encoder.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return module_of(EXAMPLE)


class Noted(lightning.Callback):  # type: ignore[misc,name-defined]
    """Notes what is logged, and stops a run before an epoch."""

    def __init__(self, before: int | None = None) -> None:
        self.before = before
        self.logged: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == self.before:
            raise RuntimeError("stopped")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.mark.slow
def test_a_lightning_module_trains_is_resumed_and_saved(script: ModuleType, tiny_model: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"  # Lightning does not keep the random state, on which dropout depends
    model = transformers.BertModel.from_pretrained(
        tiny_model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model.save_pretrained(plain)
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(plain)
    texts = ["ba dek fi", "go lu", "ne bak", "dek dek go", "fi fi", "lu ne ba"]
    rows = datasets.Dataset.from_dict({"text": texts * 4, "category": ["a", "b", "a", "b", "b", "a"] * 4})
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}

    def train(name: str, noted: Noted) -> Any:
        return script.train(str(plain), rows, str(tmp_path / name), 8, callbacks=[noted], **quiet)

    whole = Noted()
    module = train("whole", whole)
    losses, penalties = ([entry[name] for entry in whole.logged] for name in ("loss", "penalty"))
    assert len(losses) == 24 and losses[-1] < losses[0] and all(value > 0 for value in penalties)
    ranks = [int((factor != 0).sum()) for name, factor in module.model.named_parameters() if ".D." in f"{name}."]
    assert ranks and sum(ranks) < 8 * len(ranks), "the schedule prunes"
    with pytest.raises(RuntimeError, match="stopped"):
        train("parted", Noted(before=5))
    saved = torch.load(tmp_path / "parted" / "last.ckpt", weights_only=True)["state_dict"]
    assert saved and all("subspace_params" in name or "classifier" in name or "pooler" in name for name in saved)
    parted = Noted()
    train("parted", parted)
    assert parted.logged == whole.logged[15:]
    assert _same_weights(tmp_path / "parted", tmp_path / "whole")
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    tokens = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(loaded(**tokens).logits, module.model.eval()(**tokens).logits)
