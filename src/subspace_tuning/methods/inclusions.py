"""Which methods a formula contains as special cases, and which contain it: declared, or found by substitution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ..algebra import names
from ..algebra.special import form_of, is_any_matrix, special_cases
from .method import Method
from .registry import every


@dataclass(frozen=True)
class Inclusion:
    """A method that contains or is contained in another, and how that is known.

    ``values`` are the values of factors in the wider method; with ``through`` it follows from another inclusion.
    """

    method: str
    how: str
    values: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        values = ", ".join(f"{name} = {value}" for name, value in self.values.items())
        return f"{self.how}: {values}" if values else self.how


DECLARED, FOUND, THROUGH = "declared", "found by substitution", "through"
ANY_MATRIX = "phi(W) can be any n x m matrix"


def same_form(method: Method) -> tuple[str, ...]:
    """Return the other methods with the same formula up to names; masks, schedules or starts may differ."""
    own = form_of(method.formula)
    return tuple(known.name for known in _others(method) if form_of(known.formula) == own)


def contained_in(method: Method) -> tuple[Inclusion, ...]:
    """Return the methods that are special cases of one, as sets of maps phi(W) at the same rank."""
    known = {one.name: one for one in (*every(), method)}
    declared = _declared(method.name, lambda name: known[name].includes if name in known else {})
    return _all(method, declared, lambda other: _inclusion(other.name, method, other))


def containing(method: Method) -> tuple[Inclusion, ...]:
    """Return the methods that contain one as a special case."""
    declared = _declared(
        method.name, lambda name: {known.name: known.includes[name] for known in every() if name in known.includes}
    )
    return _all(method, declared, lambda other: _inclusion(other.name, other, method))


def _all(
    method: Method, declared: Mapping[str, Inclusion], find: Callable[[Method], Inclusion | None]
) -> tuple[Inclusion, ...]:
    same = same_form(method)
    found = (declared.get(known.name) or find(known) for known in _others(method) if known.name not in same)
    return tuple(inclusion for inclusion in found if inclusion is not None)


def _others(method: Method) -> Iterator[Method]:
    return (known for known in every() if known.name != method.name)


def _declared(name: str, steps: Callable[[str], Mapping[str, Mapping[str, str]]]) -> dict[str, Inclusion]:
    """Follow the declared inclusions from a method on."""
    found: dict[str, Inclusion] = {}
    reached = [name]
    for current in reached:
        for other, values in steps(current).items():
            if other not in found and other != name:
                how, given = (DECLARED, values) if current == name else (f"{THROUGH} {current}", {})
                found[other] = Inclusion(other, how, given)
                reached.append(other)
    return found


def _inclusion(name: str, wider: Method, narrower: Method) -> Inclusion | None:
    """Return how one method's form contains the other's, or None if that is not found."""
    values = special_cases(wider.formula).get(form_of(narrower.formula))
    if values is not None and _starts_alike(wider, narrower):
        ordered = {factor: values[factor] for factor in wider.formula.trainable if factor in values}
        return Inclusion(name, f"{FOUND}, with the same mask" if narrower.formula.masked else FOUND, ordered)
    matrix = narrower.formula.is_linear and narrower.formula.bias is None and not narrower.formula.wraps_norm
    return Inclusion(name, ANY_MATRIX) if matrix and is_any_matrix(wider.formula) else None


def _starts_alike(*both: Method) -> bool:
    """Return whether the subtracted starts are the same: PiSSA's and MiLoRA's are different parts of W."""
    started = [{names.started(name) for name in one.formula.shapes} - {None} for one in both]
    first, second = (
        sorted(start for name, start in one.starts_for().items() if name in own)
        for one, own in zip(both, started, strict=True)
    )
    return first == second
