"""How many entries a mask may have in each matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import Tensor, nn

from ..errors import SubspaceError
from .config import SubspaceConfig
from .kinds import kind_of
from .layer import SubspaceLayer
from .part import ParameterPart
from .weights import outline


def allocate(config: SubspaceConfig, found: Sequence[tuple[str, nn.Module]]) -> dict[str, list[int]]:
    """Allocate a budget over matrices in proportion to their sizes. Raises SubspaceError if it exceeds their sum."""
    shapes = {name: matrix_shape(module) for name, module in found}
    sizes = [n * m for n, m in shapes.values()]
    budget = budget_of(config, sum(sizes))
    ends = [round(end * budget / sum(sizes)) for end in accumulate(sizes)]
    shares = (end - start for start, end in zip([0, *ends], ends, strict=False))
    return {name: [share, *shape] for (name, shape), share in zip(shapes.items(), shares, strict=True)}


def budget_of(config: SubspaceConfig, total: int) -> int:
    """Return a config's budget as a number of entries. Raises SubspaceError if it exceeds ``total``."""
    budget = config.budget if config.budget is not None else config.resolved.budget
    assert budget is not None
    number = budget if isinstance(budget, int) else max(1, round(budget * total))
    if number > total:
        raise SubspaceError(f"budget = {number:,} is above the {total:,} entries of the adapted matrices")
    return number


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """Return n and m of a module's W, or of each W of a stack."""
    kind = kind_of(module)
    assert kind is not None
    *_, n, m = kind.held(module).shape if kind.opaque else kind.matrix(outline(module.weight)).shape  # type: ignore[arg-type]
    return n, m


def copies(module: nn.Module) -> int:
    """Return how many matrices a module holds: the experts of one parameter, else 1."""
    return len(module.weight) if isinstance(module, ParameterPart) and module.weight.dim() == 3 else 1


def entries_in(config: SubspaceConfig, name: str, layer: SubspaceLayer) -> int:
    """Return how many entries of a matrix are trained. Raises SubspaceError if they were chosen for another matrix."""
    if not config.entries or name not in config.entries:
        return 0
    entries, *shape = config.entries[name]
    here = [layer.in_features, layer.out_features]
    if shape != here:
        mask = config.resolved.formula.masked[0]
        raise SubspaceError(
            f"{name}: the adapter's factor {mask} has the shape {tuple(shape)}, here it needs {tuple(here)}: it was "
            "trained on another base model"
        )
    return entries


def entries_of(
    config: SubspaceConfig, state: Mapping[str, Tensor], prefix: str, modules: Mapping[str, nn.Module]
) -> dict[str, list[int]]:
    """Read the numbers of entries under the config's masks from saved factors."""
    sparse, found = {entries for _, entries in config.resolved.formula.sparse}, {}
    for key, tensor in state.items():
        name, _, rest = key.partition(f".{prefix}params.")
        if rest.split(".")[-1] in sparse and name in modules:
            found[name] = [len(tensor), *matrix_shape(modules[name])]
    return found
