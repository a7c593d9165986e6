"""Training: which tensors move, gradient checkpointing, dropout, copies, and the Hugging Face Trainer."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from subspace_tuning import ScheduleCallback, SubspaceConfig, SubspaceError
from subspace_tuning.algebra.nodes import Reflect

from .conftest import Builder, Variant

Batch = dict[str, Tensor]

LABELS = torch.tensor([0, 1, 2, 0])


def without_dropout(model: nn.Module) -> nn.Module:
    """Let nothing but our own dropout be random in training."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "config"):
            module.config.attention_probs_dropout_prob = 0.0
    return model


def factors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "subspace_params" in name}


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def test_factors_move_and_nothing_else_does(bert: Builder, variant: Variant, batch: Batch) -> None:
    chooses = variant.method.formula.chooses_directions  # which at the start are none, so that d stays
    model: Any = get_peft_model(bert(), variant.config(init_weights=not chooses)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable.keys() == factors(model).keys()
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    for _ in range(3):
        loss = model(**batch, labels=LABELS).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in trainable.values())
        optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trainable), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    bert: Builder, variant: Variant, batch: Batch, reentrant: bool
) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        base: Any = without_dropout(bert())
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model: Any = get_peft_model(base, variant.config(init_weights=False)).train()
        model(**batch, labels=LABELS).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in factors(model).items()})
    assert all(gradient is not None for gradient in gradients[1].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_dropout_changes_training_and_not_evaluation(
    request: pytest.FixtureRequest, architecture: str, matrix: Variant, batch: Batch
) -> None:
    build: Builder = request.getfixturevalue(architecture)
    outputs = {}
    for dropout in (0.0, 0.5):
        torch.manual_seed(1)
        model = get_peft_model(without_dropout(build()), matrix.config(init_weights=False, dropout=dropout))
        outputs[dropout] = [logits(model.train(), batch), logits(model.eval(), batch), logits(model.eval(), batch)]
    formula = matrix.method.formula
    if formula.has_gates:  # training draws them anyway
        assert not torch.equal(outputs[0.0][0], outputs[0.0][1])
        return
    turned = any(isinstance(node, Reflect) for node in formula.expression.walk())  # W itself, and nothing is added
    added = bool({"A", "Delta"} & set(formula.trainable)) and not turned
    assert torch.allclose(outputs[0.0][0], outputs[0.5][0], atol=1e-5) == (not added)
    assert torch.equal(outputs[0.0][1], outputs[0.5][1])
    assert torch.equal(outputs[0.5][1], outputs[0.5][2])


def test_a_model_is_copied_and_pickled(bert: Builder, variant: Variant, batch: Batch) -> None:
    model: Any = get_peft_model(bert(), variant.config(init_weights=False)).eval()
    expected = logits(model, batch)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, batch), expected)
        own, theirs = factors(model), factors(other)
        assert own.keys() == theirs.keys()
        assert all(own[name] is not theirs[name] for name in own)
        with torch.no_grad():
            for parameter in theirs.values():
                parameter.add_(0.1)
        assert not torch.equal(logits(other, batch), expected)
        assert torch.equal(logits(model, batch), expected)
        other.delete_adapter("default")
        other.add_adapter("again", SubspaceConfig(method="ssb"))
    assert list(model.peft_config) == ["default"]


def test_a_copy_of_a_merged_model_unmerges(bert: Builder, linear: Variant, batch: Batch) -> None:
    model: Any = get_peft_model(bert(), linear.config(init_weights=False)).eval()
    expected = logits(model, batch)
    model.merge_adapter()
    other = copy.deepcopy(model)
    other.unmerge_adapter()
    assert torch.equal(logits(other, batch), expected)
    assert all(layer.merged for layer in model.modules() if hasattr(layer, "merged_adapters"))


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, batch: Batch) -> None:
        self.batch = batch | {"labels": LABELS}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.batch.items()}


def trainer(model: nn.Module, folder: Path, batch: Batch, steps: int, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        save_steps=1,
        report_to=[],
        seed=3,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return Trainer(model=model, args=arguments, train_dataset=Rows(batch), eval_dataset=Rows(batch))


@pytest.mark.parametrize("name", ["ssb", "lora"])
def test_the_trainer_saves_and_resumes(bert: Builder, name: str, tmp_path: Path, batch: Batch) -> None:
    def fresh() -> Any:
        torch.manual_seed(1)
        return get_peft_model(bert(), SubspaceConfig(method=name, r=4, modules_to_save=["classifier"], dropout=0.1))

    whole = fresh()
    trainer(whole, tmp_path / "whole", batch, 3).train()
    halves = trainer(fresh(), tmp_path / "halves", batch, 3)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model.safetensors").exists()
    halves.train(resume_from_checkpoint=str(checkpoint))
    assert halves.state.global_step == 3
    ended, resumed = whole.state_dict(), halves.model.state_dict()  # type: ignore[union-attr]
    for key, tensor in ended.items():
        torch.testing.assert_close(resumed[key], tensor, rtol=1e-5, atol=1e-6, msg=key)
    moved = [key for key, tensor in ended.items() if not torch.equal(tensor, fresh().state_dict()[key])]
    assert any("subspace_params" in key for key in moved)
    assert any("classifier.modules_to_save" in key for key in moved)
    assert not any("base_layer" in key or "original_module" in key for key in moved)
    loaded = PeftModel.from_pretrained(bert(), tmp_path / "whole" / "checkpoint-3")
    assert torch.equal(logits(loaded, batch), logits(whole.eval(), batch))


def test_the_trainer_loads_the_best_checkpoint(bert: Builder, tmp_path: Path, batch: Batch) -> None:
    model: Any = get_peft_model(bert(), SubspaceConfig(method="ssb", modules_to_save=["classifier"]))
    run = trainer(
        model,
        tmp_path,
        batch,
        3,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        gradient_checkpointing=True,
    )
    run.train()
    assert run.state.best_model_checkpoint is not None
    best = PeftModel.from_pretrained(bert(), run.state.best_model_checkpoint)
    assert torch.equal(logits(model.eval(), batch), logits(best, batch))


@pytest.mark.parametrize(
    ("name", "options"),
    [("adalora", {"t_init": 1, "t_final": 1, "interval": 1}), ("lora_dash", {"launch": 2, "directions": 3})],
)
def test_a_schedule_in_the_trainer_goes_on_from_a_checkpoint(
    bert: Builder, name: str, options: dict[str, float], tmp_path: Path, batch: Batch
) -> None:
    def begin(folder: str) -> tuple[Any, ScheduleCallback, Trainer]:
        torch.manual_seed(1)
        model: Any = get_peft_model(bert(), SubspaceConfig(method=name, r=4, schedule=options))
        callback = ScheduleCallback(model)
        run = trainer(model, tmp_path / folder, batch, 5)
        run.add_callback(callback)
        return model, callback, run

    whole, callback, run = begin("whole")
    run.train()
    assert callback.schedule is not None and callback.schedule.report()
    for cut in (1, 3):
        halves, _, resumed = begin("whole")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{cut}"))
        for key, tensor in whole.state_dict().items():
            assert torch.equal(halves.state_dict()[key], tensor), key
    (tmp_path / "whole" / "checkpoint-1" / "schedule.safetensors").unlink()
    with pytest.raises(SubspaceError, match=r"checkpoint-1 has no schedule\.safetensors"):
        begin("whole")[2].train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
