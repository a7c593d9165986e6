"""The HTML file: one template with its style, its scripts and its data."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import provenance
from ...extras import needs
from ...files import check_file, write_text
from .compact import config_columns, curve_columns, frame_columns
from .contents import INTERVALS, PUBLISHED, RUNS, Page
from .summary import ENTRY, LEVEL, averages, cells, entries

if TYPE_CHECKING:
    import pandas as pd

_SCRIPTS = ("data.js", "table.js", "specs.js", "charts.js", "values.js", "page.js")
AS_GIVEN = "as given"


def write_page(page: Page, path: str | Path) -> Path:
    """Write a page to a file and return its path.

    The file needs no other and loads nothing. Texts of the results are data: no name, formula or value in them becomes
    markup, and the page's content security policy runs its own scripts alone.

    Args:
        page: the results.
        path: the file; an existing one is replaced.

    Raises:
        SubspaceError: the file cannot be written, or packages of the extra ``report`` are not installed.
    """
    file = check_file(Path(path))
    write_text(file, document(page))
    return file


def document(page: Page) -> str:
    """Return the page's HTML."""
    scripts = [_inline(_library()), _inline("\n".join(map(_packaged, _SCRIPTS)))]
    parts = {
        "policy": " ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        "title": html.escape(page.title).encode("ascii", "xmlcharrefreplace").decode(),
        "style": _packaged("page.css"),
        # Valid JSON, and nothing in it can end the element.
        "data": json.dumps(_data(page), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "library": scripts[0],
        "script": scripts[1],
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _packaged("page.html"))


@cache
def _library() -> str:
    """Return Vega-Lite, Vega and their embedding as one script."""
    needs("the page of a comparison", "report", "vl-convert-python")
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _data(page: Page) -> dict[str, Any]:
    runs = _chosen(page.runs, RUNS, "error").reset_index(drop=True)
    lines = entries(runs)
    numbered = runs.merge(lines[ENTRY].rename_axis("entry").reset_index(), on=ENTRY, how="left")
    names = list(runs["run"].unique())  # in the order in which the column of the runs has them
    return {
        "version": provenance.versions()["subspace-tuning"],
        "level": LEVEL,
        "as_given": AS_GIVEN,
        "smaller": sorted(page.smaller_is_better),
        "verdicts": [vars(one) for one in page.verdicts],
        "entries": frame_columns(lines),
        "cells": frame_columns(cells(runs, lines)),
        "averages": frame_columns(averages(runs, lines)),
        "runs": frame_columns(numbered.drop(columns=[*ENTRY, "method", "trained"])),
        "configs": config_columns(page.config(name) for name in names),
        "curves": curve_columns([page.curve(name) for name in names]),
        "intervals": _optional(page.intervals, INTERVALS, "model", "budget"),
        "published": _optional(page.published, PUBLISHED),
    }


def _optional(frame: pd.DataFrame | None, wanted: Sequence[str], *others: str) -> dict[str, Any] | None:
    return None if frame is None else frame_columns(_chosen(frame, wanted, *others))


def _chosen(frame: pd.DataFrame, wanted: Sequence[str], *others: str) -> pd.DataFrame:
    """Return some columns of a frame, others if it has them, and budgets as texts."""
    found = frame[[*wanted, *(name for name in others if name in frame)]]
    if "budget" not in found:
        return found
    given = zip(found["budget"], found["budget"].isna(), strict=True)
    return found.assign(budget=[AS_GIVEN if missing else _budget(value) for value, missing in given])


def _budget(value: Any) -> str:
    return f"{value:,.10g}" if isinstance(value, (int, float)) else str(value)


def _packaged(name: str) -> str:
    return (resources.files(__package__) / "files" / name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    """Return a script that does not end its element: in JavaScript, both forms are the same text."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script.replace("\r\n", "\n"), flags=re.IGNORECASE)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
