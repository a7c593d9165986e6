"""The weights of bitsandbytes in four bits, kept in the format in which they are stored."""

from __future__ import annotations

from torch import nn


def keep_unpacked(model: nn.Module) -> None:
    """Prevent the 4-bit layers of a model from packing their weights for inference, and unpack those that are packed.

    On a CPU with AVX512-BF16, bitsandbytes repacks a weight in the first forward pass in evaluation mode. From then on
    the layer multiplies in bfloat16 and passes no gradient on, not even in training mode; it fails if its sizes are not
    multiples of 32 and of the block size. An adapter must train after an evaluation, also through layers that it does
    not adapt.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # saving unpacks the weight
