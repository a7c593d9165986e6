"""Explanations as text, wrapped to a width. Nothing is truncated."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from .explanation import Advice, Cost, Explanation, Part
from .inclusions import Inclusion

_WIDTH, _NARROW = 80, 40
_TOGETHER = re.compile(r" (?=[x=] \w)|(?<= [x=]) (?=\w)")  # 768 x 768 and r = 8 stay in one line
_WAYS = {
    "fused": "with the hand-written kernel",
    "composed": "in a few torch operations",
    "planned": "in this order",
    "formed": "with phi(W) formed first",
    "as written": "as written",
}


def rendered(explanation: Explanation, width: int = _WIDTH) -> str:
    """Return an explanation in lines of at most ``width`` characters."""
    rows = list(_rows(explanation))
    indent = max(len(label) for label, _ in rows) + 2
    return "\n".join(_wrapped(label, text, indent, width) for label, text in rows)


def brief(explanation: Explanation, width: int = _WIDTH) -> str:
    """Return the essentials of a formula while it is being typed: shapes, starts, count, or the error."""
    rows = [row for row in _rows(explanation) if row[0].split()[0] in ("problem", "formula", "merges", "trained")]
    rows += [("count", explanation.count), *(("advice", _advice(one)) for one in explanation.advice)]
    indent = max(len(label) for label, _ in rows) + 2
    return "\n".join(_wrapped(label, text, indent, width) for label, text in rows)


def _wrapped(label: str, text: str, indent: int, width: int) -> str:
    joined = _TOGETHER.sub("\N{NO-BREAK SPACE}", text)
    if width < _NARROW:
        lines = textwrap.wrap(f"{label}: {joined}", max(width, 1), break_on_hyphens=False)
    else:
        wrapped = textwrap.wrap(joined, width - indent, break_on_hyphens=False)
        lines = [f"{label if number == 0 else '':{indent}}{line}" for number, line in enumerate(wrapped)]
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _rows(explanation: Explanation) -> Iterator[tuple[str, str]]:
    if explanation.problem:
        yield "problem", explanation.problem
    yield "formula", explanation.formula
    yield "LaTeX", explanation.latex
    if explanation.name != "formula":
        yield "method", explanation.name
    if explanation.same:
        yield "same form", f"{', '.join(explanation.same)}; masks, starts, schedules or patterns may differ"
    yield "category", explanation.category
    yield "merges", explanation.merges
    if explanation.convolution:
        yield "on images", explanation.convolution
    for part in explanation.parts:
        yield f"trained {part.name}" if part.trained else f"frozen {part.name}", _part(part)
    yield "count", f"{explanation.count} = {explanation.trained:,}, {_size(explanation)}"
    if explanation.model is not None:
        model = explanation.model
        sizes = ", ".join(f"{number} of {n} x {m}" for n, m, number in model.shapes)
        yield (
            "in the model",
            f"{model.matrices} matrices ({sizes}), {model.trainable:,} of {model.total:,} parameters trained: "
            f"{model.per_mille:.3f} per mille",
        )
    for label, inclusions in (("contains", explanation.contains), ("contained in", explanation.contained)):
        for text in _grouped(inclusions):
            yield label, text
    if explanation.cost is not None:
        yield from _cost(explanation.cost, _size(explanation))
    for advice in explanation.advice:
        yield "advice", _advice(advice)


def _part(part: Part) -> str:
    shape = " x ".join(part.shape) or "a number"
    numbers = f" = {' x '.join(f'{number:,}' for number in part.size)}" if part.size else ""
    start = f"starts at {part.start}" if part.start else "its start is unknown"
    offset = "; stored as the offset from its start" if part.offset else ""
    return f"{shape}{numbers}, {start if part.trained else part.meaning}{offset}"


def _size(explanation: Explanation) -> str:
    rank = f", r = {explanation.rank}" if any("r" in part.shape for part in explanation.parts) else ""
    return f"for {explanation.n} x {explanation.m}{rank}"


def _grouped(inclusions: Sequence[Inclusion]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for inclusion in inclusions:
        by_reason.setdefault(str(inclusion), []).append(inclusion.method)
    for reason, methods in by_reason.items():
        yield f"{', '.join(methods)} ({reason})"


def _cost(cost: Cost, size: str) -> Iterator[tuple[str, str]]:
    brackets = ", brackets formed first" if cost.way == "planned" and "[" in cost.evaluation else ""
    yield "plan", f"{cost.evaluation}, {_WAYS[cost.way]}{brackets}; {cost.rows:,} rows {size}"
    change = "adds" if cost.multiply_adds >= 0 else "saves"
    yield (
        "cost",
        f"{cost.beside_frozen:.2f} times the frozen layer's training step, {cost.beside_lora:.2f} times LoRA's of the "
        f"same rank (estimates); it {change} {abs(cost.multiply_adds):,.0f} multiply-adds a row, LoRA adds "
        f"{cost.lora_multiply_adds:,.0f}; it trains {cost.trained_beside_lora:.3f} times as many numbers as LoRA",
    )


def _advice(advice: Advice) -> str:
    what = ", ".join(advice.gone)
    adds = "adds" if len(advice.gone) == 1 else "add"
    new = "" if re.search(rf"\b{re.escape(advice.kept)}\b", advice.before) else "a new factor "
    fewer = f"{advice.after} trains {advice.trained_after:,} numbers instead of {advice.trained_before:,}"
    serves = f"; they are kept apart by {advice.serves}" if advice.serves else ""
    return f"{what} {adds} nothing to what phi(W) can be: {new}{advice.kept} can be {advice.value}; {fewer}{serves}"
