"""The tables of a comparison: scores in the paper's layout, differences, ranks, and claims with their verdicts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import SubspaceError
from ..files import check_folder, write_text, written
from .claims import Claim, applicable, paper_claims
from .differences import differences
from .items import items_intervals
from .published import SOURCE, paper_results
from .ranks import ranks
from .results import Results
from .summary import summary
from .text_tables import Table
from .verdicts import as_frame, verdicts

FORMATS = ("md", "tex", "csv", "parquet")


def write_tables(
    results: Results,
    folder: str | Path,
    formats: Sequence[str] = FORMATS,
    *,
    baseline: str | None = None,
    claims: Sequence[Claim] | None = None,
    items: bool = False,
) -> list[Path]:
    """Write the tables of a comparison and return their paths.

    ``scores`` has the means, in Markdown and LaTeX one table per model with the tasks as columns; ``differences`` those
    from the baseline; ``ranks`` the mean ranks of rows with the same budgets, or why there are none; ``claims`` the
    verdicts, beside those by the paper's own tables; ``items`` the differences with their intervals over new seeds and
    new test items.

    Args:
        results: the runs.
        folder: where they are written; it is made if it does not exist.
        formats: endings, some of ``FORMATS``.
        baseline: the row from which differences are taken; without it there are none.
        claims: the claims; by default those of the paper whose rows are all there.
        items: whether to write ``items``, which takes seconds for every row, task and model.

    Raises:
        SubspaceError: a format is unknown, the folder cannot be written, nothing is done, or a claim or the baseline is
            about a row that is not there.
    """
    unknown = [ending for ending in formats if ending not in FORMATS]
    if unknown:
        raise SubspaceError(f"format {unknown[0]!r} is unknown; known: {', '.join(FORMATS)}")
    if not results.rows:
        raise SubspaceError("no reported run is done: there is nothing to put into tables")
    place = check_folder(Path(folder))
    parts = dict(_parts(results, baseline, claims))
    if items and baseline is not None:
        frame = items_intervals(results, baseline)
        title = f"Differences from {baseline}, over new seeds and new test items"
        parts["items"] = frame, [_plain(title, frame.drop(columns="baseline"))]
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for (name, (frame, tables)), ending in itertools.product(parts.items(), formats):
        paths.append(place / f"{name}.{ending}")
        _write(paths[-1], frame, tables)
    return paths


def _write(path: Path, frame: pd.DataFrame, tables: Sequence[Table]) -> None:
    if path.suffix in (".md", ".tex"):
        write_text(path, "\n".join(one.markdown() if path.suffix == ".md" else one.latex() for one in tables))
        return
    with written(path) as file:
        if path.suffix == ".csv":
            frame.to_csv(file, index=False)
        else:
            frame.to_parquet(file, engine="pyarrow", index=False)


def _parts(
    results: Results, baseline: str | None, claims: Sequence[Claim] | None
) -> Iterator[tuple[str, tuple[pd.DataFrame, list[Table]]]]:
    means = summary(results)
    yield "scores", (means, [score_table(results, means, model) for model in dict.fromkeys(means["model"])])
    if baseline is not None:
        frame = differences(results, baseline)
        title = f"Differences from {baseline}, paired over seeds"
        left_out = ["baseline", "trained_baseline", *([] if frame["note"].any() else ["note"])]
        yield "differences", (frame, [_plain(title, frame.drop(columns=left_out))])
    yield "ranks", _rank_tables(results)
    wanted = applicable(paper_claims(), results.rows)[0] if claims is None else claims
    if wanted:
        frame, table = claim_table(results, wanted)
        yield "claims", (frame, [table])


def _rank_tables(results: Results) -> tuple[pd.DataFrame, list[Table]]:
    """Return the mean ranks of the rows that were run at the same budgets, or why there are none."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for row in results.rows:
        known = {cell.budget for name, cell in results.lines if name == row and cell.budget is not None}
        groups.setdefault(tuple(sorted(known)), []).append(row)
    frames, tables = [], []
    for budgets, rows in groups.items():
        where = f"at budgets {', '.join(f'{budget:,.10g}' for budget in budgets)}" if budgets else "without a budget"
        frame, note = _ranked(results, rows)
        frames.append(frame.assign(rows=where))
        tables.append(_plain(f"Mean ranks over tasks of rows {where}", frame, [note]))
    return pd.concat(frames, ignore_index=True), tables


