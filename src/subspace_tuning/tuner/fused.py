"""Parts of fused projections: which columns of W (n x m) are the query's, the key's, the gate's, by a model's type.

A fused projection is some groups of equal size, each of which has the parts one after the other. GPT-2's is one group
of all queries, all keys, all values; GPT-NeoX's is a group for each head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..errors import SubspaceError, nearest
from .budget import matrix_shape
from .calling import own_forward_problem
from .config import SubspaceConfig
from .kinds import Conv1DKind, LinearKind, kind_of
from .part import Columns, Conv1DColumns, LinearColumns
from .weights import is_offloaded, is_partitioned


class Fused(NamedTuple):
    """How a projection is put together: so many groups, in each the parts with their widths."""

    groups: int
    widths: dict[str, int]

    def columns(self, part: str, m: int) -> Tensor:
        """Return the indices of a part's columns among m."""
        first = [*self.widths].index(part)
        start, width = sum([*self.widths.values()][:first]), self.widths[part]
        return torch.arange(m).view(self.groups, -1)[:, start : start + width].flatten()


def _attention(config: Any) -> tuple[int, int, int]:
    """Return the numbers of heads and of key and value heads, and the width of a head."""
    heads = config.num_attention_heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, _width(config)


def _width(config: Any) -> int:
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def _one_after_the_other(config: Any) -> Fused:
    heads, shared, width = _attention(config)
    return Fused(1, {"q": heads * width, "k": shared * width, "v": shared * width})


def _head_by_head(config: Any) -> Fused:
    width = _width(config)
    return Fused(config.num_attention_heads, {"q": width, "k": width, "v": width})


def _falcon(config: Any) -> Fused:
    heads, width = config.num_attention_heads, _width(config)
    if config.new_decoder_architecture:
        groups = config.num_kv_heads
        return Fused(groups, {"q": heads // groups * width, "k": width, "v": width})
    return Fused(1, {"q": heads * width, "k": width, "v": width}) if config.multi_query else _head_by_head(config)


def _gate_and_up(config: Any) -> Fused:
    return Fused(1, {"gate": config.intermediate_size, "up": config.intermediate_size})


_KNOWN: dict[str, dict[str, Callable[[Any], Fused]]] = {
    "bloom": {"query_key_value": _head_by_head},
    "falcon": {"query_key_value": _falcon},
    "glm": {"gate_up_proj": _gate_and_up},
    "glm4": {"gate_up_proj": _gate_and_up},
    "gpt2": {"attn.c_attn": _one_after_the_other},
    "gpt_neox": {"query_key_value": _head_by_head},
    "modernbert": {"Wqkv": _one_after_the_other},
    "mpt": {"Wqkv": _one_after_the_other},
    "phi3": {"qkv_proj": _one_after_the_other, "gate_up_proj": _gate_and_up},
}


def parts_of(model: nn.Module, config: SubspaceConfig, name: str, module: nn.Module) -> dict[str, Columns] | None:
    """Return the parts of a target that a config chooses, by name, None if it wants the target as a whole.

    Raises:
        SubspaceError: the module is no projection whose parts are known.
    """
    chosen = config.parts_of(name)
    if chosen is None:
        return None
    kind, m = kind_of(module), 0 if kind_of(module) is None else matrix_shape(module)[1]
    if type(kind) not in (LinearKind, Conv1DKind):
        raise SubspaceError(f"parts: {name} is a {type(module).__name__}; only unquantised linear layers have parts")
    if is_offloaded(module) or is_partitioned(module.weight):  # type: ignore[arg-type]
        raise SubspaceError(f"parts: the weight of {name} is not here as a whole; name the module without parts")
    fused = _fused(model, name)
    if fused.groups * sum(fused.widths.values()) != m:
        raise SubspaceError(f"parts: {name} has {m} outputs, which {_told(fused)} do not make up")
    for part in chosen:
        if part not in fused.widths:
            raise SubspaceError(f"parts: {name} has no part {part!r}; {nearest(part, fused.widths)}")
    columns = Conv1DColumns if isinstance(kind, Conv1DKind) else LinearColumns
    return {f"{name}.{part}": columns(module, fused.columns(part, m)) for part in fused.widths if part in chosen}


def _fused(model: nn.Module, name: str) -> Fused:
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    model_type = BaseTuner.get_model_config(model).get("model_type")
    known = _KNOWN.get(str(model_type), {})
    layout = next((layout for end, layout in known.items() if f".{name}".endswith(f".{end}")), None)
    if layout is None:
        where = f"of model type {model_type!r} " if model_type not in (None, "custom") else ""
        raise SubspaceError(
            f"parts: what {name} {where}is put together from is not known; known are "
            + "; ".join(f"{type_}: {', '.join(ends)}" for type_, ends in _KNOWN.items())
        )
    return layout(config)


def _told(fused: Fused) -> str:
    parts = " and ".join(f"{width} of {part}" for part, width in fused.widths.items())
    return f"{fused.groups} x ({parts})"


def check_part(name: str, part: Columns, config: SubspaceConfig) -> None:
    """Raise SubspaceError if a part of a projection cannot be adapted by a config's method."""
    method, owner = config.resolved, part.owner
    kind = kind_of(owner)
    assert kind is not None
    if method.chooser is not None:
        raise SubspaceError(
            f"method {method.name!r} chooses what it trains within a budget, which it can in whole modules alone: "
            f"leave {name} out of parts"
        )
    problem = own_forward_problem(owner, kind, method, config.dropout)
    if problem is not None:
        raise SubspaceError(f"{name}: {problem}; or leave it out of parts")
    if not kind.knows(owner) and not method.formula.is_linear:
        raise SubspaceError(
            f"{name}: this {type(owner).__name__} has a forward of its own, and {method.name!r} no dense phi(W) for it"
        )
