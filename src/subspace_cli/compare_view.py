"""What `subspace compare` shows while it runs: lines that change on a terminal, a line per run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from subspace_tuning.comparison.database import Database
    from subspace_tuning.comparison.leases import Shard
    from subspace_tuning.comparison.progress import Event, Progress

_INTERVAL = 1.0  # seconds between two looks into the store


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def line(event: Event, ended: int, total: int) -> str:
    """Return a line about a run that has ended."""
    from subspace_tuning.comparison.progress import described

    result = f"failed: {event.error}"
    if event.error is None:
        result = f"{event.metric} {event.score:.4f} in {duration(event.seconds or 0.0)}"
    return f"{ended}/{total}  {described(event)}: {result}"


class View:
    """The state of a comparison as it is shown."""

    def __init__(self, database: Database, shard: Shard, workers: int) -> None:
        self._database, self._shard, self._workers = database, shard, workers
        self._since = time.monotonic()
        self._first = self.now = self._progress()
        self._told = {event.number for event in self._first.events}

    def _progress(self) -> Progress:
        from subspace_tuning.comparison.progress import progress

        return progress(self._database, self._shard)

    def look(self) -> list[str]:
        """Look into the store, and return a line for each run that has ended since."""
        self.now = self._progress()
        new = [event for event in self.now.events if event.number not in self._told]
        ended = len(self.now.events) - len(new)
        self._told |= {event.number for event in new}
        return [line(event, ended + number, self.now.total) for number, event in enumerate(new, start=1)]

    def drawn(self) -> Text:
        """Return the lines for a terminal, which wraps them if they are too long."""
        from subspace_tuning.comparison.progress import seconds_left

        now = self.now
        left = seconds_left(self._first, now, time.monotonic() - self._since, self._workers)
        told = [f"{now.done:,} done", f"{now.running:,} running", f"{now.left - now.running:,} waiting"]
        told += [f"{now.failed:,} failed"] if now.failed else []
        told += [f"{duration(left)} left"] if left is not None and now.left else []
        width = max(map(len, now.rows), default=0)
        lines = [f"{now.total:,} runs: {', '.join(told)}"]
        for name, row in now.rows.items():
            best = [f"best {task} {score:.4f}" for task, score in row.best.items()]
            lines.append(", ".join([f"{name:{width}}  {row.ended}/{row.total}", *best]))
        return Text("\n".join(lines))


@contextmanager
def watching(database: Database, shard: Shard, workers: int) -> Iterator[None]:
    """Show the state of a comparison during the body."""
    view = View(database, shard, workers)
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if console.is_interactive:
        live = Live(view.drawn(), console=console, transient=True, auto_refresh=False)

        def redraw() -> None:
            view.look()
            live.update(view.drawn(), refresh=True)

        with live, _every(_INTERVAL, redraw):
            yield
    else:
        typer.echo(f"{view.now.total:,} runs, {len(view.now.events):,} of them ended")

        def tell() -> None:
            for one in view.look():
                typer.echo(one)

        with _every(_INTERVAL, tell):
            yield


@contextmanager
def _every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Call a function in a thread during the body, and once more after it."""
    from subspace_tuning.comparison.repeating import repeated
    from subspace_tuning.errors import SubspaceError

    def again() -> bool:
        call()
        return True

    try:
        with repeated(again, seconds):
            yield
    finally:
        with suppress(SubspaceError):
            call()
