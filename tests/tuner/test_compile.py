"""torch.compile without a graph break, in training and in evaluation, and few recompilations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from subspace_tuning import SubspaceConfig, SubspaceLayer

from .conftest import Builder, Variant

Batch = dict[str, Tensor]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    """As little as a method needs, so that compiling stays quick; :func:`test_a_whole_encoder` takes the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


def adapted(variant: Variant, **fields: Any) -> Any:
    torch.manual_seed(1)
    fields = {"r": 3, "init_weights": False, "target_modules": ["linear"]} | fields
    return get_peft_model(Block(), variant.config(**fields))


def rows(count: int) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(count))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_training_has_no_graph_break(variant: Variant) -> None:
    # In double precision: the kernel and what is compiled add in another order.
    model, plain = adapted(variant).train().double(), adapted(variant).train().double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = rows(4).double()
    torch.manual_seed(0)  # for methods that draw gates
    output = compiled(x)
    torch.manual_seed(0)
    expected = plain(x)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    found, wanted = gradients(model), gradients(plain)
    assert found.keys() == wanted.keys()
    assert len(found) == len(variant.method.formula.trainable)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_evaluation_has_no_graph_break_and_few_graphs(variant: Variant) -> None:
    model = adapted(variant).eval()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    sizes = (2, 3, 7, 20, 50, 150, 400)
    for count in sizes:
        torch.testing.assert_close(compiled(rows(count)), model(rows(count)))
    layer = next(module for module in model.modules() if isinstance(module, SubspaceLayer))
    stages = len(layer.adapters["default"].plans[1].stages)
    assert counter.frame_count <= 1 + stages < len(sizes)  # the first batch is taken for one of a fixed size


@pytest.mark.parametrize("name", ["ssb", "lora", "dora"])
def test_training_steps_reuse_one_graph(name: str) -> None:
    model = adapted(Variant(name), dropout=0.1).train()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        compiled(rows(4)).square().mean().backward()
        optimizer.step()
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["ssb", "dora", "bitfit", "parallel_adapter"])
def test_what_is_switched_is_seen(name: str) -> None:
    variant = Variant(name)
    model = adapted(variant).eval()
    model.add_adapter("other", SubspaceConfig(method="ssb", init_weights=False, target_modules=["linear"]))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = rows(4)
    outputs = []
    steps: list[Callable[[], None]] = [
        lambda: None,
        lambda: model.set_adapter("other"),
        lambda: model.base_model.set_adapter(["default", "other"]),
        lambda: model.base_model.disable_adapter_layers(),
        lambda: model.base_model.enable_adapter_layers(),
    ]
    if variant.linear:
        steps += [model.merge_adapter, model.unmerge_adapter]
    with torch.no_grad():
        for step in steps:
            step()
            outputs.append(compiled(x))
            torch.testing.assert_close(outputs[-1], model(x))
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs[:4]) for b in outputs[:i])


@pytest.mark.slow
def test_a_whole_encoder(bert: Builder, variant: Variant, batch: Batch) -> None:
    model: Any = get_peft_model(bert(), variant.config(r=3, init_weights=False)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_inductor(variant: Variant, training: bool) -> None:
    model, plain = adapted(variant).train(training), adapted(variant).train(training)
    # Gates are drawn in training: from equal seeds, and by torch's generator in the compiled code as well.
    compiled = torch.compile(model, fullgraph=True, options={"fallback_random": True})
    torch.manual_seed(0)
    output = compiled(rows(4))
    torch.manual_seed(0)
    expected = plain(rows(4))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    output.square().sum().backward()
    expected.square().sum().backward()
    found, wanted = gradients(model), gradients(plain)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4)
