"""What benchmark scripts share: a command line, and a folder with one result per unit and pages made from them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import SubspaceError
from .description import Description
from .folder import owned
from .units import Measure, Result, Unit, kept, perform


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Decorate a script's ``main``: bad input and interruptions end in one line on stderr and exit code 2 or 130."""
    try:
        yield
    except SubspaceError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same call resumes", file=sys.stderr)
        sys.exit(130)


def parser(text: str | None, results: Path | None) -> argparse.ArgumentParser:
    """Return an argument parser with ``--results`` (required if the default is None); a script adds its own options."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--results", type=Path, default=results, required=results is None, help="the folder for the results"
    )
    return made


def grid_parser(text: str | None, results: Path, workers: int = 0) -> argparse.ArgumentParser:
    """Return an argument parser for ``grid``, with ``--table``, and with ``--workers`` if units run in processes."""
    made = parser(text, results)
    made.add_argument("--table", action="store_true", help="only write the tables")
    # One process for timings: a second one would slow down the first.
    about = "units at a time, each in its own process" if workers else argparse.SUPPRESS
    made.add_argument("--workers", type=int, default=workers, help=about)
    return made


def done(name: str, result: Result) -> None:
    """Print that a unit is done."""
    print(f"{name}: done", flush=True)


def grid(
    options: argparse.Namespace,
    description: Description,
    units: Mapping[str, Unit],
    measure: Measure[Unit],
    pages: Callable[[Path], None],
    *,
    records: str = ".",
    on_result: Callable[[str, Result], object] = done,
) -> None:
    """Measure the units that have no result in a folder yet, and write the folder's pages, even if some units fail.

    Args:
        options: from ``grid_parser``.
        description: what the results depend on besides their unit.
        units: by name.
        measure: returns a unit's result.
        pages: writes the pages made from all results in the folder.
        records: the subfolder for the units' results.
        on_result: called with each new result.

    Raises:
        SubspaceError: the folder holds another job, or units failed.
    """
    if options.table:
        pages(options.results)
        return
    with owned(options.results, description):
        print(f"{len(kept(options.results / records, units))} of {len(units)} are done", flush=True)
        try:
            perform(options.results / records, units, measure, workers=options.workers, on_result=on_result)
        finally:
            pages(options.results)
