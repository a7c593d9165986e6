"""Law 7 for the methods that peft starts or stores otherwise: the same factors give the same output and gradient."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from subspace_tuning import SubspaceConfig, SubspaceLayer, methods
from subspace_tuning.tuner.sizing import peft_config

RANK = 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Linear(12, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.target(x)  # type: ignore[no-any-return]


def pair(ours: SubspaceConfig, theirs: peft.PeftConfig) -> tuple[Any, Any]:
    torch.manual_seed(0)
    base = Net()
    return get_peft_model(copy.deepcopy(base), ours), get_peft_model(copy.deepcopy(base), theirs)


def layer_of(model: Any) -> Any:
    return model.base_model.model.target


def equal_factors(factors: dict[str, tuple[nn.Parameter, nn.Parameter, bool]]) -> None:
    """Give each of our parameters the value of peft's."""
    with torch.no_grad():
        for mine, other, transposed in factors.values():
            mine.copy_(other.T if transposed else other.view_as(mine))


def agree(ours: Any, theirs: Any, factors: dict[str, tuple[nn.Parameter, nn.Parameter, bool]]) -> None:
    """Compare outputs, gradients of the input, and gradients of (our parameter, peft's, whether it is transposed)."""
    dtype = next(ours.parameters()).dtype
    x = torch.randn(5, 12, dtype=dtype)
    outputs, inputs = [], []
    for model in (ours.train(), theirs.train()):
        own = x.clone().requires_grad_()
        y = model(own)
        (y * torch.arange(9.0)).square().sum().backward()
        outputs.append(y)
        inputs.append(own.grad)
    rough = {"rtol": 1e-3, "atol": 1e-3} if dtype is torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(outputs[0], outputs[1], **rough)
    torch.testing.assert_close(inputs[0], inputs[1], **rough)
    for name, (mine, other, transposed) in factors.items():
        assert mine.grad is not None and other.grad is not None
        wanted = other.grad.T if transposed else other.grad.view_as(mine.grad)
        torch.testing.assert_close(mine.grad, wanted, **rough, msg=name)


def test_pissa_is_the_one_of_peft() -> None:
    targets = {"target_modules": ["target"], "r": RANK}
    ours, theirs = pair(
        SubspaceConfig(method="pissa", alpha=6.0, **targets),
        peft.LoraConfig(init_lora_weights="pissa", lora_alpha=6, **targets),
    )
    mine, other = layer_of(ours), layer_of(theirs)
    frozen = ours(torch.eye(12))
    torch.testing.assert_close(frozen, theirs(torch.eye(12)), rtol=1e-4, atol=1e-5)  # both are W at the start
    product = mine.factor("A") @ mine.factor("B")
    torch.testing.assert_close(product, (other.lora_B["default"].weight @ other.lora_A["default"].weight).T)
    with torch.no_grad():
        for parameter in mine.subspace_params["default"].values():
            parameter.add_(0.1 * torch.randn_like(parameter))
        other.lora_A["default"].weight.copy_(mine.factor("A").T)
        other.lora_B["default"].weight.copy_(mine.factor("B").T)
    own = mine.subspace_params["default"]
    agree(
        ours,
        theirs,
        {"A": (own["A"], other.lora_A["default"].weight, True), "B": (own["B"], other.lora_B["default"].weight, True)},
    )


def test_adalora_is_the_one_of_peft() -> None:
    theirs_config = peft.AdaLoraConfig(init_r=RANK, target_r=2, total_step=10, lora_alpha=6, target_modules=["target"])
    ours, theirs = pair(
        SubspaceConfig(method="adalora", r=RANK, alpha=6.0, init_weights=False, target_modules=["target"]),
        theirs_config,
    )
    own, other = layer_of(ours).subspace_params["default"], layer_of(theirs)
    with torch.no_grad():
        other.lora_A["default"].copy_(own["A"].T)
        other.lora_B["default"].copy_(own["B"].T)
        other.lora_E["default"].copy_(own["D"][:, None])
    found = {
        "A": (own["A"], other.lora_A["default"], True),
        "B": (own["B"], other.lora_B["default"], True),
        "D": (own["D"], other.lora_E["default"], False),
    }
    agree(ours, theirs, found)


@pytest.mark.parametrize("method", ["fishmask", "pafi"])
def test_masks_are_shira_of_peft(method: str) -> None:
    torch.manual_seed(0)
    base = Net()
    theirs = get_peft_model(
        copy.deepcopy(base), peft.ShiraConfig(r=RANK, target_modules=["target"], init_weights=False, random_seed=1)
    )
    other = layer_of(theirs)
    rows, columns = other.shira_indices["default"].long()  # of the weight, out x in
    count = len(rows)
    config = SubspaceConfig(method=method, budget=count, target_modules=["target"])
    config = config.with_choice(entries={"target": [count, 12, 9]}, positions={"target": columns * 9 + rows})
    ours = get_peft_model(copy.deepcopy(base), config)
    own = layer_of(ours).subspace_params["default"]
    own["Delta"].data.copy_(other.shira_weight["default"])
    agree(ours, theirs, {"Delta": (own["Delta"], other.shira_weight["default"], False)})


