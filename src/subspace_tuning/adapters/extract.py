"""Extracts the best adapter of a method for a known fine-tune from two checkpoints, one matrix at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..algebra import Sizes
from ..errors import SubspaceError
from ..files import write_json
from ..jobs.folder import parts
from ..methods import Method
from ..models.checkpoint import Checkpoint
from ..theory.approximate import Approximation, approximate
from ..theory.budget import energy_rank, read_budget, spread_ranks
from ..tuner import SubspaceConfig
from ..tuner.budget import allocate, matrix_shape
from ..tuner.exact import exactly
from ..tuner.lora_form import Layout
from ..tuner.targets import check_targets, place, targets
from .adapter import Adapter, SavedLayer, persistent
from .carried import kept_whole, left_out, tensors_of
from .files import check_output, write_adapter
from .measures import ReportRow, row_of, write_report
from .pairs import check_alike, pair, spectrum
from .parts import Part, keep_part, read_part


@dataclass(frozen=True)
class Extraction:
    """The extraction to perform.

    Attributes:
        config: the method and its numbers; by default the targets are its placement.
        energy: if given, each matrix has the lowest rank that keeps this share of its change's energy.
        budget: if given, ranks are allocated over the matrices within this many parameters ("300k", "0.3permille").
    """

    config: SubspaceConfig
    energy: float | None = None
    budget: str | None = None

    def __post_init__(self) -> None:
        if self.energy is not None and not 0 < self.energy <= 1:
            raise SubspaceError(f"energy = {self.energy} is not a share between 0 and 1")
        if self.energy is not None and self.budget is not None:
            raise SubspaceError("give a rank, an energy or a budget, not two of them")
        method = self.config.resolved
        if not method.formula.is_linear or method.formula.wraps_norm:
            raise SubspaceError(
                f"method {method.name!r} cannot be extracted: {method.formula} has a nonlinearity and is not a matrix"
            )
        if method.chooses_form:
            raise SubspaceError(
                f"method {method.name!r} cannot be extracted: it chooses the form of each matrix from data; extract "
                "lora, fishmask or bitfit"
            )
        if (self.energy or self.budget) and not method.formula.has_rank:
            raise SubspaceError(f"method {method.name!r} has no rank for an energy or a budget to choose")


LEFT_OUT = "left_out.json"

SWEEPS, SETTLED = 100, 1e-5  # for methods solved block by block: the last digits of an error are not worth hours


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    wanted: Extraction,
    output: str | Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda what, done, count: None,
) -> list[ReportRow]:
    """Extract an adapter and write it. The same call resumes an interrupted extraction.

    Args:
        base: the frozen model.
        tuned: the fine-tuned one, of the same architecture.
        wanted: the method and its size.
        output: the adapter's folder; it also gets the report as report.json and report.csv, and left_out.json with the
            changes that the adapter does not contain.
        overwrite: replace an existing adapter.
        on_progress: called with the current stage, and the numbers of finished and of all matrices.

    Returns:
        The report: one row per matrix.

    Raises:
        SubspaceError: the checkpoints do not belong together, or a matrix, which the message names, cannot be
            extracted.
    """
    folder = check_output(output, overwrite)
    check_alike(base, tuned)
    config = _placed(base, tuned, wanted)
    modules = [name for name, _ in targets(tuned.model, config)]
    with parts(folder, _job(base, tuned, wanted, modules)) as kept:
        ranks = _ranks(base, tuned, wanted, config, modules, kept, on_progress)
        layers, rows = {}, []
        for number, module in enumerate(modules):
            layers[module], row = _part(base, tuned, config, module, ranks.get(module, config.r), kept)
            rows.append(row)
            on_progress("matrices", number + 1, len(modules))
        lost = left_out(base, tuned, set(modules), config.modules_to_save or [])

        def report(into: Path) -> None:
            write_report(into, rows)
            write_json(into / LEFT_OUT, [one.row() for one in lost])

        write_adapter(folder, _adapter(base, tuned, config, layers, ranks), overwrite, also=report)
    return rows


def _placed(base: Checkpoint, tuned: Checkpoint, wanted: Extraction) -> SubspaceConfig:
    config = dataclasses.replace(wanted.config, modules_to_save=None)
    asked = () if config.target_modules is None else [name for name, _ in targets(tuned.model, config)]
    config.modules_to_save = kept_whole(base, tuned, asked) or None
    place(tuned.model, config)
    if config.resolved.formula.has_rank and wanted.energy is None and wanted.budget is None:
        for name, module in targets(tuned.model, config):
            if config.r > min(matrix_shape(module)):
                raise SubspaceError(
                    f"{name}: rank {config.r} is above min(n, m) = {min(matrix_shape(module))}, the largest of a change"
                )
    check_targets(tuned.model, config)
    if config.resolved.formula.masked:
        config.entries = allocate(config, targets(tuned.model, config))
    return config


def _job(base: Checkpoint, tuned: Checkpoint, wanted: Extraction, modules: list[str]) -> dict[str, Any]:
    """Return everything that the parts depend on."""
    return {
        "base": [str(base.folder), _stamp(base)],
        "tuned": [str(tuned.folder), _stamp(tuned)],
        "config": wanted.config.to_dict(),
        "energy": wanted.energy,
        "budget": wanted.budget,
        "modules": modules,
    }


def _stamp(checkpoint: Checkpoint) -> list[list[Any]]:
    files = sorted({checkpoint.folder / name for name in checkpoint.files.values()})
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _ranks(
    base: Checkpoint,
    tuned: Checkpoint,
    wanted: Extraction,
    config: SubspaceConfig,
    modules: list[str],
    kept: Path,
    on_progress: Callable[[str, int, int], None],
) -> dict[str, int]:
    """Return the rank of every matrix, unless all have the same."""
    if wanted.energy is None and wanted.budget is None:
        return {}
    spectra = {}
    for number, module in enumerate(modules):
        part = read_part(kept, f"spectrum-{number}")
        if part is None:
            W, W_star = pair(base, tuned, module)
            part = Part({"values": spectrum(W_star - W)}, {})
            keep_part(kept, f"spectrum-{number}", part)
        spectra[module] = part.tensors["values"]
        on_progress("spectra", number + 1, len(modules))
    if wanted.energy is not None:
        return {module: energy_rank(values, wanted.energy) for module, values in spectra.items()}
    assert wanted.budget is not None
    total = sum(parameter.numel() for parameter in tuned.model.parameters())
    method, shapes = config.resolved, {module: base.matrix_shape(module) for module in modules}

    def cost(module: str, rank: int) -> int:
        return method.formula.count(Sizes(*shapes[module], rank))

    return spread_ranks(spectra, cost, read_budget(wanted.budget, total))


def _part(
    base: Checkpoint, tuned: Checkpoint, config: SubspaceConfig, module: str, rank: int, kept: Path
) -> tuple[SavedLayer, ReportRow]:
    """Approximate one matrix, or read the result kept by an earlier call."""
    method = config.resolved
    scale = config.scale(config.alpha, config.r)  # the same for all ranks: the factors absorb any scale
    part = read_part(kept, module)
    if part is None:
        started = time.perf_counter()
        try:
            found, W, W_star = _approximated(base, tuned, config, method, module, rank, scale)
        except SubspaceError as error:
            raise SubspaceError(f"{module}: {error}") from None
        row = row_of(module, rank, found, W, W_star, time.perf_counter() - started)
        tensors = {f"parameters.{name}": tensor for name, tensor in found.parameters.items()}
        tensors |= {f"constants.{name}": tensor for name, tensor in persistent(method, found.constants).items()}
        part = Part(tensors, row)
        keep_part(kept, module, part)
    held: dict[str, dict[str, Tensor]] = {"parameters": {}, "constants": {}}
    for key, tensor in part.tensors.items():
        kind, _, name = key.partition(".")
        held[kind][name] = tensor
    return SavedLayer(module, method, rank, scale, held["parameters"], held["constants"]), dict(part.row)


def _approximated(
    base: Checkpoint,
    tuned: Checkpoint,
    config: SubspaceConfig,
    method: Method,
    module: str,
    rank: int,
    scale: float,
) -> tuple[Approximation, Tensor, Tensor]:
    W, W_star = pair(base, tuned, module)
    biases = (base.bias(module), tuned.bias(module)) if method.formula.names_bias else (None, None)
    bias, bias_star = (None if one is None else one.double() for one in biases)
    found = approximate(
        method,
        W,
        W_star,
        r=rank,
        scale=scale,
        bias=bias,
        bias_star=bias_star,
        entries=config.entries[module][0] if config.entries else None,
        directions=config.directions or None,
        sweeps=SWEEPS,
        settled=SETTLED,
    )
    return found, W, W_star


def _adapter(
    base: Checkpoint,
    tuned: Checkpoint,
    config: SubspaceConfig,
    layers: Mapping[str, SavedLayer],
    ranks: Mapping[str, int],
) -> Adapter:
    method = config.resolved
    every = (name for name, _ in tuned.model.named_modules())
    layouts = {name: Layout.of(tuned.module(name)) for name in layers}
    config = dataclasses.replace(
        config,
        target_modules=exactly(layers, every),
        layouts={name: layout.written() for name, layout in layouts.items() if layout != Layout()},
    )
    if ranks:
        highest = max(ranks.values())
        config.r, config.alpha = highest, next(iter(layers.values())).scale * highest
        config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != highest}
        config.alpha_pattern = {name: layers[name].scale * rank for name, rank in config.rank_pattern.items()}
    if method.formula.masked:
        entries = {name: int(layer.constants[method.formula.masked[0]].numel()) for name, layer in layers.items()}
        config.entries = {name: [count, *base.matrix_shape(name)] for name, count in entries.items()}
        config.calibrated = True
    saved = {}
    for module in config.modules_to_save or []:
        for name in tensors_of(tuned, module):
            found = tuned.find(name)
            if found is not None:
                saved[name] = tuned.read(found)
    return Adapter(config, layers, saved, str(base.folder), tuned.name)
