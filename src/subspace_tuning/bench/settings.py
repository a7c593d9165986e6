"""The measured setting: a model of a given shape with random weights, a batch, a number format."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from ..errors import SubspaceError, nearest
from .choices import BenchPrecision
from .device import device

HEADS = ("classifier", "score")


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model (its configuration) and of a batch."""

    name: str
    config: PreTrainedConfig
    batch: int
    tokens: int

    @property
    def title(self) -> str:
        config = self.config
        return (
            f"{self.name}: {config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}, "
            f"batch {self.batch} x {self.tokens}"
        )

    def model(self, precision: BenchPrecision = BenchPrecision.float32) -> PreTrainedModel:
        """Return the model with random weights, the same in every call, in training mode and without dropout.

        It is on the accelerator if there is one.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
                copy.deepcopy(self.config)
            )
        if precision is BenchPrecision.bfloat16:
            model.bfloat16()
        model.to(device())  # type: ignore[arg-type]
        model.train()
        return model

    def inputs(self) -> dict[str, Tensor]:
        """Return a batch of random tokens without padding."""
        generator = torch.Generator().manual_seed(0)
        size = (self.batch, self.tokens)
        tokens = torch.randint(5, self.config.vocab_size, size, generator=generator)
        labels = torch.randint(0, 2, (self.batch,), generator=generator)
        batch = {"input_ids": tokens, "attention_mask": torch.ones(size, dtype=torch.int64), "labels": labels}
        return {name: tensor.to(device()) for name, tensor in batch.items()}


def _bert(width: int, layers: int, **more: Any) -> BertConfig:
    return BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **more,
    )


def bert_block(width: int, layers: int = 1, batch: int = 8, tokens: int = 64) -> ModelShape:
    """Return a small encoder of a given width, for growth curves."""
    return ModelShape(f"bert-{width}", _bert(width, layers, vocab_size=1000), batch, tokens)


SHAPES = {
    "a": ModelShape("a (MiniLM)", _bert(384, 6, vocab_size=30522), 32, 64),
    "b": ModelShape(
        "b (RoBERTa-base, 4 layers)",
        RobertaConfig(
            num_hidden_layers=4,
            vocab_size=50265,
            max_position_embeddings=514,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        16,
        128,
    ),
    "c": ModelShape(
        "c (Llama block pair)",
        LlamaConfig(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=2,
            num_attention_heads=16,
            num_key_value_heads=16,
            vocab_size=32000,
            pad_token_id=0,
        ),
        4,
        256,
    ),
}


def shape_of(name: str) -> ModelShape:
    """Return one of the shapes. Raises SubspaceError for an unknown name."""
    if name not in SHAPES:
        raise SubspaceError(f"unknown shape {name!r}; {nearest(name, SHAPES)}")
    return SHAPES[name]


def autocast(precision: BenchPrecision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of a forward pass on a device."""
    if precision is BenchPrecision.autocast:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy with the same tensors as frozen weights, and a head of its own.

    So the arms of a benchmark need no more memory than one, and none benefits from the placement of its weights.
    """
    memo = {id(tensor): tensor for name, tensor in model.named_parameters() if not name.startswith(HEADS)}
    return copy.deepcopy(model, memo)


def freeze(model: nn.Module) -> None:
    """Freeze everything except the head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(HEADS))


def start_gradient_at_embeddings(model: PreTrainedModel) -> None:
    """Propagate the gradient down to the embeddings' output."""
    base = model.base_model
    found: nn.Module = getattr(base, "embeddings", None) or base.get_input_embeddings()  # type: ignore[operator]
    found.register_forward_hook(lambda module, args, output: output.requires_grad_())
