"""Small models with every kind of layer, and every method to put into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from subspace_tuning import SubspaceConfig, methods

Builder = Callable[[], nn.Module]

FORMULA = "D1 @ W @ D2 + s * A @ B"


@dataclass(frozen=True)
class Variant:
    """A registered method, or the one formula that no method is named after."""

    name: str

    @property
    def method(self) -> methods.Method:
        return self.config().resolved

    @property
    def linear(self) -> bool:
        return self.method.formula.is_linear

    @property
    def names_bias(self) -> bool:
        return self.method.formula.names_bias

    @property
    def persistent(self) -> set[str]:
        """The constants that only a file can give back, and that are saved with the factors."""
        formula = self.method.formula
        return {*formula.masked, *({"U_k", "V_k"} if formula.chooses_directions else ())}

    def config(self, **fields: Any) -> SubspaceConfig:
        fields.setdefault("r", 4)
        if self.name == "lora_dash":
            fields.setdefault("schedule", {"directions": 3})
        if self.name == "formula":
            return SubspaceConfig(formula=FORMULA, **fields)
        return SubspaceConfig(method=self.name, **fields)

    def __str__(self) -> str:
        return self.name


# Left to the laws and to tests of their own: methods whose config is made from a model and data (test_calibrate.py),
# the one that wants a cross-attention, and the one that goes around a normalisation (test_placements.py). Of methods
# with one formula one is enough here.
SAME_FORMULA = {"adalora": "trilora", "flexlora": "trilora", "moslora": "flora", "milora": "pissa"}
EVERY = [
    *(
        Variant(known.name)
        for known in methods.every()
        if not known.needs_calibration and not known.formula.wraps_norm and known.name not in {"xattn", *SAME_FORMULA}
    ),
    Variant("formula"),
]


Batch = dict[str, Tensor]


@pytest.fixture(params=EVERY, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    """Every registered method in turn, then a formula."""
    return request.param


@pytest.fixture(params=[variant for variant in EVERY if variant.linear], ids=str)
def linear(request: pytest.FixtureRequest) -> Variant:
    """Every method whose phi(W) is a matrix."""
    return request.param


@pytest.fixture(params=[variant for variant in EVERY if not variant.names_bias], ids=str)
def matrix(request: pytest.FixtureRequest) -> Variant:
    """Every method that changes W and not the bias."""
    return request.param


def deterministic(build: Builder) -> Builder:
    """Return a builder that gives the same model every time, with nothing in it at zero or one."""

    def built() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = build()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 1:  # biases start at 0 and the weights of norms at 1
                        parameter.add_(0.2 * torch.randn_like(parameter))
        return model.eval()

    return built


@pytest.fixture(scope="session")
def bert() -> Builder:
    """Two layers of BERT with a classifier of three labels."""
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        num_labels=3,
        initializer_range=0.2,
    )
    return deterministic(lambda: BertForSequenceClassification(config))


@pytest.fixture(scope="session")
def gpt2() -> Builder:
    """Two layers of GPT-2: transformers' Conv1D, and an output layer that is the input embedding."""
    config = GPT2Config(
        vocab_size=50,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return deterministic(lambda: GPT2LMHeadModel(config))


@pytest.fixture(scope="session")
def llama() -> Builder:
    """Two layers of Llama: no biases, a gate, keys and values narrower than queries."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return deterministic(lambda: LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def t5() -> Builder:
    """One layer of T5 on each side: an encoder-decoder without biases."""
    config = T5Config(
        vocab_size=50,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=1,
        num_heads=4,
        initializer_factor=4.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return deterministic(lambda: T5ForConditionalGeneration(config))


class ConvNet(nn.Module):
    """Two convolutions, one of them grouped, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2, groups=2)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(hidden.mean((-2, -1)))  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def conv_net() -> Builder:
    """A small convolutional network."""
    return deterministic(ConvNet)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Four rows of seven tokens, the last of them padding here and there."""
    tokens = torch.randint(3, 50, (4, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    mask[1, 5:] = mask[3, 6:] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all tensors of a model, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def unchanged() -> Callable[[nn.Module], Callable[[], None]]:
    """Return a function that remembers a model; what it returns asserts that the model is still the same."""

    def remember(model: nn.Module) -> Callable[[], None]:
        before = snapshot(model)
        modules = {name: type(module) for name, module in model.named_modules()}
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

        def check() -> None:
            after = model.state_dict()
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert modules == {name: type(module) for name, module in model.named_modules()}
            assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}

        return check

    return remember


@pytest.fixture(scope="session")
def bert_folder(bert: Builder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the saved base model."""
    folder = tmp_path_factory.mktemp("bert")
    bert().save_pretrained(folder)  # type: ignore[operator]
    return folder


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits
