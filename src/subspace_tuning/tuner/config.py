"""The one configuration: which formula, how large, where."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import cached_property

from peft import PeftConfig

from .. import methods
from ..algebra import parse
from ..errors import SubspaceError
from ..methods import Method

FORMAT = 1  # of the saved adapter; raised when an older version could not read it right
PATTERNS = ("orthogonal", "diagonal", "nonlinear")


class SubspaceType(str, enum.Enum):
    """The peft type of every adapter of this package."""

    SUBSPACE = "SUBSPACE"


@dataclass
class SubspaceConfig(PeftConfig):
    """Configuration of a subspace adapter, for every registered method and every formula.

    >>> SubspaceConfig(method="ssb", target_modules=["query", "value"])
    >>> SubspaceConfig(formula="D1 @ W @ D2 + s * A @ B", r=4)

    Raises:
        SubspaceError: an unknown method, a formula that cannot be read or has no start, a number out of range.
    """

    method: str | None = field(default=None, metadata={"help": "the name of a registered method"})
    formula: str | None = field(default=None, metadata={"help": "phi(W) in the formula language, instead of a method"})
    starts: dict[str, str] | None = field(
        default=None, metadata={"help": "how factors of a formula start, where its form does not tell: {name: start}"}
    )
    r: int = field(default=8, metadata={"help": "the rank, or the width of a bottleneck"})
    alpha: float = field(default=16.0, metadata={"help": "the scale is s = alpha / r"})
    dropout: float = field(default=0.0, metadata={"help": "dropout on the input of the added terms"})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "module name suffixes, a regex, or 'all-linear'; None: the method's placement in this model"},
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "names or a regex to leave out"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "indices of adapted layers"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the list of layers"})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules that are trained and saved whole, such as a classifier"}
    )
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "ranks by module name or regex"})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "alphas by module name or regex"})
    init_weights: bool = field(
        default=True, metadata={"help": "True: phi(W) = W at the start; False: random factors, for tests"}
    )
    save_constants: bool = field(
        default=False,
        metadata={
            "help": "save the singular vectors with the adapter: no other decomposition of W then takes their place"
        },
    )
    format: int = field(default=FORMAT, metadata={"help": "version of the saved form"})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = SubspaceType.SUBSPACE
        if isinstance(self.target_modules, (list, tuple)):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as peft expects
        if isinstance(self.exclude_modules, (list, tuple)):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check()
        # Saved with the adapter, so that it loads where a person's own method is not registered.
        self.formula = str(self.resolved.formula)
        self.starts = dict(self.resolved.starts) or None

    @cached_property
    def resolved(self) -> Method:
        """The method: the registered one, or the one that the formula makes."""
        if self.method is None and self.formula is None:
            raise SubspaceError("give a method (see `subspace methods`) or a formula")
        if self.formula is None or self.method in {known.name for known in methods.every()}:
            known = methods.get(self.method or "")
            if self.formula is not None and parse(self.formula) != known.formula:
                raise SubspaceError(
                    f"method {known.name!r} is {known.formula} here, not {self.formula}: the adapter comes from "
                    "another version, or both a method and a formula are given"
                )
            if self.starts and self.starts != dict(known.starts):
                own_starts = ", ".join(f"{name} at {start}" for name, start in known.starts.items()) or "inferred ones"
                raise SubspaceError(f"starts go with a formula; method {known.name!r} has its own ({own_starts})")
            return known
        own = methods.from_formula(self.formula, self.starts, self.method or "formula")
        own.check_start()
        return own

    def _check(self) -> None:
        if not isinstance(self.format, int) or self.format > FORMAT:
            raise SubspaceError(
                f"the adapter is of format {self.format}, saved by a newer version of subspace-tuning; this version "
                f"reads up to {FORMAT}: upgrade it"
            )
        for name, rank in {"r": self.r, **self.rank_pattern}.items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise SubspaceError(f"the rank {name} = {rank!r} is not a positive whole number")
        for name, alpha in {"alpha": self.alpha, **self.alpha_pattern}.items():
            if not isinstance(alpha, (int, float)) or not 0 < alpha < float("inf"):
                raise SubspaceError(f"the scale {name} = {alpha!r} is not a positive number")
        if not isinstance(self.dropout, (int, float)) or not 0.0 <= self.dropout < 1.0:
            raise SubspaceError(f"dropout = {self.dropout!r} is not in [0, 1)")
        if self.layers_pattern and self.layers_to_transform is None:
            raise SubspaceError("layers_pattern goes with layers_to_transform")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise SubspaceError(
                f"layers_to_transform selects among listed target_modules, not among the matches of "
                f"{self.target_modules!r}: list them, or name the layers in the regex"
            )
        _ = self.resolved
