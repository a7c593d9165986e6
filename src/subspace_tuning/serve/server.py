"""The server: a socket, and uvicorn behind it until it is interrupted."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from ..errors import SubspaceError, described


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen at an address during the body.

    Args:
        host: a name or an address of this machine.
        port: the port; 0 for any that is free.

    Raises:
        SubspaceError: the address is not of this machine, or the port is in use.
    """
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.create_server(address, family=family)
    except OSError as error:
        raise SubspaceError(
            f"cannot listen on port {port} of {host}: {described(error)}; choose others with --host and --port"
        ) from error
    with listener:
        yield listener


def url_of(listener: socket.socket) -> str:
    """Return the address of the page."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until the process is interrupted, and then finish those that have begun."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has shut down
        server.run(sockets=[listener])
