"""Attaches the method of a run to its model, and counts what is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import peft
from torch import nn
from transformers import PreTrainedModel

from .. import methods
from ..errors import SubspaceError
from ..models.heads import fresh_modules, head_modules, head_parameters, outermost, parameter_count
from ..models.vocabulary import NEW_ROWS
from ..theory.budget import read_budget
from ..tuner import SubspaceConfig
from ..tuner.calibration import Batch, Loss, calibrate
from ..tuner.hosting import config_of, peft_config_of, with_adapter
from ..tuner.sizing import sized
from .sections import FULL, HEAD, AdapterSection

_LEARNING_RATES = {FULL: 5e-5, HEAD: 1e-3}


@dataclass(frozen=True)
class Counts:
    """Parameter counts.

    Attributes:
        model: all parameters before the method is attached, including the head, as in the paper's per-mille column.
        adapter: those that the method trains; for full fine-tuning, all outside the head.
        head: those of the head, trained in every run.
        per_mille: `adapter` in per mille of `model`.
        new_tokens: those of the embeddings of new tokens.
    """

    model: int
    adapter: int
    head: int
    per_mille: float
    new_tokens: int


def trained_head(model: PreTrainedModel | peft.PeftModel, adapter: AdapterSection) -> list[nn.Parameter]:
    """Return the trained parameters of the head of a model returned by `attach` for `adapter`."""
    if isinstance(model, peft.PeftModel):
        named = model.named_parameters()
        return [parameter for name, parameter in named if ".modules_to_save." in name and parameter.requires_grad]
    return head_parameters(model, adapter.head or fresh_modules(model))


def attach(
    model: PreTrainedModel,
    adapter: AdapterSection,
    task_type: peft.TaskType | None,
    batches: Callable[[], Iterable[Batch]] | None = None,
    loss: Loss | None = None,
    new_rows: Mapping[str, list[int]] | None = None,
) -> tuple[PreTrainedModel | peft.PeftModel, Counts]:
    """Return the model with the method attached, ready to train, and its counts. The given model is modified.

    Args:
        model: the model with its head.
        adapter: the method and its options.
        task_type: peft's name for the type of model; None if it has none.
        batches: returns training rows for methods that choose from data what they train.
        loss: the loss of such a batch; by default the model's own.
        new_rows: the rows of embeddings that are trained beside the method, by module name.

    Raises:
        SubspaceError: the method, the formula or a module name is unknown, or the method does not fit the model.
    """
    head = fresh_modules(model) if adapter.head is None else adapter.head
    parameters = head_parameters(model, head)
    if not parameters and (adapter.head is not None or adapter.method == HEAD):
        raise SubspaceError(
            f"adapter.head {head} matches no module with weights; the model's own: {head_modules(model)}"
        )
    total, in_head = parameter_count(model), sum(parameter.numel() for parameter in parameters)
    tuned: PreTrainedModel | peft.PeftModel = model
    if adapter.method == HEAD:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
    elif adapter.method != FULL:
        try:
            config = build_adapter(adapter, outermost(model, head), task_type)
            if isinstance(config, SubspaceConfig):
                config = _fitted(model, config, adapter.parameters, batches, loss)
                config.trainable_token_indices = dict(new_rows) if new_rows else None
            tuned = with_adapter(model, config, adapter.method)
            if new_rows and (outputs := model.get_output_embeddings()) is not None:  # type: ignore[no-untyped-call]
                outputs.register_parameter("bias", None)  # TRL asks for it, and peft's layer does not have it
        except SubspaceError:
            raise
        except ValueError as error:  # peft's own error, such as for a target that matches nothing
            raise SubspaceError(f"adapter does not fit the model: {str(error).strip().splitlines()[0]}") from error
    named = {name: parameter.numel() for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    new_tokens = sum(count for name, count in named.items() if NEW_ROWS in name)
    own = sum(named.values()) - in_head - new_tokens
    return tuned, Counts(total, own, in_head, 1000 * own / total, new_tokens)


def _fitted(
    model: PreTrainedModel,
    config: SubspaceConfig,
    parameters: str | None,
    batches: Callable[[], Iterable[Batch]] | None,
    loss: Loss | None,
) -> SubspaceConfig:
    """Return the config with the choices that depend on the model's size and the training rows."""
    if parameters is not None:
        config = sized(model, config, read_budget(parameters, parameter_count(model)))
    if config.resolved.needs_calibration and batches is not None:
        config = calibrate(model, config, batches(), loss)
    return config


def build_adapter(
    adapter: AdapterSection, head: Sequence[str], task_type: peft.TaskType | None = None
) -> peft.PeftConfig:
    """Return the adapter's config, with `head` trained and saved beside it.

    Raises:
        SubspaceError: the method, the formula or a value is unknown.
    """
    own = ("head", "calibration_rows", "parameters", "new_tokens", "peft")
    given = {name: value for name, value in asdict(adapter).items() if value is not None and name not in own}
    common = {"task_type": adapter_type(task_type), "modules_to_save": list(head) or None}
    return config_of(given, common) if adapter.peft is None else peft_config_of(adapter.peft, common)


def adapter_type(task_type: peft.TaskType | None) -> peft.TaskType | None:
    """Return the type that an adapter's config has for a task's: its own, except for questions.

    peft 0.21's class of type QUESTION_ANS drops ``token_type_ids``, by which BERT tells a question from its context.
    The class of type FEATURE_EXTRACTION passes all arguments on.
    """
    return peft.TaskType.FEATURE_EXTRACTION if task_type is peft.TaskType.QUESTION_ANS else task_type


def default_learning_rate(adapter: AdapterSection) -> float:
    """Return the default peak learning rate of a method.

    Raises:
        SubspaceError: the method is unknown (the message names the nearest), or the formula cannot be read.
    """
    if adapter.method in _LEARNING_RATES:
        return _LEARNING_RATES[adapter.method]
    config = build_adapter(adapter, ())
    if adapter.peft is not None:  # the rate of the method of that name, or LoRA's
        known = methods.find(str(adapter.peft["peft_type"]).lower()) or methods.get("lora")
        return known.learning_rate
    method = config.resolved if isinstance(config, SubspaceConfig) else methods.named(adapter.method or "")
    return method.learning_rate
