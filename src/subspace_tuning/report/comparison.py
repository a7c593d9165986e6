"""The report of a comparison: from its store to tables and a page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .. import tasks
from ..comparison.store import Store
from ..errors import SubspaceError
from ..files import check_folder
from ..models.meta import architecture_of
from ..statistics import (
    Claim,
    Results,
    applicable,
    differences,
    paper_claims,
    paper_results,
    verdicts,
    write_tables,
)
from ..statistics import Verdict as Judged
from ..statistics.results import Scorer
from ..training.config import from_values
from .page import Page, Verdict, write_page

if TYPE_CHECKING:
    import pandas as pd

PAGE = "index.html"
_NAMED = "config"


def write_report(
    path: str | Path,
    folder: str | Path,
    formats: Sequence[str],
    *,
    baseline: str | None = None,
    claims: Sequence[Claim] | None = None,
    items: bool = False,
    title: str | None = None,
) -> tuple[list[Path], list[Judged]]:
    """Write the tables and the page of a comparison.

    Args:
        path: the store.
        folder: where the files are written; it is made if it does not exist.
        formats: the formats of the tables, as in ``write_tables``.
        baseline: the row from which differences are taken; by default the first one.
        claims: the claims that are judged; by default those of the paper whose rows are all there.
        items: whether to write intervals over new test items as well, as in ``write_tables``.
        title: the title of the page; by default the store's name.

    Returns:
        The files, the page last, and the verdicts.

    Raises:
        SubspaceError: there is no such store, no reported run is done, the folder cannot be written, or the baseline or
            a claim is about a row that is not there.
    """
    place, store = check_folder(Path(folder).expanduser()), Store(path)
    results = results_of(store)
    if not results.rows:
        raise SubspaceError(f"store {str(path)!r} has no reported run that is done: finish `subspace compare` first")
    baseline = results.rows[0] if baseline is None else baseline
    claims = applicable(paper_claims(), results.rows)[0] if claims is None else claims
    judged = verdicts(results, claims)
    files = write_tables(results, place, formats, baseline=baseline, claims=claims, items=items)
    page = Page(
        results.runs,
        store.config,
        store.curve,
        [Verdict(one.claim.claim, one.verdict, one.figure, one.claim.source) for one in judged],  # type: ignore[arg-type]
        differences(results, baseline),
        _published(results),
        results.smaller_is_better,
        title or Path(path).stem,
    )
    write_page(page, place / PAGE)
    return [*files, place / PAGE], judged


def results_of(store: Store) -> Results:
    """Return what a store has for the statistics."""
    frame = store.frame()
    first = frame.drop_duplicates("task").set_index("task")["run"]

    @cache
    def scorer(task: str) -> Scorer:
        section = from_values(_NAMED, {**store.config(first[task]), "output": _NAMED}).task
        model = store.config(first[task])["model"]
        known = tasks.get(section.name).configured(section.options).for_model(architecture_of(model))
        return known.prepare(section.data)[0].resampled

    return Results(frame, store.outcomes, scorer, store.smaller_is_better())


def _published(results: Results) -> pd.DataFrame | None:
    """Return the paper's scores of the rows and tasks of the same names, if there are any."""
    printed = paper_results().runs
    names = results.reported[["row", "task"]].drop_duplicates()
    found = printed.merge(names, on=["row", "task"])
    if found.empty:
        return None
    ranks = found["budget"].map(lambda budget: f", LoRA's rank {budget:g}" if budget > 0 else "")
    return found.assign(source="the paper, " + found["model"] + ranks)[["task", "row", "source", "score"]]
