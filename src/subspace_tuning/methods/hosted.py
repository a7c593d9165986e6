"""Methods that are rows put before W, [P; W]: peft has them, and this package runs them as peft's own classes.

They are listed and counted like the others, and `subspace train` takes their names; there is no second implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Hosted:
    """A method of peft's: the name of its config class there, and what the catalogue says of it.

    ``size`` is the field of the class that the rank r stands for.
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
