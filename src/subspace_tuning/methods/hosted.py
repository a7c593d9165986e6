"""Methods that are rows put before W, [P; W]: peft has them, and this package runs them as peft's own classes.

They are listed, counted and trained by name like the others; there is no second implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import SubspaceError
from .method import AnyMethod, Method


@dataclass(frozen=True)
class Hosted(AnyMethod):
    """A method of peft's: the name of its config class there, and what the catalogue says of it.

    ``size`` is the field of the class that the rank r stands for; ``parallel`` says that parallel adapters of that
    width come to the feed-forward blocks.
    """

    name: str
    config: str
    size: str
    formula: str
    count: str
    citation: str
    description: str
    learning_rate: float
    category: str = "reconstruction"
    mode: str = "complex singular vectors"
    parallel: bool = False

    @property
    def merges(self) -> bool:
        """Whether what is trained can be written into the weights: rows before W are none of them."""
        return False

    @property
    def on_matrices(self) -> Method:
        """Raises SubspaceError."""
        raise SubspaceError(
            f"method {self.name!r} is no formula over one matrix: use peft's {self.config}, or `subspace train`"
        )

    def facts(self) -> dict[str, str]:
        """Return what there is to tell of the method, by keyword."""
        return {
            "method": self.name,
            "formula": self.formula,
            "category": f"{self.category}, {self.mode}",
            "parameters": self.count,
            "runs as": f"peft's {self.config}",
            "learning rate": f"{self.learning_rate:g}",
            "citation": self.citation,
        }


_P = "[P; W]"
HOSTED = {
    known.name: known
    for known in (
        Hosted(
            "mam",
            "PrefixTuningConfig",
            "num_virtual_tokens",
            "[P; W] in attention, W + A @ relu @ B in the feed-forward block",
            "2 * layers * hidden * r + r * (n + m) per feed-forward matrix",
            "arXiv:2110.04366",
            "Mix-and-match: prefix tuning for the attention, parallel adapters of width r on the feed-forward block.",
            1e-3,
            category="extension",
            mode="adapter",
            parallel=True,
        ),
        Hosted(
            "p_tuning",
            "PromptEncoderConfig",
            "num_virtual_tokens",
            _P,
            "r * hidden and an encoder of P",
            "arXiv:2103.10385",
            "Put r trained rows, which a small network makes, before the input's embeddings.",
            1e-3,
        ),
        Hosted(
            "prefix_tuning",
            "PrefixTuningConfig",
            "num_virtual_tokens",
            _P,
            "2 * layers * hidden * r",
            "arXiv:2101.00190",
            "Put r trained rows before the keys and the values of every attention.",
            5e-3,
        ),
        Hosted(
            "prompt_tuning",
            "PromptTuningConfig",
            "num_virtual_tokens",
            _P,
            "r * hidden",
            "arXiv:2104.08691",
            "Put r trained rows before the input's embeddings.",
            3e-2,
        ),
    )
}


def hosted() -> Iterator[Hosted]:
    """Yield the methods that are peft's own, by name."""
    return iter(HOSTED.values())
