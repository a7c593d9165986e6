"""What a factor is called decides nothing: its place in the formula does."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer, method, methods, orthogonality, penalty
from subspace_tuning.adapters.convert import PEFT_LORA, convert_adapter
from subspace_tuning.adapters.files import read_adapter
from subspace_tuning.adapters.lora import write_lora
from subspace_tuning.algebra import Sizes, names, parse
from subspace_tuning.methods import Method, patterns
from subspace_tuning.theory.convert import convert
from subspace_tuning.tuner.optim import parameter_groups, second_factors
from subspace_tuning.tuner.scheduling import schedule, sites

from ..tuner.fsdp_run import Net
from .registry import METHODS, method_id

STEPS = 12
WORDS = re.compile(r"\b[A-Za-z]\w*\b")
KINDS = (
    (names.is_mask, "M{}", 9),
    (names.is_diagonal, "D{}", 9),
    (lambda name: name[0].isupper(), "{}", ["P", "Q", "Bottom", "Apex", "Zed", "B9", "A7", "Kappa", "B", "A", "G"]),
    (lambda name: True, "{}", ["l", "z9", "lam", "a", "d", "tau", "delta", "alpha"]),
)
"""What a name may become: the language knows masks, diagonals, matrices and vectors by their names, and no more."""


def renaming(case: Method, seed: int) -> dict[str, str]:
    """Return other names for the factors of a method, and for their starts."""
    draw, found = random.Random(seed), dict[str, str]()
    for name in (*case.formula.trainable, *case.formula.masked):
        if name in case.formula.windows:  # C1 is a window's by its name, as D1 is a diagonal
            continue
        kept = {*found.values(), *case.formula.expression.names}
        [(shape, options), *_] = [(shape, options) for of, shape, options in KINDS if of(name)]
        choices = [shape.format(option) for option in (range(1, options + 1) if type(options) is int else options)]
        found[name] = draw.choice([one for one in choices if one not in kept])
    return found | {names.start_of(name): names.start_of(new) for name, new in found.items()}


def renamed(case: Method, new: Mapping[str, str], name: str) -> Method:
    """Return the same method with other names for its factors."""

    def text(formula: str) -> str:
        return WORDS.sub(lambda match: new.get(match[0], match[0]), formula)

    return dataclasses.replace(
        case,
        name=name,
        formula=parse(text(str(case.formula))),
        starts={new.get(factor, factor): start for factor, start in case.starts.items()},
        includes={
            other: {new[factor]: new.get(value, value) for factor, value in values.items()}
            for other, values in case.includes.items()
        },
        convolution=None if case.convolution is None else text(case.convolution),
    )


NAMED = tuple(case for case in methods.every() if not case.formula.wraps_norm)


@pytest.mark.parametrize("case", METHODS, ids=method_id)
def test_roles_do_not_depend_on_names(case: Method) -> None:
    for axes in (0, 1, 2) if case.convolution else (0,):
        own = case.on_axes(axes) if axes else case
        for seed in range(3):
            new = renaming(own, seed)
            other = renamed(own, new, "other")
            assert other.formula.trainable == tuple(new.get(name, name) for name in own.formula.trainable)
            assert roles(other) == [tuple(new.get(name, name) for name in role) for role in roles(own)]
            assert other.schedule == own.schedule and other.formula.counted == own.formula.counted
            assert list(other.starts_for().values()) == list(own.starts_for().values())


def roles(case: Method) -> list[tuple[str, ...]]:
    formula = case.formula
    found = [
        (*term.down.names, "|", *term.up.names, *((term.diagonal,) if term.diagonal else ()))
        for term in formula.low_rank
    ]
    return [*found, *formula.sparse, formula.windows]


@pytest.mark.parametrize("case", NAMED, ids=method_id)
@pytest.mark.usefixtures("registry")
def test_training_under_other_names_is_the_same_bit_for_bit(case: Method, tmp_path: Path) -> None:
    """With its pattern, its schedule, LoRA+ and clipping: everything that knows a factor by its role is at work."""
    new = renaming(case, seed=len(case.name))
    methods.register(renamed(case, new, "other"))
    ours, theirs = (trained(name, tmp_path / name) for name in (case.name, "other"))
    assert ours["losses"] == theirs["losses"] and len(set(ours["losses"])) > 1
    assert ours["faster"] == theirs["faster"] and ours["report"] == theirs["report"]
    assert [(new.get(name, name), count) for name, count in ours["counts"]] == theirs["counts"]
    assert list(theirs["orthogonality"].items()) == list(ours["orthogonality"].items())
    for (name, factor), (other, equal) in zip(ours["factors"], theirs["factors"], strict=True):
        module, _, own = name.rpartition(".")
        assert other == f"{module}.{new[own]}" and torch.equal(factor, equal)
    assert ours["lora"].keys() == theirs["lora"].keys()
    assert all(torch.equal(tensor, theirs["lora"][key]) for key, tensor in ours["lora"].items())
    assert ours["lora"] or case.name not in ("lora", "trilora", "adalora", "flora", "moslora", "flexlora")


def trained(name: str, folder: Path) -> dict[str, Any]:
    """Train a method by name and return all that its factors' roles decide."""
    known = methods.get(name)
    options: dict[str, Any] = (
        {"pattern": "orthogonal+diagonal", "pattern_weight": 0.1} if patterns.has_pair(known.formula) else {}
    )
    if known.schedule:
        options["schedule"] = {"directions": 2, "launch": 4} if "U_k" in known.formula.shapes else {"interval": 2}
    torch.manual_seed(0)
    config = SubspaceConfig(method=name, r=4, target_modules=["first", "second"], **options)
    base = Net()
    if known.needs_calibration:
        found = {"first": [9, 10, 12], "second": [0 if known.chooses_form else 9, 12, 8]}
        drawn = {module: torch.randperm(n * m)[:p] for module, (p, n, m) in found.items()}
        config = config.with_choice(entries=found, positions=drawn) if known.formula.masked else config.with_choice()
    model: Any = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(1)

    def scores() -> dict[str, Tensor]:
        return {site.name: torch.rand(site.weight.shape, generator=generator) for site in sites(model)}

    factor_schedule = schedule(model, STEPS, scores)
    second = list(second_factors(model))
    groups = parameter_groups(model, 1e-2, b_ratio=16.0 if second else 1.0)
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for step in range(1, STEPS + 1):
        x, y = torch.randn(6, 10, generator=generator), torch.randn(6, 8, generator=generator)
        loss = model.train()(x, labels=y)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        factor_schedule.step(step, optimizer)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    factors = [
        (key, parameter.detach().clone()) for key, parameter in model.named_parameters() if ".subspace_params." in key
    ]
    return {
        "losses": losses,
        "faster": [tuple(parameter.shape) for group in groups[1:] for parameter in group["params"]],
        "report": factor_schedule.report(),
        "counts": counted(model),
        "orthogonality": orthogonality(model),
        "factors": factors,
        "lora": exported(model, folder),
    }


