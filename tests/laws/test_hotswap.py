"""An adapter exchanged in place is the one in the file, and nothing else has changed."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from subspace_tuning import SubspaceConfig, SubspaceError, hotswap, methods
from subspace_tuning.methods import Method

from .modules import KINDS, Net, fits
from .registry import LINEAR, METHODS, method_id
from .test_layer_laws import config_of

CASES = [(case, kind) for case in METHODS for kind in KINDS if fits(case, kind)]
every_case = pytest.mark.parametrize(("case", "kind"), CASES, ids=method_id)
on_linear = [case for case in METHODS if fits(case, "linear")]


def base_of(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    base, x = Net(kind).double(), KINDS[kind][1]()
    return base, x.double() if x.is_floating_point() else x


def model_of(case: Method, kind: str, seed: int, **fields: Any) -> Any:
    """Return a model whose factors, and mask if it has one, are drawn from a seed."""
    base, _ = base_of(kind)
    torch.manual_seed(seed)
    config = dataclasses.replace(config_of(case, kind), init_weights=False, **fields)
    return get_peft_model(base, config).eval()


def content(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@every_case
def test_it_is_the_adapter_of_the_file(case: Method, kind: str, tmp_path: Path) -> None:
    other = model_of(case, kind, seed=2, alpha=7.0)
    other.save_pretrained(tmp_path)
    model, (base, x) = model_of(case, kind, seed=1), base_of(kind)
    assert not torch.equal(model(x), other(x))
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    hotswap(model, tmp_path)
    fresh = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(model(x), fresh(x))
    assert_same(content(model), content(fresh))
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert after.keys() == tensors.keys() and all(after[name] is tensors[name] for name in tensors)
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert list(model.peft_config) == ["default"] and model.active_adapters == ["default"]
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(base_of(kind)[0], tmp_path / "again").eval()
    assert torch.equal(again(x), fresh(x))


@pytest.mark.parametrize("case", [case for case in LINEAR if fits(case, "linear")], ids=method_id)
def test_a_merged_one_is_merged_again(case: Method, tmp_path: Path) -> None:
    other, (_, x) = model_of(case, "linear", seed=2), base_of("linear")
    other.save_pretrained(tmp_path)
    model = model_of(case, "linear", seed=1)
    before = model.base_model.model.target.frozen_weight.clone()
    model.merge_adapter()
    hotswap(model, tmp_path)
    assert model.base_model.model.target.merged
    torch.testing.assert_close(model(x), other(x))
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model.target.frozen_weight, before)


# What the formula holds of W depends on the rank: other singular triples, other anchors, a longer sum.
SUM = "W + diag(d) @ U_r @ V_r.T"
HOLDING = [
    methods.from_formula(SUM, name=SUM),
    *(case for case in on_linear if case.name in ("pissa", "milora")),
]
HOLDING += [case for case in on_linear if case.name == "W + s * (A @ B - A0 @ B0)"]
RANKED = [case for case in on_linear if case.formula.has_rank]


@pytest.mark.parametrize("case", [HOLDING[0], *RANKED], ids=method_id)
def test_a_lower_rank_is_padded_or_refused(case: Method, tmp_path: Path) -> None:
    other, (base, x) = model_of(case, "linear", seed=2, r=2), base_of("linear")
    other.save_pretrained(tmp_path)
    model = model_of(case, "linear", seed=1, r=4)
    before, y = content(model), model(x)
    if case in HOLDING:
        with pytest.raises(
            SubspaceError, match=r"zeros in its factors would change|a factor or constant has the shape"
        ):
            hotswap(model, tmp_path)
        assert_same(content(model), before)
        assert torch.equal(model(x), y)
        return
    hotswap(model, tmp_path)
    torch.testing.assert_close(model(x), other(x))
    model.save_pretrained(tmp_path / "padded")
    torch.testing.assert_close(PeftModel.from_pretrained(base, tmp_path / "padded").eval()(x), other(x))


@pytest.mark.parametrize(
    "case", [case for case in on_linear if case.name in ("lora", "dora", "ssb", "pissa")], ids=method_id
)
def test_compiled_code_stays_valid(case: Method, tmp_path: Path) -> None:
    torch._dynamo.reset()
    other, (_, x) = model_of(case, "linear", seed=2), base_of("linear")
    other.save_pretrained(tmp_path)
    model, counter = model_of(case, "linear", seed=1), CompileCounter()
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        compiled(x)
        graphs = counter.frame_count
        hotswap(model, tmp_path)
        torch.testing.assert_close(compiled(x), other(x))
    assert counter.frame_count == graphs
    torch._dynamo.reset()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x))
        assert isinstance(y, Tensor)
        return y


def _config(**fields: Any) -> SubspaceConfig:
    return SubspaceConfig(**{"method": "lora", "r": 2, "target_modules": ["one"], "init_weights": False} | fields)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (_config(method="dora"), r"only an adapter of the same formula can take its place"),
        (LoraConfig(r=2, target_modules=["one"]), r"is LORA, .*only an adapter of the same formula"),
        (_config(target_modules=["one", "two"]), r"adapt different modules, such as two"),
        (_config(r=3), r"a factor or constant has the shape \(6, 3\), here \(6, 2\)"),
        (_config(r=1, rank_pattern={"one": 1}), r"only a single lower rank can be padded"),
    ],
    ids=["formula", "of peft", "modules", "higher rank", "patterns"],
)
def test_what_does_not_fit_is_refused(config: Any, told: str, tmp_path: Path) -> None:
    get_peft_model(Two(), config).save_pretrained(str(tmp_path))
    model: Any = get_peft_model(Two(), _config())
    before, training = content(model), model.training
    with pytest.raises(SubspaceError, match=told):
        hotswap(model, tmp_path)
    assert_same(content(model), before)
    assert list(model.peft_config) == ["default"] and model.training == training


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    model: Any = get_peft_model(Two(), _config())
    before = content(model)
    with pytest.raises(SubspaceError, match=r"there is no adapter 'defualt': did you mean default"):
        hotswap(model, tmp_path, "defualt")
    with pytest.raises(SubspaceError, match=r"the adapter in .*nothing cannot be read: .*adapter_config\.json"):
        hotswap(model, tmp_path / "nothing")
    assert_same(content(model), before)


def test_saved_modules_go_along(tmp_path: Path) -> None:
    torch.manual_seed(3)
    base, x = Two(), torch.randn(2, 6)
    model: Any = get_peft_model(copy.deepcopy(base), _config(modules_to_save=["two"]))
    other: Any = get_peft_model(copy.deepcopy(base), _config(modules_to_save=["two"]))
    for parameter in other.parameters():
        parameter.data += torch.randn_like(parameter) * parameter.requires_grad
    other.save_pretrained(str(tmp_path))
    assert not torch.equal(model(x), other(x))
    hotswap(model, tmp_path)
    assert torch.equal(model(x), other(x))
