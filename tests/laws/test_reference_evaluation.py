"""Random formulas in a model, beside what their text means: forward, gradients, merged weight, and after loading."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig
from subspace_tuning.errors import SubspaceError
from subspace_tuning.methods import environment

from ..grammar import Grammar
from .reference_evaluation import CancelledError, evaluate

N, M, RANK, ENTRIES = 4, 6, 2, 7
REFUSED = 0.2  # at most this share
UNSETTLED = 0.002  # likewise
SAVED_EVERY = 20


class RoundingDecides(Exception):  # noqa: N818 - not an error
    """What a formula means depends on the last digits of W."""


def base_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(N, M, dtype=torch.float64))
    return model.requires_grad_(False)


def attached(text: str) -> Any:
    """Return a model under a formula whose factors are random."""
    config = SubspaceConfig(formula=text, r=RANK, alpha=3.0, target_modules=["0"], init_weights=False)
    if config.resolved.needs_calibration:
        config = config.with_choice(entries={"0": [ENTRIES, N, M]}, positions={"0": torch.randperm(N * M)[:ENTRIES]})
    return get_peft_model(base_model(), config).eval()


def meaning(text: str, layer: Any, x: Tensor, leaves: dict[str, Tensor], noise: float = 0) -> Tensor:
    """Return the layer's output as the language defines it, with relative noise on W."""
    base = layer.get_base_layer()
    W, b = base.weight.T * (1 + noise * torch.randn(N, M, dtype=torch.float64)), base.bias
    constants = dict(layer.subspace_constants["default"].named_buffers(remove_duplicate=False))
    named = dict(environment(layer.method["default"], W, leaves, constants, layer.scaling["default"], b))
    named |= {"b": b}
    if {"U_r", "S_r", "V_r"} <= set(named):
        named["rest"] = W - named["U_r"] @ torch.diag(named["S_r"]) @ named["V_r"].T  # type: ignore[operator,union-attr]
    y = evaluate(text, named)(x)
    return y if re.search(r"\bb\b", text) else y + b  # the layer's own bias is outside phi unless the formula names it


def compare(text: str, folder: Path | None) -> None:
    model = attached(text)
    layer = model.base_model.model[0]
    leaves = dict(layer.subspace_params["default"].items())
    x = torch.randn(3, N, dtype=torch.float64, requires_grad=True)
    y, wanted = model(x), meaning(text, layer, x, leaves)
    if not torch.allclose(wanted, meaning(text, layer, x, leaves, noise=1e-15), rtol=1e-9, atol=1e-9):
        raise RoundingDecides  # such as reflect(rest @ V_r): the product is zero but for rounding
    torch.testing.assert_close(y, wanted, rtol=1e-8, atol=1e-8)
    upstream = torch.randn_like(y)
    given = [x, *leaves.values()]
    ours = torch.autograd.grad(y, given, upstream, materialize_grads=True)
    theirs = torch.autograd.grad(wanted, given, upstream, materialize_grads=True)
    for name, mine, right in zip(("x", *leaves), ours, theirs, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-7, atol=1e-8, msg=lambda told, name=name: f"{name}: {told}")
    with torch.no_grad():
        if folder is not None:
            model.save_pretrained(folder)
            loaded = PeftModel.from_pretrained(base_model(), folder).eval()
            assert torch.equal(loaded(x), model.eval()(x))  # both without anything kept from an earlier call
        if layer.method["default"].formula.is_linear:
            zero, one = torch.zeros(1, N, dtype=torch.float64), torch.eye(N, dtype=torch.float64)
            bias = meaning(text, layer, zero, leaves)
            matrix = meaning(text, layer, one, leaves) - bias
            merged: Any = model.merge_and_unload()[0]
            torch.testing.assert_close(merged.weight.T, matrix, rtol=1e-7, atol=1e-8)
            torch.testing.assert_close(merged.bias, bias[0], rtol=1e-7, atol=1e-8)


def compare_all(count: int, seed: int, folder: Path) -> None:
    grammar, refused, unsettled = Grammar(random.Random(seed)), 0, 0
    for index in range(count):
        text = grammar.formula()
        torch.manual_seed(index)
        try:
            compare(text, folder if index % SAVED_EVERY == 0 else None)
        except (SubspaceError, CancelledError):
            refused += 1
        except RoundingDecides:
            unsettled += 1
        except Exception as error:
            raise AssertionError(f"formula {index}: {text}") from error
    assert refused < REFUSED * count, refused
    assert unsettled <= UNSETTLED * count, unsettled


@pytest.mark.parametrize("seed", range(8))  # 2,000 formulas, in parts that run side by side
def test_a_formula_is_what_its_text_means(seed: int, tmp_path: Path) -> None:
    compare_all(250, seed, tmp_path)


@pytest.mark.slow
def test_many_formulas_are_what_their_texts_mean(tmp_path: Path) -> None:
    compare_all(20_000, 100, tmp_path)
