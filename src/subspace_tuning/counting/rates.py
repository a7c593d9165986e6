"""The learning rates that follow from formulas in a model that is not loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig

from ..models.checkpoint import Checkpoint
from ..models.heads import head_modules
from ..models.locate import locate
from ..models.meta import without_weights
from ..theory.travel import Frozen
from ..tuner import SubspaceConfig
from ..tuner.rates import Rates, epsilon_of


@dataclass(frozen=True)
class ModelRates:
    """The derived learning rates of one model.

    Attributes:
        rates: of its modules, which have no weights.
        head: the modules that no adapter takes.
        from_weights: whether they follow from the model's own weights, or from its shapes alone.
    """

    rates: Rates
    head: list[str]
    from_weights: bool

    def derived(self, config: SubspaceConfig) -> float:
        """Return the rate of a config. Raises SubspaceError if none follows."""
        return self.rates.derived(dataclasses.replace(config, modules_to_save=self.head))


def rates_in(name: str, architecture: PretrainedConfig) -> ModelRates:
    """Return the derived rates of a model: from its weights if its folder is at hand, else from its shapes.

    Args:
        name: a hub name, a local folder or ``minilm``.
        architecture: its configuration.

    Raises:
        SubspaceError: the weights in a local folder cannot be read.
    """
    model = without_weights(architecture)
    folder = Path(locate(name))
    if not any(folder.glob("*.safetensors*")):
        return ModelRates(Rates(model), head_modules(model), False)
    checkpoint = Checkpoint(name)

    def read(module_name: str, module: nn.Module) -> Frozen:
        return Frozen(checkpoint.matrix(module_name), checkpoint.bias(module_name), epsilon_of(module))

    return ModelRates(Rates(model, read), head_modules(model), True)
