"""What is exported as peft's LoRA is loaded by stock peft, in a process without this package, and gives the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from subspace_tuning import SubspaceConfig, SubspaceError
from subspace_tuning.adapters.convert import convert_adapter
from subspace_tuning.adapters.files import read_adapter, write_adapter
from subspace_tuning.adapters.lora import write_lora

KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 5),
    "transposed": lambda: Conv1D(5, 6),
    "embedding": lambda: nn.Embedding(7, 5),
    "padded": lambda: nn.Embedding(7, 5, padding_idx=2),
    "conv1d": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "conv2d": lambda: nn.Conv2d(4, 6, (3, 2), stride=2, bias=False),
    "conv3d": lambda: nn.Conv3d(4, 6, (1, 2, 3), padding="same"),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
    "groups": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv1d(4, 4, 3, groups=4),
}
INPUTS: dict[str, Tensor] = {
    "linear": torch.linspace(-1, 1, 18).view(3, 6),
    "transposed": torch.linspace(-1, 1, 18).view(3, 6),
    "embedding": torch.tensor([[0, 3, 6], [2, 2, 5]]),
    "padded": torch.tensor([[0, 3, 6], [2, 2, 5]]),
    "conv1d": torch.linspace(-1, 1, 40).view(1, 4, 10),
    "depthwise": torch.linspace(-1, 1, 40).view(1, 4, 10),
    "conv3d": torch.linspace(-1, 1, 4 * 4 * 5 * 6).view(1, 4, 4, 5, 6),
    **dict.fromkeys(("conv2d", "pointwise", "groups"), torch.linspace(-1, 1, 4 * 7 * 8).view(1, 4, 7, 8)),
}


class Net(nn.Module):
    """One module of each kind, side by side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, build in KINDS.items():
            self.add_module(name, build())

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.get_submodule(name)(tensor) for name, tensor in x.items()}


STOCK = """
import sys
import torch
from peft import PeftModel
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[1])
sys.modules["subspace_tuning"] = None  # importing it would fail
source = open(sys.argv[2]).read().split("STOCK =")[0]
source = "\\n".join(line for line in source.splitlines() if "subspace_tuning" not in line)
space = {"__name__": "stock"}
exec(compile(source, "stock", "exec"), space)
for folder in sys.argv[3:]:
    model = PeftModel.from_pretrained(space["Net"](), folder).eval()
    with torch.no_grad():
        save_file({k: v.contiguous() for k, v in model(space["INPUTS"]).items()}, folder + "/outputs.safetensors")
"""


