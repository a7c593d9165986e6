"""The one tuner: it puts layers into a model and leaves the rest to peft."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..algebra import Formula
from ..algebra.names import start_of
from ..errors import SubspaceError, nearest
from ..methods.patterns import MEAN
from .budget import entries_in, entries_of, share_out
from .calling import BASE
from .card import TAG
from .config import SubspaceConfig
from .kinds import ConvKind, EmbeddingKind, kind_of
from .layer import SubspaceConv, SubspaceEmbedding, SubspaceLayer, SubspaceLinear, SubspaceNorm
from .lora_form import Layout
from .loss import add_penalty
from .optimizer_step import install
from .penalties import penalised
from .quantised import check_method
from .reach import forget_unreached, warn_of_unreached
from .reached import Penalised, record
from .requantised import tell
from .saving import count_pass
from .switching import showing
from .targets import by_pattern, check_targets, modules_of, place, rank_of, targets
from .transaction import undone_on_failure
from .tying import keep_scale, separate
from .weights import agree, check_weight, is_partitioned, whole


class SubspaceModel(BaseTuner):
    """Hosts subspace adapters in a model; made by ``peft.get_peft_model(model, SubspaceConfig(...))``."""

    prefix = "subspace_"
    tuner_layer_cls = SubspaceLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (peft declares it so);  the methods' placements take its place
    _places: Counter[nn.Module | None]  # how many parents hold a module, while an adapter is put in

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        adapters = getattr(model, "peft_config", {})
        before = dict(adapters)
        try:
            super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        except BaseException:
            adapters.clear()
            adapters.update(before)
            if not before and vars(model).get("_hf_peft_config_loaded"):  # transformers notes the adapter too early
                del model._hf_peft_config_loaded
            raise

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into the model, after checking every module that it would touch.

        Whatever fails, the model, its adapters and the config are then as they were.

        Raises:
            SubspaceError: the adapter's name or targets do not fit.
        """
        config = _own(self.peft_config[adapter_name])
        fields = dict(vars(config))
        trained = {name for layer in _layers(model) for name in layer.unfrozen}
        shown = {adapter_name, *self.active_adapters, *trained}
        try:
            with showing(shown), undone_on_failure(self):  # those whose flags peft changes on the way, and puts back
                self._inject(model, adapter_name, config, *args, **kwargs)
        except BaseException:
            self.peft_config.pop(adapter_name)
            vars(config).clear()
            vars(config).update(fields)
            raise
        finally:
            for layer in _layers(model):
                layer.look_up_unfrozen(shown)

    def _inject(self, model: nn.Module, adapter_name: str, config: SubspaceConfig, *args: Any, **kwargs: Any) -> None:
        self._check_name(adapter_name)
        config.check_assigned()
        place(model, config)
        state = kwargs.get("state_dict")
        if state is None:
            check_targets(model, config)
            self._check_choice(model, config)
        else:
            places = {key.partition(f".{self.prefix}")[0] for key in state}
            for name, module in modules_of(model):
                if name in places:
                    check_weight(module, name)
                    check_method(config.resolved, module, name)
            if config.entries is None and config.resolved.formula.masked:
                config.entries = entries_of(state, self.prefix, dict(modules_of(model)))
        before = len(_layers(model))
        self._places = Counter(child for parent in model.modules() for child in parent._modules.values())
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._places = Counter()  # which would keep the modules alive
        if isinstance(model, PreTrainedModel):
            model.add_model_tags([TAG])  # so that every card that peft writes has it
        _leave_out_of_broadcasts(model)
        if config.adds_to_loss:
            _penalise(model, adapter_name, config)
        if config.resolved.schedule is not None and not config.inference_mode:
            model.register_forward_hook(partial(_count_pass, adapter_name, config))
        if len(_layers(model)) > before:
            warn_of_unreached(model)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        base = target.get_base_layer() if isinstance(target, SubspaceLayer) else target
        partitioned = is_partitioned(getattr(base, "weight", None))
        with whole(base):
            layer = self._adapt(peft_config, adapter_name, target, target_name, parent, current_key)
        if partitioned:
            agree(
                [*layer.subspace_params[adapter_name].parameters(), *layer.subspace_constants[adapter_name].buffers()]
            )

    def _adapt(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> SubspaceLayer:
        config, layer = _own(peft_config), target
        layout = Layout.of(target.get_base_layer() if isinstance(target, SubspaceLayer) else target)
        config.layouts = (config.layouts or {}) | ({} if layout == Layout() else {current_key: layout.written()})
        if not isinstance(target, SubspaceLayer):
            layer = _layer_class(target)(target, self._places[target] > 1, get_quantization_kwargs(self.model))
            self._replace_module(parent, target_name, layer, target)
        assert isinstance(layer, SubspaceLayer)
        method, entries = config.resolved, entries_in(config, current_key, layer)
        rank = method.rank_in(layer.in_features, layer.out_features, rank_of(config, current_key))
        alpha = by_pattern(config.alpha_pattern, current_key, config.alpha)
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
            positions=None if config.positions is None else config.positions[current_key],
            init_weights=config.init_weights,
            save_constants=config.save_constants,
            inference_mode=bool(config.inference_mode),
        )
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        return layer

    def _check_choice(self, model: nn.Module, config: SubspaceConfig) -> None:
        """Choose what needs no data, and refuse what should have been chosen from data and was not."""
        method = config.resolved
        if method.needs_calibration and not config.calibrated:
            raise SubspaceError(
                f"method {method.name!r} chooses what it trains from data: config = calibrate(model, config, batches) "
                "with a few batches, then use that config"
            )
        if method.selection == "magnitude" and config.entries is None:
            config.entries = share_out(config, targets(model, config))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; in training, what the patterns and gates ask for joins the loss of the outputs.

        The model itself is called, and not its ``forward`` as peft does: a hook on it adds the penalty, since peft
        leaves the tuner out where a model has no task type.
        """
        return self.model(*args, **kwargs)

    def _check_name(self, adapter_name: str) -> None:
        """Raise SubspaceError if an adapter cannot have this name.

        torch must take it for the name of a module, and peft finds the tensors of an adapter by the end of their names,
        so no factor may be called like an adapter.
        """
        if not isinstance(adapter_name, str) or adapter_name in ("", BASE) or "." in adapter_name:
            raise SubspaceError(f"an adapter cannot be called {adapter_name!r}; choose a name without dots")
        if hasattr(nn.ModuleDict(), adapter_name):
            raise SubspaceError(f"an adapter cannot be called {adapter_name!r}, which torch's modules use themselves")
        formulas: dict[int, tuple[str, Formula]] = {}  # by identity: most adapters of a method share its formula
        for name, config in self.peft_config.items():
            if isinstance(config, SubspaceConfig):
                formulas.setdefault(id(config.resolved.formula), (name, config.resolved.formula))
        for name, formula in formulas.values():
            saved = {*formula.evaluated.names, *map(start_of, formula.trainable)}
            taken = saved & self.peft_config.keys()
            if taken:
                raise SubspaceError(
                    f"adapter {name!r} has a factor {min(taken)}, so no adapter of the model may have that name"
                )

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter. If it alone was active, the first that is left becomes active, in every layer alike."""
        alone = self.active_adapters == [adapter_name]
        with showing():
            super().delete_adapter(adapter_name)
        if alone and self.peft_config:
            self.set_adapter(min(self.peft_config))

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters the active ones."""
        with showing():
            super().set_adapter(adapter_name, inference_mode=inference_mode)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        with showing():
            super()._enable_adapter_layers(enabled)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        with showing([adapter_name]):
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Refuse what peft passes over: tensors that have no place here, and missing factors."""
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        places = {key.removeprefix("base_model.model.") for key in model.state_dict()}
        keys = [key.removeprefix("base_model.model.") for key in remapped if f".{cls.prefix}" in key]
        lost = [key for key in keys if key not in places]
        if lost:
            raise SubspaceError(
                f"the adapter has {len(lost)} tensors that this base model has no place for, such as {lost[0]}: it was "
                "trained on another base model"
            )
        # A module that the file knows nothing of keeps phi(W) = W, and peft warns of it; half of a module is damage.
        known = {key.partition(f".{cls.prefix}")[0] for key in keys}
        parts = tuple(f".{part}.{adapter_name}." for part in ("subspace_params", "subspace_constants"))
        missing = [place for place in sorted(places - set(keys)) if any(part in place for part in parts)]
        missing = [place for place in missing if place.partition(f".{cls.prefix}")[0] in known]
        if missing:
            raise SubspaceError(
                f"the adapter lacks {len(missing)} tensors that its config asks for, such as {missing[0]}: its file is "
                "damaged, or the config is of another adapter"
            )
        return remapped

    # Several adapters in one batch

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise SubspaceError(
                "Cannot pass `adapter_names` when the model is in training mode; call model.eval() first"
            )
        unknown = set(adapter_names) - set(self.peft_config) - {BASE}
        if unknown:
            names = ", ".join(sorted(unknown))
            raise SubspaceError(
                f"Trying to infer with non-existing adapter(s): {names}; {nearest(min(unknown), self.peft_config)}"
            )
        hook = partial(_pass_names, adapter_names=list(adapter_names))
        with showing():
            handles = [
                module.register_forward_pre_hook(hook, with_kwargs=True)
                for module in self.modules()
                if isinstance(module, (SubspaceLayer, AuxiliaryTrainingWrapper))
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # Merging

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the base weights. Raises SubspaceError before any layer is changed."""
        self._check_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        tell(_named_layers(self.model))

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._check_merge(adapter_names, safe_merge)
        forget_unreached(self.model)
        hooks = self.model._forward_hooks
        for key in [key for key, hook in hooks.items() if _is_own(hook)]:
            del hooks[key]
            self.model._forward_hooks_with_kwargs.pop(key, None)
        layers = _named_layers(self.model)
        model: Any = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        if merge:
            tell(layers)
            separate(model)
            keep_scale(getattr(model, "config", None))
        return model

    def _check_merge_allowed(self) -> None:
        """Allow to merge tied weights, of which peft warns: the other holders keep the frozen one."""

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):  # saved whole: it may be a head of several modules
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _check_merge(self, adapter_names: Sequence[str] | None, safe_merge: bool) -> None:
        """Raise SubspaceError if any layer cannot be merged, so that never half of them are."""
        for module_name, layer in self.model.named_modules():
            if not isinstance(layer, SubspaceLayer):
                continue
            wanted = layer.active_adapters if adapter_names is None else adapter_names
            names = [name for name in wanted if name in layer.subspace_params]
            try:
                for name in names:
                    layer.check_merge(name)
                if safe_merge:
                    layer.merged_with([name for name in names if name not in layer.merged_adapters], safe_merge)
            except SubspaceError as error:
                raise SubspaceError(f"{error} (in {module_name})") from None


def _leave_out_of_broadcasts(model: nn.Module) -> None:
    """Have DistributedDataParallel leave out what each process computes from W: it broadcasts buffers in every pass.

    What is drawn or chosen from data stays among them, so that all processes have that of the first.
    """
    names = [
        f"{name}.subspace_constants.{adapter}.{key}"
        for name, layer in model.named_modules()
        if isinstance(layer, SubspaceLayer)
        for adapter, constants in layer.subspace_constants.items()
        for key in constants._non_persistent_buffers_set
    ]
    if names:
        known = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
        both = known | {f"{prefix}{name}" for name in names for prefix in ("", "base_model.model.")}
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(both))


def _count_pass(adapter: str, config: SubspaceConfig, model: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
    """Count the training passes of an adapter whose method has a schedule: a forward hook."""
    if not model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    with showing():
        layers = (module for module in model.modules() if isinstance(module, SubspaceLayer))
        layer = next((layer for layer in layers if adapter in layer.subspace_params), None)
    if layer is not None and Penalised(layer, adapter).enabled():
        count_pass(config)


def _is_own(hook: Any) -> bool:
    return hook is add_penalty or (isinstance(hook, partial) and hook.func is _count_pass)


def _penalise(model: nn.Module, adapter: str, config: SubspaceConfig) -> None:
    """Have the penalties of an adapter act in training: in the model's own loss, or else at the optimiser's step."""
    sites = [site for site in penalised(model) if site.adapter == adapter]
    counted = sum(site.pattern_weight > 0 and site.layer.adapters[adapter].r > 0 for site in sites)
    for site in sites:
        record(site.layer)
        if config.pattern_reduction == MEAN and counted:
            site.layer.weigh_patterns(adapter, site.pattern_weight / counted)
    if add_penalty not in model._forward_hooks.values():
        model.register_forward_hook(add_penalty, with_kwargs=True)
    install()


def _layers(model: nn.Module) -> list[SubspaceLayer]:
    with showing():
        return [module for module in model.modules() if isinstance(module, SubspaceLayer)]


def _named_layers(model: nn.Module) -> dict[str, SubspaceLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SubspaceLayer)}


def _own(config: PeftConfig) -> SubspaceConfig:
    assert isinstance(config, SubspaceConfig)
    return config


def _pass_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], adapter_names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give a layer the adapters of its rows; in beam search every row of the batch comes several times."""
    rows = len(args[0]) if args else len(adapter_names)
    times = rows // len(adapter_names) if rows % len(adapter_names) == 0 else 1
    if isinstance(module, AuxiliaryTrainingWrapper):  # an adapter that does not train the module uses it as it was
        adapter_names = [name if name in module._adapters else BASE for name in adapter_names]
    kwargs["adapter_names"] = [name for name in adapter_names for _ in range(times)]
    return args, kwargs


def _layer_class(module: nn.Module) -> type[SubspaceLayer]:
    kind = kind_of(module)
    if kind is not None and kind.only_bias:
        return SubspaceNorm
    if isinstance(kind, EmbeddingKind):
        return SubspaceEmbedding
    return SubspaceConv if isinstance(kind, ConvKind) else SubspaceLinear
