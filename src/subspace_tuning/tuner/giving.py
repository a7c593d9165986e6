"""An adapter comes to a layer: its method, and its size there."""

from __future__ import annotations

from .budget import entries_in
from .config import SubspaceConfig
from .layer import SubspaceLayer
from .lora_form import Layout
from .targets import by_pattern, rank_of


def give(layer: SubspaceLayer, adapter_name: str, config: SubspaceConfig, name: str) -> None:
    """Give a layer an adapter of the size that a config gives the module or part of this name."""
    layout = Layout.of(layer.get_base_layer())
    config.layouts = (config.layouts or {}) | ({} if layout == Layout() else {name: layout.written()})
    method, entries = config.resolved, entries_in(config, name, layer)
    rank = method.rank_in(layer.in_features, layer.out_features, rank_of(config, name))
    alpha = by_pattern(config, config.alpha_pattern, name, config.alpha)
    layer.update_layer(
        adapter_name,
        method,
        r=rank,
        alpha=alpha,
        scale=config.scale(alpha, rank),
        dropout=config.dropout,
        patterns=config.patterns,
        pattern_weight=config.penalty_weight,
        gate_weight=config.gate_weight if method.formula.has_gates else 0.0,
        entries=entries,
        directions=min(config.directions, layer.in_features, layer.out_features),
        positions=None if config.positions is None else config.positions[name],
        init_weights=config.init_weights,
        save_constants=config.save_constants,
        inference_mode=bool(config.inference_mode),
    )
