"""Loading a model with its frozen weights in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from ..extras import needs
from .heads import ending, head_modules
from .meta import architecture_of


class Quantise(Enum):
    """The format of the frozen weights of the linear layers."""

    nf4 = "nf4"
    fp4 = "fp4"
    int8 = "int8"
    torchao_int8 = "torchao_int8"
    qlora = "qlora"


def quantised(
    format: Quantise, name: str, model_class: Any, settings: Mapping[str, Any], head: Sequence[str] | None, cpu: bool
) -> dict[str, Any]:
    """Return the further arguments with which ``from_pretrained`` quantises everything except the head.

    Args:
        format: the format of the weights.
        name: a hub name, a local folder or ``minilm``.
        model_class: a class of transformers.
        settings: the other arguments of ``from_pretrained``.
        head: the modules trained whole, by the ends of their names; None: the model's own head.
        cpu: load the model on the CPU even if there is an accelerator.

    Raises:
        SubspaceError: the library is not installed, or the model's configuration cannot be read.
    """
    architecture = architecture_of(name)
    for key, value in settings.items():
        setattr(architecture, key, value)
    with torch.device("meta"):
        model = model_class.from_config(architecture)
    kept = ending(model, head_modules(model) if head is None else head)
    place = {"device_map": {"": "cpu"}} if cpu else {}
    return {"quantization_config": _config(format, kept), **place}


def _config(format: Quantise, head: list[str]) -> Any:
    what = f"quantise = {format.value}"
    if format is Quantise.torchao_int8:
        needs(what, "quantised", "torchao")
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=head)
    needs(what, "quantised", "bitsandbytes")
    if format is Quantise.int8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=head)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="fp4" if format is Quantise.fp4 else "nf4",
        bnb_4bit_use_double_quant=format is Quantise.qlora,
        bnb_4bit_compute_dtype=torch.float32,  # autocast lowers the precision of products if the run asks for it
        llm_int8_skip_modules=head,
    )
