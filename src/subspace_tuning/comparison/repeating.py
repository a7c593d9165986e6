"""Something done again and again beside other work, such as renewing a lease."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..errors import SubspaceError


@contextmanager
def repeated(call: Callable[[], bool], seconds: float) -> Iterator[None]:
    """Call a function in a thread during the body, until it returns False.

    A SubspaceError is passed over, such as that of a disk that is full for a moment: the next call may succeed.
    """
    over = threading.Event()

    def loop() -> None:
        going = True
        while going and not over.wait(seconds):
            with suppress(SubspaceError):
                going = call()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
