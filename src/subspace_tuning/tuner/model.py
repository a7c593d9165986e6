"""The tuner: it replaces modules of a model by layers and leaves the rest to peft."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

from peft import PeftConfig
from peft.functional import cast_adapter_dtype, delete_adapter, set_adapter
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.integrations import init_empty_weights
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import SubspaceError, nearest
from .budget import entries_of
from .calling import BASE
from .card import TAG
from .compat import check_adapters_not_merged, include_all_linear_layers
from .config import SubspaceConfig
from .entries import check_method
from .fused import parts_of
from .giving import give
from .hooks import count_passes, penalise, remove_hooks
from .layer import SubspaceLayer, layer_class
from .loading import check_fit
from .merging import check_merge
from .mixing import rows_named
from .naming import check_name
from .owner import PartedModule, layer_of
from .parameters import parameters, quiet_of_parameters
from .reach import forget_unreached, warn_of_unreached
from .requantised import tell
from .sharding import leave_out_of_broadcasts
from .strength import strengths
from .targets import check_choice, check_targets, place
from .transaction import undone_on_failure
from .tying import keep_scale, separate
from .unpacked import keep_unpacked
from .walking import Outside, layers_of, modules_of
from .weights import agree, check_weight, is_partitioned, whole


class SubspaceModel(BaseTuner):
    """Hosts subspace adapters in a model; made by ``peft.get_peft_model(model, SubspaceConfig(...))``."""

    prefix = "subspace_"
    tuner_layer_cls = SubspaceLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (as in peft); replaced by the methods' placements
    _places: Counter[nn.Module | None]  # how many parents a module has, while an adapter is added

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        adapters = getattr(model, "peft_config", {})
        before = dict(adapters)
        try:
            super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        except BaseException:
            adapters.clear()
            adapters.update(before)
            if not before and vars(model).get("_hf_peft_config_loaded"):  # transformers registers the adapter too early
                del model._hf_peft_config_loaded
            raise

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the model, after checking every module that it would replace.

        If anything fails, the model, its adapters and the config are restored.

        Raises:
            SubspaceError: the adapter's name or targets do not fit.
        """
        config = _own(self.peft_config[adapter_name])
        fields = dict(vars(config))
        # Those whose flags peft changes temporarily.
        touched = {adapter_name, *self.active_adapters}.union(*(layer.unfrozen for _, layer in layers_of(model)))
        try:
            with undone_on_failure(Outside(self, touched)), quiet_of_parameters(config):
                self._inject(model, adapter_name, touched, *args, **kwargs)
        except BaseException:
            self.peft_config.pop(adapter_name)
            vars(config).clear()
            vars(config).update(fields)
            raise

    def _inject(self, model: nn.Module, adapter_name: str, touched: Collection[str], *args: Any, **kwargs: Any) -> None:
        config = _own(self.peft_config[adapter_name])
        check_name(adapter_name, self.peft_config)
        config.check_assigned()
        keep_unpacked(model)
        place(model, config)
        if (state := kwargs.get("state_dict")) is None:
            check_targets(model, config)
            check_choice(model, config)
        else:
            include_all_linear_layers(config, model)  # given an Outside, peft would not know the model's class
            places = {key.partition(f".{self.prefix}")[0] for key in state}
            for name, module in modules_of(model):
                if name in places:
                    check_weight(module, name)
                    check_method(config.resolved, module, name)
            if config.entries is None and config.resolved.formula.masked:
                config.entries = entries_of(config, state, self.prefix, dict(modules_of(model)))
        walked = Outside(model, touched)
        self._places = Counter(chain.from_iterable(parent._modules.values() for parent in walked.modules()))
        super().inject_adapter(walked, adapter_name, *args, **kwargs)
        self._places = Counter()  # which would keep the modules alive
        if isinstance(model, PreTrainedModel):
            model.add_model_tags([TAG])  # so that every card written by peft has it
        leave_out_of_broadcasts(model, adapter_name)
        if config.adds_to_loss:
            penalise(model, adapter_name, config)
        if config.resolved.schedule is not None and not config.inference_mode:
            count_passes(model, adapter_name, config)

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
        config = _own(peft_config)
        base = target.get_base_layer() if isinstance(target, (SubspaceLayer, PartedModule)) else target
        if (parts := parts_of(self.model, config, current_key, base)) is not None:
            for name, part in parts.items():
                self._give(config, adapter_name, layer_of(self.model, name, part), name)
            warn_of_unreached(self.model)
            return
        if isinstance(target, PartedModule):
            raise SubspaceError(f"{current_key} is adapted in parts by another adapter, so it cannot be as a whole")
        partitioned = is_partitioned(getattr(base, "weight", None))
        with whole(base):
            layer = self._adapt(peft_config, adapter_name, target, target_name, parent, current_key)
        if partitioned:
            own, constants = layer.subspace_params[adapter_name], layer.subspace_constants[adapter_name]
            agree(own.parameters(), constants.buffers(), current_key)

    def _adapt(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> SubspaceLayer:
        layer = target
        if not isinstance(layer, SubspaceLayer):
            layer = layer_class(target)(target, self._places[target] > 1, get_quantization_kwargs(self.model))
            self._replace_module(parent, target_name, layer, target)
            warn_of_unreached(self.model)
        self._give(_own(peft_config), adapter_name, layer, current_key)
        return layer

    def _give(self, config: SubspaceConfig, adapter_name: str, layer: SubspaceLayer, name: str) -> None:
        give(layer, adapter_name, config, name)
        if adapter_name not in self.active_adapters:
            layer.set_requires_grad(adapter_name, False)

    def _inject_parameters(
        self, peft_config: PeftConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """Put an adapter on the parameters that its config names, in layers beside the module that reads them."""
        config = _own(peft_config)
        found = parameters(self.model, config)
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            for name, part in found:
                self._give(config, adapter_name, layer_of(self.model, name, part), name)
        warn_of_unreached(self.model)
        return [name for name, _ in found]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; in training, the penalties of patterns and gates are added to the loss in the outputs.

        This calls the model itself, where peft calls its ``forward``: a hook on the model adds the penalty, since peft
        bypasses the tuner if a model has no task type.
        """
        return self.model(*args, **kwargs)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter. If it was the only active one, the first remaining one becomes active in every layer."""
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} does not exist")
        alone, walked = self.active_adapters == [adapter_name], Outside(self.model)
        check_adapters_not_merged(walked, adapter_name)
        del self.peft_config[adapter_name]
        self.active_adapter = delete_adapter(walked, adapter_name, self.prefix, self.tuner_layer_cls) or []
        if alone and self.peft_config:
            self.set_adapter(min(self.peft_config))

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate these adapters."""
        set_adapter(Outside(self.model), adapter_name, inference_mode, self.tuner_layer_cls)
        self.active_adapter = adapter_name

    def set_adapters(
        self, adapter_names: str | Sequence[str], weights: float | Sequence[float | None] | None = None
    ) -> None:
        """Make adapters the active ones at these strengths, as diffusers' models do (see :func:`.strengths`).

        Every layer's weight is W + t (phi(W) - W), with several adapters the sum of the changes. It is not saved.
        """
        chosen = strengths(adapter_names, weights, self.peft_config)
        self.set_adapter(list(chosen))
        for _, layer in layers_of(self.model):
            for name, strength in chosen.items():
                layer.set_scale(name, strength)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        for module in Outside(self.model).modules() if autocast_adapter_dtype else ():
            if isinstance(module, SubspaceLayer):  # peft would search every other adapter for it
                module.raise_precision(adapter_name)
            elif isinstance(module, BaseTunerLayer):
                cast_adapter_dtype(module, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Refuse what peft ignores: tensors without a place in the model, and missing factors."""
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        check_fit(remapped, model, adapter_name, cls.prefix)
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
        with rows_named(self, adapter_names):
            yield

    # Merging

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the base weights. Raises SubspaceError before any layer is changed."""
        check_merge(layers_of(self.model), adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        tell(dict(layers_of(self.model)))

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            check_merge(layers_of(self.model), adapter_names, safe_merge)
        forget_unreached(self.model)
        remove_hooks(self.model)
        layers = dict(layers_of(self.model))
        model: Any = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        if merge:
            tell(layers)
            separate(model)
            keep_scale(getattr(model, "config", None))
        return model

    def _check_merge_allowed(self) -> None:
        """Allow merging tied weights, about which peft warns: the other holders keep the frozen one."""

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # What is saved whole may be a head of several modules; neither it nor a module with parts has one weight.
        if isinstance(child, (AuxiliaryTrainingWrapper, PartedModule)):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)


def _own(config: PeftConfig) -> SubspaceConfig:
    assert isinstance(config, SubspaceConfig)
    return config
