"""The one tuner: it puts layers into a model and leaves the rest to peft."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..algebra import Formula
from ..algebra.names import start_of
from ..algebra.nodes import Affine, Matrix
from ..errors import SubspaceError, nearest
from ..methods import EVERY_BIAS
from ..methods.patterns import MEAN
from ..methods.roles import FFN_GATE, FFN_IN, FFN_OUT
from .budget import entries_in, entries_of, matrix_shape, share_out
from .calling import BASE, own_forward_problem
from .card import TAG
from .compat import include_all_linear_layers
from .config import SubspaceConfig
from .exact import exactly
from .kinds import ConvKind, EmbeddingKind, kind_of, supported
from .layer import SubspaceConv, SubspaceEmbedding, SubspaceLayer, SubspaceLinear, SubspaceNorm, showing
from .lora_form import Layout
from .loss import add_penalty
from .optimizer_step import install
from .penalties import penalised
from .placement import by_role
from .reach import forget_unreached, warn_of_unreached
from .reached import Penalised, record
from .recognise import in_short
from .saving import count_pass
from .transaction import undone_on_failure
from .tying import keep_scale, separate
from .validate import check_rank
from .weights import agree, check_weight, is_partitioned, whole


class NothingToAdaptError(SubspaceError, NoMatchingPeftModuleError):
    """The targets of an adapter match no module of the model."""


_FFN = {FFN_IN, FFN_GATE, FFN_OUT}


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
        self.place(model, config)
        state = kwargs.get("state_dict")
        if state is None:
            self.check_targets(model, config)
            self._check_choice(model, config)
        else:
            places = {key.partition(f".{self.prefix}")[0] for key in state}
            for name, module in _modules(model):
                if name in places:
                    check_weight(module, name)
            if config.entries is None and config.resolved.formula.masked:
                config.entries = entries_of(state, self.prefix, dict(_modules(model)))
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
        partitioned = is_partitioned(base.weight)  # type: ignore[arg-type]
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
            layer = _layer_class(target)(target, called_elsewhere=self._places[target] > 1)
            self._replace_module(parent, target_name, layer, target)
        assert isinstance(layer, SubspaceLayer)
        method, entries = config.resolved, entries_in(config, current_key, layer)
        rank = method.rank_in(layer.in_features, layer.out_features, _rank(config, current_key))
        alpha = _by_pattern(config.alpha_pattern, current_key, config.alpha)
        layer.update_layer(
            adapter_name,
            method,
            r=rank,
            alpha=alpha,
            scale=config.scale(alpha, rank),
            dropout=config.dropout,
            patterns=(config.patterns, config.penalty_weight),
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

    # Where to

    @classmethod
    def place(cls, model: nn.Module, config: SubspaceConfig) -> None:
        """Give a config without ``target_modules`` those of its method's placement in this model.

        Limits to some layers are then part of the expression, so the config no longer names them.
        """
        if config.target_modules is not None:
            return
        chosen = cls.placement(model, config)
        if isinstance(chosen, str):
            config.target_modules = chosen
            config.layers_to_transform = config.layers_pattern = None
        else:
            config.target_modules = set(chosen)  # type: ignore[assignment]  # as peft expects

    @classmethod
    def placement(cls, model: nn.Module, config: SubspaceConfig) -> list[str] | str:
        """Return the targets of a method in this model, from its placement."""
        method = config.resolved
        uncalled = _uncalled(model)
        modules = [(name, module) for name, module in _modules(model) if not name.startswith(uncalled)]
        if method.placement == EVERY_BIAS:
            names = [name for name, module in modules if kind_of(module) and getattr(module, "bias", None) is not None]
        else:
            model_type = cls.get_model_config(model).get("model_type")
            found = by_role(modules, None if model_type == "custom" else model_type, method.placement)
            if found is None:
                raise SubspaceError(
                    "Please specify `target_modules` in `peft_config`: nothing in this model"
                    f"{_typed(model_type)} can be recognised as a block with attention or a feed-forward network. "
                    f"{_known(model)}"
                )
            names = [name for name, _ in modules if isinstance(found, str) and re.fullmatch(found, name)]
            if isinstance(found, str) and not names:
                raise NothingToAdaptError(
                    f"Target modules of method {method.name!r} not found in the base model: it has no "
                    f"{', '.join(method.placement)}"
                )
            if config.layers_to_transform is None or not isinstance(found, str):
                return found
        chosen = [name for name in names if _selected(config, name)]
        if not chosen:
            raise NothingToAdaptError(f"method {method.name!r} finds nothing to adapt in this model{_limits(config)}")
        return exactly(chosen, (name for name, _ in modules))

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

    @staticmethod
    def check_targets(model: nn.Module, config: SubspaceConfig) -> None:
        """Check every targeted module before the first one is replaced."""
        everything = config.target_modules == "all-linear"
        include_all_linear_layers(config, model)
        found = targets(model, config)
        if not found:
            given = config.target_modules or ()
            shown = given if isinstance(given, str) else sorted(given)
            raise NothingToAdaptError(
                f"Target modules {shown} not found in the base model{_limits(config)}. {_known(model)}"
            )
        uncalled = _uncalled(model)
        for name, module in found:
            if name.startswith(uncalled):
                raise SubspaceError(
                    f"{name} is a part of a MultiheadAttention, which reads its weight without calling it; leave it "
                    "out with exclude_modules"
                )
            with whole(module):
                _check_target(name, module, config)
        _warn_of_left_out(model, config, [name for name, _ in found], everything)
        _warn_of_ranks(found, config)

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
        model: Any = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        if merge:
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


def targets(model: nn.Module, config: SubspaceConfig) -> list[tuple[str, nn.Module]]:
    """Return the modules that a config with ``target_modules`` adapts, with their names."""
    return [(name, module) for name, module in _modules(model) if check_target_module_exists(config, name)]


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
    counted = sum(site.pattern_weight > 0 and site.layer.r[adapter] > 0 for site in sites)
    for site in sites:
        record(site.layer)
        if config.pattern_reduction == MEAN and counted:
            site.layer.patterns[adapter] = (site.patterns, site.pattern_weight / counted)
    if add_penalty not in model._forward_hooks.values():
        model.register_forward_hook(add_penalty, with_kwargs=True)
    install()


def _layers(model: nn.Module) -> list[SubspaceLayer]:
    with showing():
        return [module for module in model.modules() if isinstance(module, SubspaceLayer)]


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


def _check_target(name: str, module: nn.Module, config: SubspaceConfig) -> None:
    check_weight(module, name)
    kind, method = kind_of(module), config.resolved
    if kind is None:
        raise SubspaceError(
            f"Target module {name} ({type(module).__name__}) is not supported. Currently, only the following modules "
            f"are supported: {supported()}"
        )
    kind.check(module, name)
    problem = own_forward_problem(module, kind, method, config.dropout)
    if problem is not None:
        raise SubspaceError(f"{name}: {problem}; or leave it out with exclude_modules")
    expression = method.formula.expression
    bias_alone = isinstance(expression, Affine) and expression.matrix == Matrix("W")
    if method.formula.wraps_norm and not kind.wrappable:
        raise SubspaceError(
            f"{name} is a {type(module).__name__}; {method.name!r} goes around normalisations of the last dimension "
            "alone"
        )
    if kind.only_bias and not bias_alone and not method.formula.wraps_norm:
        raise SubspaceError(
            f"{name} is a {type(module).__name__}, which has no matrix; of it {method.name!r} could adapt nothing"
        )
    if bias_alone and getattr(module, "bias", None) is None:
        raise SubspaceError(f"method {method.name!r} trains biases, and {name} has none")
    if method.formula.has_rank:
        check_rank(name, _rank(config, name), *matrix_shape(module))


def _warn_of_ranks(found: list[tuple[str, nn.Module]], config: SubspaceConfig) -> None:
    """Warn once if the rank is above min(n, m) of any matrix, where rank min(n, m) would reach as much."""
    method = config.resolved
    if config.inference_mode or method.formula.wraps_norm or not (method.formula.has_rank or config.directions):
        return
    wanted = {name: max(_rank(config, name), config.directions) for name, _ in found}
    narrow = [(name, *matrix_shape(module)) for name, module in found if wanted[name] > min(matrix_shape(module))]
    if narrow:
        (name, n, m), others = narrow[0], f" and of {len(narrow) - 1} more" * (len(narrow) > 1)
        capped = method.takes_triples or config.directions
        instead = "it has only as many singular triples, and takes all of them" if capped else "no more is of use there"
        warnings.warn(
            f"rank {wanted[name]} is above min(n, m) = {min(n, m)} of {name} ({n} x {m}){others}: {instead}",
            stacklevel=2,
        )


def _rank(config: SubspaceConfig, name: str) -> int:
    """Return the rank that a config gives to a module: 0 where a mask was chosen instead of a low-rank term."""
    sparse = config.resolved.selection == "sensitivity" and (config.entries or {}).get(name, [0])[0]
    return 0 if sparse else int(_by_pattern(config.rank_pattern, name, config.r))


def _by_pattern(patterns: dict[str, Any], name: str, default: Any) -> Any:
    return patterns.get(get_pattern_key(list(patterns), name), default)


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the model proper: an adapted one by its own name, nothing of modules saved whole."""
    wrapper: str | None = None
    for name, module in model.named_modules():
        if wrapper is not None and name.startswith(wrapper):
            continue
        wrapper = f"{name}." if isinstance(module, (SubspaceLayer, AuxiliaryTrainingWrapper)) else None
        yield name, module.get_base_layer() if isinstance(module, SubspaceLayer) else module