def counted(model: nn.Module) -> list[tuple[str, int]]:
    layers = [layer for layer in model.modules() if isinstance(layer, SubspaceLayer)]
    return [(name, factor.numel()) for layer in layers for name, factor in layer.subspace_params["default"].items()]


def exported(model: Any, folder: Path) -> dict[str, Tensor]:
    """Return the adapter's tensors as peft's LoRA; none if that needs the base model or is not possible."""
    model.save_pretrained(folder)
    try:
        adapter = convert_adapter(read_adapter(folder), PEFT_LORA).adapter
    except SubspaceError:
        return {}
    write_lora(folder / "lora", adapter)
    return load_file(folder / "lora" / "adapter_model.safetensors")


# Formulas of one's own

TERMS = {
    "W + s * P @ Q": [("P", "Q")],
    "W + s * P @ diag(l) @ Q": [("P", "Q")],
    "W + s * P @ Q.T": [("P", "Q.T")],
    "D1 @ W @ D2 + s * Q @ P": [("Q", "P")],
    "W + s * P @ Q + s * B @ A": [("P", "Q"), ("B", "A")],
    "W + s * (W * (P @ Q))": [("P", "Q")],
    "(I + s * P @ Q) @ W": [("P", "Q")],
    "affine(W, b) @ (I + affine(P, p) @ gelu @ affine(Q, q))": [("P", "Q")],
}
"""By formula the factors that lead down to the rank and those that lead up."""
WITHOUT = ("D1 @ W @ D2", "W + kron(A, B)", "(U_r + A) @ S_r @ (V_r + B).T + rest", "W + A", "affine(W, b + d)")


