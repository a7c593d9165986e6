"""Placements of methods in a transformer, by the roles of its matrices, independent of any model's module names."""

from __future__ import annotations

QUERY, KEY, VALUE, ATTENTION_OUTPUT = "query", "key", "value", "attention_output"
FFN_IN, FFN_GATE, FFN_OUT = "ffn_in", "ffn_gate", "ffn_out"
ROLES = (QUERY, KEY, VALUE, ATTENTION_OUTPUT, FFN_IN, FFN_GATE, FFN_OUT)
CROSS_ATTENTION = "cross_attention"  # the four matrices of every cross-attention
FFN_NORM = "ffn_norm"  # the normalisation after the feed-forward block and its residual

ALL_MATRICES = ROLES  # the paper's six (no gate in BERT), for every method with a rank
SCALED = (KEY, VALUE, FFN_IN)  # the three that (IA)^3, SSL and SSB scale
EVERY_BIAS = ("bias",)  # every module with a bias, including LayerNorm