def _uncalled(model: nn.Module) -> tuple[str, ...]:
    """Return how the names begin of modules whose forward nobody calls."""
    return tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))


def _selected(config: SubspaceConfig, name: str) -> bool:
    """Whether the config's limits let in a module that its placement names; peft applies them to suffixes alone."""
    by_suffix = copy.copy(config)
    by_suffix.target_modules = [name.rpartition(".")[2]]
    in_layer = config.layers_to_transform is None or "." in name
    return in_layer and bool(check_target_module_exists(by_suffix, name))


def _limits(config: SubspaceConfig) -> str:
    """Tell what narrows the targets further."""
    limits = ("layers_to_transform", "layers_pattern", "exclude_modules", "modules_to_save")
    given = [f"{name}={getattr(config, name)!r}" for name in limits if getattr(config, name) not in (None, [], set())]
    return f" (with {', '.join(given)})" if given else ""


def _warn_of_left_out(model: nn.Module, config: SubspaceConfig, found: Sequence[str], everything: bool) -> None:
    """Warn of listed targets that match nothing, and of experts that are one parameter and no modules."""
    listed = () if isinstance(config.target_modules, str) or everything else config.target_modules or ()
    unmatched = sorted(end for end in listed if not any(name == end or name.endswith(f".{end}") for name in found))
    stacked = [
        f"{name}.{own}"
        for name, module in _modules(model)
        if kind_of(module) is None and "expert" in name.lower()
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]
    if unmatched:
        warnings.warn(f"target_modules {', '.join(unmatched)} match nothing in the model", stacklevel=3)
    if stacked and (everything or unmatched or set(config.resolved.placement) & _FFN):
        warnings.warn(
            f"left out: {in_short(stacked)}, which hold all experts in one parameter; only modules are adapted",
            stacklevel=3,
        )


def _typed(model_type: str | None) -> str:
    return "" if model_type in (None, "custom") else f" of type {model_type!r}"


def _known(model: nn.Module) -> str:
    """Name the modules that exist, by the ends of their names, the repeated ones once."""
    ends = {name.rpartition(".")[2] for name, module in _modules(model) if name and kind_of(module)}
    return f"Modules that exist: {', '.join(sorted(ends))}"