def _ranked(results: Results, rows: Sequence[str]) -> tuple[pd.DataFrame, str]:
    try:
        found = ranks(results, rows)
    except SubspaceError as error:
        frame = pd.DataFrame({"row": pd.Series(dtype=str), "rank": pd.Series(dtype=float)})
        return frame, f"{str(error)[0].upper()}{str(error)[1:]}."
    return found.mean.rename_axis("row").reset_index(name="rank"), (
        f"Rank 1 is the best. Friedman's p is {found.p:.2g} over {found.blocks} blocks, "
        f"Nemenyi's critical difference {found.critical_difference:.2f}."
    )


def score_table(results: Results, means: pd.DataFrame, model: str) -> Table:
    """Return the scores on one model in the paper's layout: methods by tasks, with the best of each budget in bold.

    Args:
        results: the runs.
        means: their ``summary``.
        model: the model.
    """
    here = means[means["model"] == model].sort_values("budget", kind="stable", na_position="first")
    tasks = list(dict.fromkeys(here["task"]))
    shares = (results.reported["score"].abs() <= 1).all()
    lines: list[tuple[str, ...]] = []
    bold, notes = set(), dict[str, None]()
    for _, group in here.groupby(["budget", "row"], dropna=False, sort=False):
        first, texts = group.iloc[0], {}
        for entry in group.to_dict("records"):
            texts[entry["task"]] = _score(entry, 100 if shares else 1)
            if entry["best"]:
                bold.add((len(lines), 4 + tasks.index(entry["task"])))
        budget = _number(first["budget"], ",.10g")
        start = (first["row"], budget, _number(first["trained"], ",.0f"), _number(first["per_mille"], ".2f"))
        lines.append((*start, *(texts.get(task, "") for task in tasks)))
        if first["note"]:
            where = f" at budget {budget}" if budget else " among rows without a budget"
            notes[f"No best{where}: {first['note']}."] = None
    seeds = " to ".join(dict.fromkeys(f"{count}" for count in (here["seeds"].min(), here["seeds"].max())))
    first_note = f"{'Scores x 100' if shares else 'Scores'}: means with 95 % intervals over {seeds} seeds."
    header = ("row", "budget", "trained", "‰", *tasks)
    return Table(model, header, tuple(lines), frozenset(bold), notes=(first_note, *notes))


def _score(entry: Mapping[Hashable, Any], factor: int) -> str:
    digits = 2 if factor == 100 else 4
    mean, half = factor * entry["mean"], factor * (entry["high"] - entry["low"]) / 2
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def claim_table(results: Results, claims: Sequence[Claim]) -> tuple[pd.DataFrame, Table]:
    """Return claims with their verdicts, beside those by the paper's own tables where these have the rows."""
    published = paper_results()
    printed = {one.claim: one for one in verdicts(published, applicable(claims, published.rows)[0], "cells")}
    frame = as_frame(verdicts(results, claims))
    frame["paper_verdict"] = [printed[claim].verdict if claim in printed else "" for claim in claims]
    frame["paper_figure"] = [printed[claim].figure if claim in printed else "" for claim in claims]
    lines = tuple(
        (line["claim"], line["verdict"], line["figure"], line["paper_verdict"], line["paper_figure"])
        for line in frame.to_dict("records")
    )
    header = ("claim", "verdict", "figure", "the paper's tables", "their figure")
    note = f"The paper's tables are {SOURCE}: one score per task, judged by sign tests."
    return frame, Table("Claims", header, lines, wide=frozenset({0, 1, 2, 3, 4}), notes=(note,))


def _plain(title: str, frame: pd.DataFrame, notes: Sequence[str] = ()) -> Table:
    """Return a frame as a table of texts."""
    lines = [tuple(_text(name, value) for name, value in line.items()) for line in frame.to_dict("records")]
    return Table(title, tuple(map(str, frame.columns)), tuple(lines), notes=tuple(notes))


def _text(name: Hashable, value: Any) -> str:
    if isinstance(value, str):
        return value
    if str(name).startswith("p_") or name == "p":
        return _number(value, ".2g")
    return _number(value, ",.10g" if name in ("budget", "trained", "seeds") else ".4f")