def attached(text: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = SubspaceConfig(formula=text, r=3, target_modules=["first", "second"], init_weights=False, **options)
    return get_peft_model(Net(), config)


@pytest.mark.parametrize("text", TERMS)
@pytest.mark.parametrize("pattern", patterns.PENALTIES)
def test_penalties_are_on_what_leads_down_and_up(text: str, pattern: str) -> None:
    model, wanted = attached(text, pattern=pattern, pattern_weight=0.5).train(), torch.zeros(())
    layers = [layer for layer in model.modules() if isinstance(layer, SubspaceLayer)]
    for layer in layers:
        for down, up in TERMS[text]:
            last = layer.factor(up.removesuffix(".T"))
            wanted = wanted + patterns.penalty(layer.factor(down), last.T if up.endswith(".T") else last, [pattern])
    torch.testing.assert_close(penalty(model), 0.5 * wanted / len(layers))
    torch.testing.assert_close(penalty(model, pattern=pattern, weight=1.0), wanted / len(layers))
    assert len(orthogonality(model)) == len(layers) * len(TERMS[text])


@pytest.mark.parametrize("text", TERMS)
def test_lora_plus_trains_what_leads_up_faster(text: str) -> None:
    model = attached(text)
    [others, faster] = parameter_groups(model, 0.5, b_ratio=4.0)
    found = {name for name, parameter in model.named_parameters() if any(parameter is one for one in faster["params"])}
    assert {name.rpartition(".")[2] for name in found} == {up.removesuffix(".T") for _, up in TERMS[text]}
    assert (others["lr"], faster["lr"]) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("text", "bent"),
    [
        ("W + s * P @ Q", "W + s * P @ relu @ Q"),
        ("W + s * P @ diag(l) @ Q", "W + s * P @ relu @ diag(l) @ Q"),
        ("W + s * P @ Q.T", "W + s * P @ relu @ Q.T"),
        ("W + s * P @ Q + s * B @ A", "W + s * P @ relu @ Q + s * B @ relu @ A"),
        ("W + s * P @ tanh @ Q + s * B @ A", None),
    ],
)
def test_the_nonlinearity_stands_behind_what_leads_down(text: str, bent: str | None) -> None:
    if bent is None:
        with pytest.raises(SubspaceError, match="already has a nonlinearity"):
            patterns.constrained(methods.from_formula(text), ["nonlinear"])
    else:
        assert str(SubspaceConfig(formula=text, pattern="nonlinear").resolved.formula) == bent


@pytest.mark.parametrize("text", WITHOUT)
def test_a_formula_without_the_role_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SubspaceError, match="constrains A and B of a low-rank term") as caught:
        SubspaceConfig(formula=text, pattern="orthogonal")
    assert "\n" not in str(caught.value) and text in str(caught.value)
    known = methods.from_formula(text)
    for name in ("adalora", "flexlora", "lora_dash", "dynamic_mask"):
        with pytest.raises(SubspaceError, match=f"the schedule {name} needs .*, and .* has none") as caught:
            dataclasses.replace(known, schedule=name)
        assert "\n" not in str(caught.value)
    if not known.formula.low_rank:
        with pytest.raises(SubspaceError, match="the model trains no factor B"):
            parameter_groups(attached(text), 1e-3, b_ratio=2.0)


def test_the_names_of_schedules_and_selections_are_known() -> None:
    for field in ("schedule", "selection"):
        with pytest.raises(SubspaceError, match=f"unknown {field}"):
            dataclasses.replace(methods.get("lora"), **{field: "adalara"})


