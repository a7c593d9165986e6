"""What a person meets first: what is printed, cells that are run again, calls that are made for every method."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn

from subspace_tuning import (
    SubspaceConfig,
    SubspaceError,
    SubspaceLayer,
    calibrate,
    method,
    methods,
    orthogonality,
    parameter_groups,
    penalty,
    schedule,
)
from subspace_tuning.algebra import parse

from .conftest import Batch, Builder, Variant

# The printed model


def lines(model: nn.Module) -> list[str]:
    """The line of each adapter in each layer, without its name; a printed model has them all."""
    printed, found = repr(model), []
    for layer in model.modules():
        if isinstance(layer, SubspaceLayer):
            own = layer.extra_repr().splitlines()
            assert [line.partition(": ")[0] for line in own] == list(layer.subspace_params)
            assert all(line in printed for line in own)
            found += [line.partition(": ")[2] for line in own]
    return found


def test_a_printed_model_tells_each_layers_formula(variant: Variant, bert: Builder) -> None:
    model = get_peft_model(bert(), variant.config(alpha=8.0))
    told = lines(model)
    assert told
    formula = variant.method.formula
    for line in told:
        assert line.startswith(f"{formula}, ")
        assert ("r=4" in line) == formula.has_rank
        assert ("s=2" in line) == ("s" in formula.expression.names)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    counts = [int(line.split(" trained")[0].split(", ")[-1].replace(",", "")) for line in told]
    assert sum(counts) == trained
    # The line is made from shapes alone: it says the same where there are no numbers.
    assert lines(copy.deepcopy(model)) == told
    assert lines(model.to("meta")) == told


def test_every_adapter_has_its_line(bert: Builder) -> None:
    model = get_peft_model(bert(), SubspaceConfig(method="lora", r=2, pattern="orthogonal", target_modules=["query"]))
    model.add_adapter("other", SubspaceConfig(method="ssb", target_modules=["query"]))
    model.add_adapter("third", SubspaceConfig(method="dora", r=3, target_modules=["key"]))
    one, two, three = dict.fromkeys(lines(model))
    assert one == "W + s * A @ B, r=2, s=8, 128 trained, pattern=orthogonal"
    assert two == "D1 @ W @ D2, 64 trained"
    assert three.startswith("unit(W + s * A @ B) @ D, r=3")
    model.delete_adapter("other")
    assert two not in lines(model)
    plain = model.merge_and_unload()
    assert not lines(plain)


def test_what_is_printed_of_formulas_and_methods_is_short() -> None:
    for known in methods.every():
        text = str(known.formula)
        assert repr(known.formula) == f"Formula({text!r})"
        assert repr(known) == f"Method({known.name!r}, {text!r})"
        for node in known.formula.expression.walk():
            assert repr(node) == f"{type(node).__name__}({str(node)!r})"
    assert repr(parse("D1 @ W")) == "Formula('D1 @ W')"


@pytest.mark.parametrize("fields", [{}, {"r": 3, "pattern": None, "target_modules": ["query"], "task_type": "SEQ_CLS"}])
def test_a_printed_config_is_the_call_that_makes_it(variant: Variant, fields: dict[str, object]) -> None:
    config = variant.config(**fields)
    assert eval(repr(config), {"SubspaceConfig": SubspaceConfig}) == config
    assert "None" not in repr(config) and len(repr(config)) < 150


# Cells that are run again


@pytest.mark.usefixtures("registry")
def test_a_method_may_be_declared_again_as_it_is() -> None:
    def declare(count: str = "n + r * (n + m)", text: str = "", **fields: object) -> methods.Method:
        def scaled(W, D1, A, B, s):
            return D1 @ W + s * A @ B

        scaled.__doc__ = text
        return method(count=count, **fields)(scaled)  # type: ignore[call-overload]

    first = declare()
    assert declare() == first == methods.get("scaled")
    assert declare(text="told better").description == methods.get("scaled").description == "told better"
    for other in ({"count": "n + r * n + r * m"}, {"learning_rate": 1e-2}):
        with pytest.raises(SubspaceError, match="'scaled' already exists, with other fields; replace=True replaces it"):
            declare(**other)
    with pytest.raises(SubspaceError, match=r"'scaled' already exists: D1 @ W \+ s \* A @ B; replace=True replaces it"):
        method(name="scaled")(lambda W, D1: D1 @ W)
    assert declare(learning_rate=1e-2, replace=True).learning_rate == methods.get("scaled").learning_rate == 1e-2


# Calls for every method


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [known.name for known in methods.every()])
def test_penalty_and_schedule_can_be_used_with_every_method(name: str, bert: Builder, batch: Batch) -> None:
    base = bert()
    placed = {"target_modules": ["query"]} if name == "xattn" else {}
    config = SubspaceConfig(method=name, r=2, **placed)
    batch = batch | {"labels": torch.tensor([0, 1, 2, 0])}
    if config.resolved.needs_calibration:
        config = calibrate(base, config, [batch])
    model = get_peft_model(base, config).train()
    loss = model(**{key: value for key, value in batch.items() if key != "labels"}).logits.square().mean()
    (loss + penalty(model)).backward()
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-2))
    optimizer.step()
    if name == "fish_dip":
        with pytest.raises(SubspaceError, match="needs training examples: give `scores`"):
            schedule(model, total_steps=10)
        return
    plan = schedule(model, total_steps=10)
    plan.step(1, optimizer)
    assert isinstance(plan.state_dict(), dict) and isinstance(plan.report(), dict)
    assert isinstance(orthogonality(model), dict)


OTHERS = {
    "plain": None,
    "lora": LoraConfig(task_type="SEQ_CLS"),
    "prefix": PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
}


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_they_do_nothing_with_other_models(config: LoraConfig | PrefixTuningConfig | None, bert: Builder) -> None:
    model = bert() if config is None else get_peft_model(bert(), config)
    assert penalty(model) == 0.0
    plan = schedule(model, total_steps=10)
    plan.step(1)
    assert plan.state_dict() == {}
    assert (orthogonality(model) != {}) == isinstance(config, LoraConfig)
