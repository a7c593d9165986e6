"""A progress bar on stderr, so that what a command prints can be piped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bar:
    """Receives the progress of a command."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def at(self, what: str, done: int, count: int) -> None:
        """Show that ``done`` of ``count`` items are finished."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=count)
        self._progress.update(self._tasks[what], completed=done, total=count)

    def one_of(self, what: str, count: int) -> None:
        """Show that one more of ``count`` items is finished."""
        done = self._progress.tasks[self._tasks[what]].completed if what in self._tasks else 0
        self.at(what, int(done) + 1, count)


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """Show a bar during a long operation, and remove it afterwards."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Without a terminal there is no bar to remove, and rich would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as progress:
        yield Bar(progress)
