"""The rank above min(n, m): it trains everywhere, with one warning; singular triples end at min(n, m)."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from subspace_tuning import SubspaceConfig, SubspaceLayer
from subspace_tuning.adapters.files import read_adapter
from subspace_tuning.methods import Method
from subspace_tuning.theory.budget import parameters

from .modules import KINDS, Net, fits
from .registry import METHODS, method_id
from .test_layer_laws import config_of

RANK = 40
WITH_RANK = [case for case in METHODS if case.formula.has_rank and not case.formula.wraps_norm]
RANKED = [
    (case, kind)
    for case in WITH_RANK
    for kind in ("linear", "embedding", "conv2d")
    if fits(case, kind) and (kind == "linear" or case.takes_triples or case.name in ("lora", "flora"))
]


def ranked(case: Method, kind: str, **options: Any) -> SubspaceConfig:
    config = config_of(case, kind, **options)
    config.rank_pattern = {"target": RANK}
    return config


@pytest.mark.parametrize(("case", "kind"), RANKED, ids=[f"{kind}-{method_id(case)}" for case, kind in RANKED])
def test_a_rank_above_the_smaller_side_trains(case: Method, kind: str, tmp_path: Path) -> None:
    base, x = Net(kind), KINDS[kind][1]()
    config = ranked(case, kind)
    if case.selection == "sensitivity":
        config = config.with_choice(
            entries={}, positions={"target": torch.zeros(0, dtype=torch.int64)}
        )  # no mask, but a rank
    with pytest.warns(UserWarning, match=f"rank {RANK} is above") as caught:
        model: Any = get_peft_model(copy.deepcopy(base), config)
    assert len([one for one in caught if "is above" in str(one.message)]) == 1
    torch.testing.assert_close(model(x), base(x), atol=1e-4, rtol=1e-4)
    layer = model.base_model.model.target
    method, n, m = layer.method["default"], layer.in_features, layer.out_features
    r = min(n, m) if case.takes_triples else RANK
    assert layer.r["default"] == r
    sizes = layer.adapters["default"].sizes._replace(r=RANK)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == parameters(method, [sizes], RANK)
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(2):
        model.train()(x).square().mean().backward()
        optimizer.step()
    model.eval()
    assert not torch.equal(model(x), base(x))
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # known since it was trained
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    torch.testing.assert_close(loaded(x), model(x))
    if kind == "linear":
        found = read_adapter(tmp_path).layers["target"]
        assert (found.r, found.scale) == (r, layer.scaling["default"])


def test_the_warning_tells_how_many_matrices_are_narrow() -> None:
    model = nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 20), nn.Linear(20, 3))
    above = r"^rank 8 is above min\(n, m\) = 5 of 0 \(5 x 9\) and of 1 more: a higher rank adds nothing"
    with pytest.warns(UserWarning, match=above):
        get_peft_model(copy.deepcopy(model), SubspaceConfig(method="lora", target_modules=["0", "1", "2"]))
    with pytest.warns(UserWarning, match=r"min\(n, m\) = 3 of 2 \(20 x 3\): it has only that many singular triples"):
        get_peft_model(copy.deepcopy(model), SubspaceConfig(method="pissa", target_modules=["1", "2"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_peft_model(copy.deepcopy(model), SubspaceConfig(method="ssb", r=1000, target_modules=["0"]))  # has no rank


def test_directions_end_at_the_smaller_side() -> None:
    model = nn.Sequential(nn.Linear(5, 9))
    with pytest.warns(UserWarning, match="rank 8 is above"):
        adapted: Any = get_peft_model(model, SubspaceConfig(method="lora_dash", r=2, target_modules=["0"]))
    layer = adapted.base_model.model[0]
    assert isinstance(layer, SubspaceLayer)
    assert layer.subspace_params["default"]["d"].shape == (5,)
