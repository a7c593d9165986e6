"""Roles inferred from names and shapes, for a model whose type is not in the table of architectures.

Only matrices within repeated blocks are considered, so heads, embeddings and projections between towers have no role.
Within a block, a module's name decides its role in the attention, and its name and shape its role in the feed-forward
block. Undecided modules (a router, a relative position) have no role.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from torch import nn

from ..methods.roles import (
    ATTENTION_OUTPUT,
    CROSS_ATTENTION,
    FFN_GATE,
    FFN_IN,
    FFN_OUT,
    KEY,
    QUERY,
    VALUE,
)
from .architectures import PLACES
from .kinds import Conv1DKind, LinearKind, kind_of

Shapes = dict[str, tuple[int, int]]  # n and m by the module's name within its block

_QUERY = {"q", "wq", "query", "queries", "receptance"}
_KEY = {"k", "wk", "key", "keys"}
_VALUE = {"v", "wv", "value", "values"}
_FUSED = {"qkv": (QUERY, KEY, VALUE), "wqkv": (QUERY, KEY, VALUE), "kv": (KEY, VALUE), "qk": (QUERY, KEY)}
_OUTPUT = {"o", "wo", "out", "output", "proj", "projection", "dense", "linear", "lin", "fc"}
_IN = {"up", "in", "fc1", "lin1", "linear1", "fc", "wi", "w1", "w3", "key", "1"}
_OUT = {"down", "out", "fc2", "lin2", "linear2", "wo", "w2", "value", "2"}
_GATE = {"gate", "receptance"}
_OUTSIDE = {"head", "classifier", "score", "pooler", "router", "embeddings", "norm", "lora", "rel", "relative", "pos"}
_FUSED_ATTENTION = re.compile(r"c_attn|in_proj(_qkv)?|query_key_value")
_GENERIC = re.compile(r"\d+|dense|linear|lin|layer|proj")


def recognise(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, list[str]]:
    """Return the names of the modules inferred for each role, without empty roles."""
    by_name = dict(modules)
    blocks: dict[str, Shapes] = defaultdict(dict)  # by the block's name: its matrices
    for name, module in by_name.items():
        start = re.match(r"(?:.*?\.)?\d+\.", name)
        kind = kind_of(module)
        if start and isinstance(kind, (LinearKind, Conv1DKind)) and not _is_outside(name[start.end() :]):
            n, m = kind.held(module).shape
            blocks[start[0]][name[start.end() :]] = (n, m)
    if any("language_model." in block for block in blocks):  # beside other towers
        blocks = {block: shapes for block, shapes in blocks.items() if "language_model." in block}
    repeated = Counter(_as_pattern(block) for block in blocks)
    found: dict[str, list[str]] = {role: [] for role in PLACES}
    for block, shapes in blocks.items():
        roles = _attention(shapes)
        is_attention = any(QUERY in played for played in roles.values())
        if not is_attention and repeated[_as_pattern(block)] == 1:
            continue
        mixers = [name for name in shapes if hasattr(by_name.get((block + name).rpartition(".")[0]), "A_log")]
        feed_forward = {name: shape for name, shape in shapes.items() if name not in roles and name not in mixers}
        roles |= _feed_forward(feed_forward) | {
            name: (VALUE, FFN_IN, FFN_GATE) for name in mixers if name.endswith("in_proj")
        }
        for name, played in roles.items():
            for role in played:
                found[role].append(block + name)
    return {role: names for role, names in found.items() if names}


def in_short(names: Iterable[str]) -> str:
    """Return names in short form, with numbers collapsed: layers.*.mlp.up_proj."""
    return ", ".join(dict.fromkeys(re.sub(r"(?<![^.])\d+(?=\.)", "*", name) for name in names))


def _attention(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Return the roles of a block's matrices in its attentions."""
    found: dict[str, tuple[str, ...]] = {}
    for name in shapes:
        parent, _, leaf = name.rpartition(".")
        if re.search("mlp|ffn|feed_?forward|intermediate", parent, re.IGNORECASE):
            continue
        words = _words(leaf) if not _GENERIC.fullmatch(leaf) else _words(parent.rpartition(".")[2])
        single = [role for role, known in ((QUERY, _QUERY), (KEY, _KEY), (VALUE, _VALUE)) if words & known]
        fused = next((roles for word, roles in _FUSED.items() if word in words), ())
        if not fused and _is_attention(parent) and _FUSED_ATTENTION.fullmatch(leaf):
            fused = _FUSED["qkv"]
        if single or fused:
            found[name] = tuple(single) or fused
    parents = {name.rpartition(".")[0] for name in found}
    for name in shapes:
        parent, _, leaf = name.rpartition(".")
        around = parent.removesuffix(".output").removesuffix(".to_out")
        inside = {around, f"{around}.self", f"{around}.attention", f"{around}.attn"} & parents
        surely = _is_attention(around) or _words(leaf) & {"o", "wo", "out"}
        if name not in found and inside and surely and (_words(leaf) & _OUTPUT or leaf.isdigit()):
            found[name] = (ATTENTION_OUTPUT,)
    return {
        name: (*played, CROSS_ATTENTION) if re.search("cross|enc(oder|Dec)_?att", name, re.IGNORECASE) else played
        for name, played in found.items()
    }


def _feed_forward(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Return the roles of a block's matrices in its feed-forward networks."""
    widths = Counter(n for n, m in shapes.values() if m > n) + Counter(m for n, m in shapes.values() if m < n)
    width = widths.most_common(1)[0][0] if widths else None  # of the residual stream
    leaves = {name.rpartition(".")[2] for name in shapes}
    halves = {2 * n for n, m in shapes.values() if m == width and n > m}  # of a fused gate and its partner
    found: dict[str, tuple[str, ...]] = {}
    for name, (n, m) in shapes.items():
        words = _words(name.rpartition(".")[2])
        gate = bool(words & _GATE) or name.endswith("wi_0") or ("w1" in words and "w3" in leaves)
        if n == m and width in (None, n):
            inward, outward = gate or bool(words & _IN), bool(words & _OUT)
        else:
            inward, outward = n == width and m > n, m == width and n > m
        if inward and not outward:
            found[name] = (FFN_IN, FFN_GATE) if m in halves else (FFN_GATE if gate else FFN_IN,)
        elif outward and not inward and not gate:
            found[name] = (FFN_OUT,)
    both = any(FFN_IN in roles for roles in found.values()) and any(FFN_OUT in roles for roles in found.values())
    return found if both else {}


def _is_attention(name: str) -> bool:
    return re.search("att(n|en)", name, re.IGNORECASE) is not None


def _is_outside(name: str) -> bool:
    return any(_words(part) & _OUTSIDE for part in name.split("."))


def _words(name: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return set(spaced.split("_"))


def _as_pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)