@pytest.mark.parametrize("text", ["W + s * P @ D4 @ Q", "W + s * P @ diag(l) @ Q", "W + s * P @ diag(l) @ Q.T"])
@pytest.mark.parametrize("name", ["adalora", "flexlora"])
@pytest.mark.usefixtures("registry")
def test_schedules_of_the_rank_prune_any_diagonal(text: str, name: str) -> None:
    """Also one that starts at 1, whose parameter is the offset from there."""
    methods.register(dataclasses.replace(methods.from_formula(text), name="own", schedule=name))
    torch.manual_seed(0)
    options = {"target_rank": 2, "interval": 1}
    config = SubspaceConfig(method="own", r=4, schedule=options, target_modules=["first", "second"])
    model: Any = get_peft_model(Net(), config)
    factor_schedule, optimizer = schedule(model, STEPS), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        model.train()(torch.randn(6, 10), labels=torch.randn(6, 8))["loss"].backward()
        optimizer.step()
        factor_schedule.step(step, optimizer)
    zeros = 0
    for layer in (layer for layer in model.modules() if isinstance(layer, SubspaceLayer)):
        diagonal = layer.factor("D4" if "D4" in text else "l")
        zeros += int((diagonal == 0).sum())
    assert zeros == 4 and sum(factor_schedule.report()["ranks"].values()) == 4


@pytest.mark.usefixtures("registry")
def test_the_launch_counts_all_that_stands_in_the_low_rank_terms() -> None:
    text = "W + s * P @ G @ Q + U_k @ diag(d) @ V_k.T"
    model = attached(text, schedule={"directions": 3, "launch": 1})
    factor_schedule = schedule(model, STEPS)
    factor_schedule.step(1)
    for site in sites(model):
        P, G, Q = (site.value(name).double() for name in "PGQ")
        U, S, V = torch.linalg.svd(site.weight.double(), full_matrices=False)
        rates = (U.T @ P @ G @ Q @ V.T).diagonal().abs() / (S + 1e-6)
        chosen = factor_schedule.report()["directions"][site.name]
        assert set(chosen) == set(rates.topk(3).indices.tolist())


def test_the_entries_of_a_mask_of_any_name_are_read_off_a_file() -> None:
    config = SubspaceConfig(formula="W + M7 * Q", budget=11, target_modules=["first", "second"])
    entries = {"first": [5, 10, 12], "second": [6, 12, 8]}
    positions = {"first": torch.arange(5), "second": torch.arange(6) + 3}
    state = get_peft_model(Net(), config.with_choice(entries=entries, positions=positions)).state_dict()
    state = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items() if "subspace" in name}
    bare = config.with_choice()
    inject_adapter_in_model(bare, Net(), state_dict=state)
    assert bare.entries == entries


def test_forms_under_other_names_convert_without_a_loss() -> None:
    lora, trilora = methods.get("lora"), methods.get("trilora")
    sizes, s = Sizes(7, 6, 3), 2.0
    env = {"s": s, "P": torch.randn(7, 3).double(), "Q": torch.randn(3, 6).double(), "l": torch.randn(3).double()}
    found = convert(methods.from_formula("W + s * P @ Q"), lora, sizes, env)
    assert (found.how, found.scale) == ("renamed", s)
    assert torch.equal(found.parameters["A"], env["P"]) and torch.equal(found.parameters["B"], env["Q"])
    found = convert(methods.from_formula("W + s * P @ Q"), trilora, sizes, env)
    assert found.how == "renamed" and torch.equal(found.parameters["D"], torch.ones(3).double())
    found = convert(methods.from_formula("W + s * P @ diag(l) @ Q"), trilora, sizes, env)
    assert found.how == "renamed" and torch.equal(found.parameters["D"], env["l"])
    found = convert(methods.from_formula("W + s * P @ diag(l) @ Q"), lora, sizes, env)
    assert found.how == "factored" and found.error < 1e-12


@pytest.mark.usefixtures("registry")
def test_no_method_takes_the_name_of_one_of_pefts() -> None:
    with pytest.raises(SubspaceError, match="already exists as a class of peft's"):

        @method(name="prefix_tuning")
        def own(W, P, Q, s):  # type: ignore[no-untyped-def]
            return W + s * P @ Q


def test_methods_of_both_kinds_are_listed_alike() -> None:
    assert len({known.name for known in methods.listed()}) == len([*methods.every(), *methods.hosted()])
    for known in methods.listed():
        assert methods.named(known.name) is known and known.facts()["formula"] == str(known.formula)
        if known.name in methods.HOSTED:
            with pytest.raises(SubspaceError, match="is not a formula over one matrix"):
                methods.get(known.name)
            assert not known.merges
        else:
            assert methods.get(known.name) is known