def outputs(model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        found: dict[str, Tensor] = model.eval()(INPUTS)
    return found


def adapter(folder: Path, method: str = "lora", **fields: Any) -> dict[str, Tensor]:
    """Save an adapter on every kind of module, and return what the model gives."""
    fields = {"r": 3, "alpha": 5.0, "init_weights": False, "target_modules": list(KINDS)} | fields
    config = SubspaceConfig(method=method, **fields)
    torch.manual_seed(1)
    model: Any = get_peft_model(Net(), config)  # type: ignore[arg-type]
    model.save_pretrained(str(folder))
    return outputs(model)


def exported(folder: Path, output: Path, **options: Any) -> None:
    result = convert_adapter(read_adapter(folder), "peft-lora")
    assert result.error < 1e-6
    write_lora(output, result.adapter, **options)


def test_stock_peft_loads_every_kind_and_gives_the_same(tmp_path: Path) -> None:
    ranks = {"rank_pattern": {"linear": 1, "embedding": 2, "conv2d": 4, "groups": 2}, "alpha_pattern": {"linear": 7.0}}
    cases: dict[str, dict[str, Any]] = {
        "lora": {},
        "flora": {
            "target_modules": [
                name for name in KINDS if "conv" not in name and name not in ("pointwise", "groups", "depthwise")
            ]
        },
        "uneven": ranks,
        "even": ranks,
        "stabilised": {"rank_stabilised": True},
    }
    expected = {}
    for name, fields in cases.items():
        method = name if name == "flora" else "lora"
        expected[name] = adapter(tmp_path / name, method, **fields)
        exported(tmp_path / name, tmp_path / f"{name}-peft", uneven=name == "uneven")
    folders = [str(tmp_path / f"{name}-peft") for name in cases]
    command = [sys.executable, "-W", "error::UserWarning:peft", "-c", STOCK, str(tmp_path), __file__, *folders]
    subprocess.run(command, check=True, capture_output=True)
    plain = outputs(Net())
    for name in cases:
        found = load_file(tmp_path / f"{name}-peft/outputs.safetensors")
        for kind, tensor in expected[name].items():
            torch.testing.assert_close(found[kind], tensor, rtol=1e-4, atol=1e-5, msg=f"{name} {kind}")
            touched = name != "flora" or kind in cases["flora"]["target_modules"]
            assert not touched or not torch.allclose(tensor, plain[kind], atol=1e-2), (name, kind)


def test_ranks_are_padded_to_one_that_everyone_reads_alike(tmp_path: Path) -> None:
    even = [name for name in KINDS if name not in ("groups", "depthwise")]
    adapter(
        tmp_path / "own", target_modules=even, rank_pattern={"linear": 1, "conv2d": 4}, alpha_pattern={"linear": 9.0}
    )
    exported(tmp_path / "own", tmp_path / "even")
    exported(tmp_path / "own", tmp_path / "uneven", uneven=True)
    config = json.loads((tmp_path / "even/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4 and not config["rank_pattern"] and not config["alpha_pattern"]
    tensors = load_file(tmp_path / "even/adapter_model.safetensors")
    ranks = {t.shape[0] if "_A" in key else t.shape[1] for key, t in tensors.items()}
    assert ranks == {4}  # so alpha / r is 1, whichever rank it is divided by
    config = json.loads((tmp_path / "uneven/adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] and config["rank_pattern"]["linear"] == 1


def test_peft_reads_and_writes_back(tmp_path: Path) -> None:
    """Adapters that peft wrote, for every kind that it holds, are this package's LoRA; and back."""
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=[name for name in KINDS if name not in ("groups", "depthwise")]
    )
    theirs: Any = get_peft_model(Net(), config)  # type: ignore[arg-type]
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_()
            if "padded.lora_embedding_A" in name:  # it starts at zero, and a padding row has no gradient
                parameter[:, 2] = 0
    theirs.save_pretrained(str(tmp_path / "theirs"))
    expected = outputs(theirs)
    write_adapter(tmp_path / "own", read_adapter(tmp_path / "theirs"))
    exported(tmp_path / "own", tmp_path / "back")
    for folder in ("own", "back"):
        found = outputs(PeftModel.from_pretrained(Net(), str(tmp_path / folder)))  # type: ignore[arg-type]
        for kind, tensor in expected.items():
            torch.testing.assert_close(found[kind], tensor, rtol=1e-4, atol=1e-5)


def test_groups_are_read_where_they_are_a_change_of_the_weight(tmp_path: Path) -> None:
    expected = adapter(tmp_path / "own", target_modules=["groups", "depthwise"])
    exported(tmp_path / "own", tmp_path / "peft")
    write_adapter(tmp_path / "again", read_adapter(tmp_path / "peft"))
    found = outputs(PeftModel.from_pretrained(Net(), str(tmp_path / "again")))  # type: ignore[arg-type]
    for kind, tensor in expected.items():
        torch.testing.assert_close(found[kind], tensor, rtol=1e-4, atol=1e-5)
    config = LoraConfig(r=4, target_modules=["groups"], init_lora_weights=False)
    get_peft_model(Net(), config).save_pretrained(str(tmp_path / "theirs"))  # type: ignore[arg-type]
    with pytest.raises(SubspaceError, match="groups: its groups use each other's inputs"):
        read_adapter(tmp_path / "theirs")


@pytest.mark.parametrize("options", [{"dilation": 2}, {"padding_mode": "circular", "padding": 1}])
def test_what_peft_would_ignore_is_refused_by_name(tmp_path: Path, options: dict[str, Any]) -> None:
    net = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 2, **options)})
    get_peft_model(net, SubspaceConfig(method="lora", r=2, target_modules=["conv"])).save_pretrained(
        str(tmp_path / "own")
    )
    with pytest.raises(SubspaceError, match=f"conv: peft's LoRA ignores {next(iter(options))}="):
        write_lora(tmp_path / "out", read_adapter(tmp_path / "own"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_kind_is_not_guessed(tmp_path: Path) -> None:
    adapter(tmp_path / "own", target_modules=["embedding"])
    path = tmp_path / "own/adapter_config.json"
    config = json.loads(path.read_text())
    assert config["layouts"] == {"embedding": ["embedding"]}
    config["layouts"] = None
    path.write_text(json.dumps(config))
    with pytest.raises(SubspaceError, match=r"embedding: the adapter does not record whether this is .*: give --base"):
        exported(tmp_path / "own", tmp_path / "out")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_starts_that_leave_another_base_weight_are_refused(tmp_path: Path, start: str) -> None:
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["linear"], init_lora_weights=start))  # type: ignore[arg-type]
    model.save_pretrained(str(tmp_path / "theirs"))
    path = tmp_path / "theirs/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": start}))
    with pytest.raises(SubspaceError, match=f"init_lora_weights='{start}', which changes the base weight"):
        read_adapter(tmp_path / "theirs")


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "own", target_modules=["linear"])
    exported(tmp_path / "own", tmp_path / "out")
    path = tmp_path / "out/adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if "lora_A" in key}, path)
    with pytest.raises(SubspaceError, match=r"linear: of its two factors, only lora_A.weight is there"):
        read_adapter(tmp_path / "out")
