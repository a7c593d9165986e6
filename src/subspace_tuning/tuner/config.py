"""The configuration of an adapter: its formula, size and targets."""

from __future__ import annotations

import copy
import dataclasses
import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from .. import methods
from ..documented import Range, default_of, documented, settings
from ..errors import SubspaceError
from ..methods import Method
from ..methods.patterns import MEAN, PENALTIES
from ..methods.schedules import SCHEDULES, Options
from .card import write_card
from .resolve import patterns_of, resolve
from .saving import saved
from .validate import check_types, check_use, check_values

FORMAT = 1  # of the saved adapter; raised when older versions could not read it correctly
PATTERN_WEIGHT = 1e-3
"""The default weight of the orthogonal and the diagonal pattern, unless config or method give one."""


class SubspaceType(str, enum.Enum):
    """The peft type of every adapter of this package."""

    SUBSPACE = "SUBSPACE"


# The fields that are checked on every assignment.
_CHECKED = frozenset(
    "method formula starts r alpha rank_stabilised dropout pattern pattern_weight nonlinearity gate_weight budget "
    "pattern_reduction schedule rank_pattern alpha_pattern init_weights format".split()
)


@documented
@dataclass(repr=False)
class SubspaceConfig(PeftConfig):
    """Configuration of a subspace adapter, for every registered method and every formula.

    Examples:
        >>> SubspaceConfig(method="ssb", target_modules="all-linear")
        SubspaceConfig(method='ssb', target_modules='all-linear')
        >>> SubspaceConfig(formula="D1 @ W @ D2 + s * A @ B", r=4)
        SubspaceConfig(formula='D1 @ W @ D2 + s * A @ B', r=4)

    Fields may be assigned later, and are checked then. Of peft's own fields, set ``task_type`` ("SEQ_CLS", "CAUSAL_LM",
    ...) if the model has a head; the others are filled in automatically.

    Raises:
        SubspaceError: an unknown method, a formula that cannot be parsed or has no start, a number out of range.
    """

    method: str | None = field(default=None, metadata={"help": "the name of a registered method"})
    formula: str | None = field(default=None, metadata={"help": "phi(W) in the formula language, instead of a method"})
    starts: dict[str, str] | None = field(
        default=None,
        metadata={"help": "the starts of a formula's factors, if its form does not determine them: {name: start}"},
    )
    r: int = field(
        default=8, metadata={"help": "the rank, or the width of a bottleneck", "range": Range(positive=True)}
    )
    alpha: float = field(default=16.0, metadata={"help": "the scale is s = alpha / r", "range": Range(positive=True)})
    rank_stabilised: bool = field(
        default=False, metadata={"help": "the scale is s = alpha / sqrt(r) instead (arXiv 2312.03732)"}
    )
    dropout: float = field(
        default=0.0, metadata={"help": "dropout on the input of the added terms", "range": Range(below=1)}
    )
    pattern: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "constraints on A and B, the factors that lead down to the rank and back up: orthogonal, diagonal, "
            "nonlinear, or several joined by +; None: the method's own; 'none': none at all"
        },
    )
    pattern_weight: float | None = field(
        default=None,
        metadata={
            "help": "the weight of the orthogonal and the diagonal pattern in the loss; None: the method's, or 0.001",
            "range": Range(),
        },
    )
    pattern_reduction: str = field(
        default=MEAN,
        metadata={"help": "the 'mean' of the penalties over the adapted matrices, or their 'sum' as in the paper"},
    )
    nonlinearity: str = field(default="relu", metadata={"help": "the function that pattern nonlinear inserts after A"})
    gate_weight: float = field(
        default=1.25e-7,
        metadata={"help": "the weight in the loss of each gate expected to be open", "range": Range()},
    )
    budget: float | int | None = field(
        default=None,
        metadata={
            "help": "for masks and chosen biases: how many to train in total, or their share (a number with a decimal "
            "point, up to 1.0); None: the method's own share"
        },
    )
    schedule: dict[str, float] | None = field(
        default=None, metadata={"help": "options of the method's schedule, in optimiser steps"}
    )
    calibrated: bool = field(
        default=False, metadata={"help": "set by `calibrate`: what to train has been chosen from data"}
    )
    entries: dict[str, list[int]] | None = field(
        default=None, metadata={"help": "set when a mask is chosen: for each module the number of entries, and n and m"}
    )
    positions: dict[str, Tensor] | None = field(
        default=None,
        repr=False,
        compare=False,
        metadata={"help": "set by `calibrate`: for each module the entries of its mask, saved in the adapter's file"},
    )
    layouts: dict[str, list[str | int]] | None = field(
        default=None,
        metadata={"help": "set when the adapter is attached: the modules that are not linear layers, for exports"},
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "module name suffixes, a regex, or 'all-linear'; None: the method's placement in this model"},
    )
    target_parameters: list[str] | None = field(
        default=None, metadata={"help": "suffixes of parameters that no linear layer holds, such as experts.down_proj"}
    )
    transposed_parameters: list[str] | None = field(
        default=None,
        metadata={
            "help": "which target_parameters are in x out; None: as known of the model's type, else as Linear, out x in"
        },
    )
    parts: dict[str, list[str]] | None = field(
        default=None,
        metadata={"help": "of fused projections the parts to adapt, by module name or regex: {qkv_proj: [q, v]}"},
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "names or a regex to leave out"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "indices of adapted layers"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the list of layers"})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules that are trained and saved whole, such as a classifier"}
    )
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None,
        metadata={"help": "rows of the input embeddings to train, or of other embeddings: {module name: rows}"},
    )
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "ranks by module name or regex"})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "alphas by module name or regex"})
    init_weights: bool = field(
        default=True, metadata={"help": "True: phi(W) = W at the start; False: random factors, for tests"}
    )
    save_constants: bool = field(
        default=False,
        metadata={"help": "save the singular vectors with the adapter, so that they are not recomputed on loading"},
    )
    format: int = field(default=FORMAT, metadata={"help": "version of the saved format"})

    def __post_init__(self) -> None:
        check_types(self)
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = SubspaceType.SUBSPACE
        if isinstance(self.target_modules, (list, tuple)):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as peft expects
        if isinstance(self.exclude_modules, (list, tuple)):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check()
        if methods.find(self.method) is not None:  # a saved config has them, too: see save_pretrained
            self.formula = self.starts = None
        self.__dict__["_complete"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _CHECKED or "_complete" not in self.__dict__:
            super().__setattr__(name, value)
            return
        before = getattr(self, name)
        super().__setattr__(name, value)
        try:
            self._check()
        except SubspaceError:
            super().__setattr__(name, before)
            raise

    def __repr__(self) -> str:
        # The call that creates the config.
        given = {
            entry.name: value
            for entry in dataclasses.fields(self)
            if entry.repr
            and entry.name not in ("peft_type", "peft_version")  # they are filled in automatically
            and (value := getattr(self, entry.name)) != (default := default_of(entry))
            and (value or default)  # None counts as empty
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    @property
    def resolved(self) -> Method:
        """The method, registered or made from the formula, with its patterns."""
        registered = methods.find(self.method) if isinstance(self.method, str) else None
        given = (self.method, self.formula, repr(self.starts), repr(self.pattern), self.nonlinearity)
        known: tuple[object, Method | None, Method] | None = self.__dict__.get("_resolved")
        if known is None or known[0] != given or known[1] is not registered:
            known = given, registered, resolve(self, registered)
            self.__dict__["_resolved"] = known
        return known[2]

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns in effect."""
        return patterns_of(self, self.resolved)

    @property
    def penalty_weight(self) -> float:
        """The weight of the patterns that are penalties; 0 if there are none."""
        if not set(self.patterns) & set(PENALTIES):
            return 0.0
        return (
            self.pattern_weight if self.pattern_weight is not None else self.resolved.pattern_weight or PATTERN_WEIGHT
        )

    @property
    def adds_to_loss(self) -> bool:
        """Whether there is a penalty on patterns or gates."""
        return self.penalty_weight > 0 or (self.gate_weight > 0 and self.resolved.formula.has_gates)

    @property
    def schedule_options(self) -> Options | None:
        """The options of the method's schedule, or None if it has none."""
        name = self.resolved.schedule
        return None if name is None else SCHEDULES[name].options_class.read(name, self.schedule or {})

    @property
    def directions(self) -> int:
        """The number of singular directions that the schedule will choose in each matrix."""
        return int(getattr(self.schedule_options, "directions", 0))

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the config as peft does, with a model card that says how to load the adapter.

        Everything that saves an adapter calls this: peft's models, transformers' own saving, and trainers' checkpoints.
        While a Trainer runs, the state of a schedule is saved with it.
        """
        formula, starts = str(self.resolved.formula), dict(self.resolved.starts) or None
        whole = copy.copy(self)
        # So that it loads without the registered method, too; masks are in the file of tensors.
        whole.__dict__.update(formula=formula, starts=starts, positions=None)
        super(SubspaceConfig, whole).save_pretrained(save_directory, **kwargs)
        write_card(save_directory, formula, self.method)
        saved(self, Path(save_directory))

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """Return the fields of a saved config, without a registered method's formula, which is in the file.

        Raises:
            SubspaceError: the registered method has another formula.
        """
        fields: dict[str, Any] = super().from_json_file(path_json_file, **kwargs)
        if methods.find(fields.get("method")) is not None:
            named = {name: fields.get(name) for name in ("method", "formula", "starts", "pattern", "nonlinearity")}
            cls(**{name: value for name, value in named.items() if value is not None})
            fields |= {"formula": None, "starts": None}
        return fields

    def check_assigned(self) -> None:
        """Raise SubspaceError if an option of peft's LoRA was assigned that this config does not have."""
        own = {known.name for known in dataclasses.fields(self)}
        for option in dataclasses.fields(LoraConfig):
            given = self.__dict__.get(option.name)
            if option.name not in own and given and given != option.default:
                raise SubspaceError(
                    f"{option.name} = {given!r} is an option of peft's LoRA, which SubspaceConfig does not have"
                )

    def parts_of(self, name: str) -> list[str] | None:
        """Return the parts of a module that are adapted, None if it is adapted as a whole."""
        patterns = self.parts or {}
        return patterns.get(get_pattern_key(list(patterns), name))

    def scale(self, alpha: float, r: int) -> float:
        """Return s for a matrix."""
        width = max(r, 1)
        return alpha / (width**0.5 if self.rank_stabilised else width)

    def with_choice(self, **choice: Any) -> SubspaceConfig:
        """Return a copy with a choice made from data: ``entries`` and ``positions``, or ``target_modules``."""
        return dataclasses.replace(self, calibrated=True, **choice)

    def _check(self) -> None:
        check_types(self)
        check_values(self, settings(SubspaceConfig), FORMAT)
        check_use(self)