def test_liera_is_hira_of_peft() -> None:
    ours, theirs = pair(
        SubspaceConfig(method="liera", r=RANK, alpha=float(RANK), init_weights=False, target_modules=["target"]),
        peft.HiraConfig(r=RANK, target_modules=["target"]),
    )
    own, other = layer_of(ours).subspace_params["default"], layer_of(theirs)
    with torch.no_grad():
        other.hira_A["default"].copy_(own["A"].T)
        other.hira_B["default"].copy_(own["B"].T)
    found = {
        "A": (own["A"], other.hira_A["default"], True),
        "B": (own["B"], other.hira_B["default"], True),
    }
    agree(ours, theirs, found)


def test_lokr_is_the_one_of_peft() -> None:
    """peft's W is out x in, so its factors are our transposes in turn. At r >= max(n2, m2) / 2 its second is dense."""
    targets = {"target_modules": ["target"], "r": 1}
    ours, theirs = pair(
        SubspaceConfig(method="lokr", alpha=2.0, init_weights=False, **targets),
        peft.LoKrConfig(alpha=2, init_weights=False, **targets),
    )
    own, other = layer_of(ours).subspace_params["default"], layer_of(theirs)
    found = {
        "C": (own["C"], other.lokr_w1["default"], True),
        "A": (own["A"], other.lokr_w2_b["default"], True),
        "B": (own["B"], other.lokr_w2_a["default"], True),
    }
    ours.double(), theirs.double()
    equal_factors(found)
    agree(ours, theirs, found)


@pytest.mark.parametrize("layer", [nn.Linear(12, 9), nn.Conv2d(4, 6, 3), nn.Conv1d(12, 6, 3, groups=2)], ids=str)
def test_lokr_splits_as_peft_does(layer: nn.Module) -> None:
    """Of a convolution the channels split, and the second factor has the window; peft's starts, at zero, are others."""
    torch.manual_seed(0)
    theirs: Any = get_peft_model(
        nn.Sequential(copy.deepcopy(layer)), peft.LoKrConfig(r=1, alpha=2, init_weights=False, target_modules=["0"])
    )
    ours: Any = get_peft_model(
        nn.Sequential(copy.deepcopy(layer)), SubspaceConfig(method="lokr", r=1, alpha=2.0, target_modules=["0"])
    )
    own, other = ours.base_model.model[0].subspace_params["default"], theirs.base_model.model[0]
    with torch.no_grad():
        for name, factor in (("C", other.lokr_w1), ("A", other.lokr_w2_b), ("B", other.lokr_w2_a)):
            own[name].copy_(factor["default"].T)
    torch.testing.assert_close(
        ours.base_model.model[0].get_delta_weight("default"), other.get_delta_weight("default"), rtol=1e-4, atol=1e-5
    )


def test_hra_is_the_one_of_peft() -> None:
    """In peft's W, out x in, stands W H_1 ... H_r, and in ours the transpose: the columns stand in reverse."""
    targets = {"target_modules": ["target"], "r": 4}
    ours, theirs = pair(
        SubspaceConfig(method="hra", init_weights=False, **targets), peft.HRAConfig(init_weights=False, **targets)
    )
    ours.double(), theirs.double()
    own, other = layer_of(ours).subspace_params["default"]["A"], layer_of(theirs).hra_u["default"]
    with torch.no_grad():
        own.copy_(other.flip(1))
    agree(ours, theirs, {})
    torch.testing.assert_close(own.grad, other.grad.flip(1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["prefix_tuning", "prompt_tuning", "p_tuning"])
def test_hosted_methods_are_the_classes_of_peft(name: str) -> None:
    """The same seed and peft's own config give the same model bit for bit."""
    classes = {
        "prefix_tuning": "PrefixTuningConfig",
        "prompt_tuning": "PromptTuningConfig",
        "p_tuning": "PromptEncoderConfig",
    }
    config = BertConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ids = torch.randint(0, 40, (3, 6))
    outputs = []
    for make in (
        lambda: peft_config(methods.HOSTED[name], 5, {"task_type": "SEQ_CLS"}),
        lambda: getattr(peft, classes[name])(num_virtual_tokens=5, task_type="SEQ_CLS"),
    ):
        torch.manual_seed(0)
        model: Any = get_peft_model(BertForSequenceClassification(config), make())
        labels = torch.tensor([0, 1, 0])
        output = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
        output.loss.backward()
        gradients = [p.grad for p in model.prompt_encoder.parameters() if p.grad is not None]
        assert gradients and not any(isinstance(module, SubspaceLayer) for module in model.modules())
        outputs.append([output.logits, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
