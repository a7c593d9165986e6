"""The file of a store: opening, migrating, and transactions, with one line for everything that can be wrong with it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool

from ..errors import SubspaceError
from ..files import check_file, check_folder
from . import schema

_SYNCHRONOUS = "FULL"  # what is committed survives a power failure
_PATIENCE = 60.0  # seconds to wait for another process's transaction, which takes milliseconds
_HEADER = b"SQLite format 3\0"
_FOREIGN = "is no store of `subspace compare`: choose another file"
_DAMAGED = "is damaged: restore it from a copy, or choose another file"
_ABOUT = {
    "file is not a database": _FOREIGN,
    "file is encrypted": _FOREIGN,
    "malformed": _DAMAGED,
    "disk image": _DAMAGED,
    "is full": "cannot grow, since the disk is full: make room, and call again",
    "disk i/o error": "cannot be written: the disk may be full or gone; make room, and call again",
    "readonly": "is not writable: change its permissions, or choose another file",
    "unable to open": "cannot be opened: check that its folder exists and is writable",
    "locked": f"has been locked by another process for {_PATIENCE:.0f} seconds: call again",
}


class Database:
    """The file of a store. Connections last for one transaction, so that threads and processes share none.

    Args:
        path: the file.
        create: make it, and its folder, if it does not exist, and bring an older schema up to date; otherwise the file
            is only read.

    Raises:
        SubspaceError: the file cannot be opened or made, or is no store, or one of a newer schema.
    """

    def __init__(self, path: str | Path, *, create: bool) -> None:
        self.path = Path(path).expanduser().absolute()
        if create:
            check_folder(self.path.parent)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            check_file(self.path)
        elif not self.path.is_file():
            raise SubspaceError(f"store {str(path)!r} does not exist: `subspace compare` makes it")
        _check_header(self.path)
        self._engine = _engine(self.path, create)
        with self._told():
            if create:
                self._migrate()
            else:
                self._check()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees one state of the store."""
        with self._told(), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that no other writer interrupts: all of it is done, or nothing."""
        with self._told(), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(DatabaseError):  # SQLite has ended it itself, as on a full disk
                    connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")

    def copy(self, path: Path) -> None:
        """Write a copy of the store, as it is now, to another file."""
        with self._told(), self._engine.connect() as connection:
            connection.exec_driver_sql("VACUUM INTO ?", (str(path),))

    def _migrate(self) -> None:
        with self._engine.connect() as connection:
            self._state(connection)  # of a file of something else, not even the journal mode is changed
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        with self.write() as connection:
            for statements in schema.MIGRATIONS[self._state(connection) :]:
                for statement in statements:
                    connection.exec_driver_sql(statement)
            connection.exec_driver_sql(f"PRAGMA application_id = {schema.APPLICATION}")
            connection.exec_driver_sql(f"PRAGMA user_version = {len(schema.MIGRATIONS)}")

    def _check(self) -> None:
        with self._engine.connect() as connection:
            version = self._state(connection)
        if version == 0:
            raise SubspaceError(f"store {self.path} is empty: `subspace compare` fills it")
        if version < len(schema.MIGRATIONS):
            raise SubspaceError(f"store {self.path} has an older schema: `subspace compare` brings it up to date")

    def _state(self, connection: Connection) -> int:
        """Return the version of the schema; 0 for an empty file."""

        def number(query: str) -> int:
            return int(connection.exec_driver_sql(query).scalar_one())

        application, version = number("PRAGMA application_id"), number("PRAGMA user_version")
        if application != schema.APPLICATION:
            if application or version or number("SELECT count(*) FROM sqlite_master"):
                raise SubspaceError(f"{self.path} is an SQLite file of something else: choose another as the store")
            return 0
        newest = len(schema.MIGRATIONS)
        if version > newest:
            raise SubspaceError(
                f"store {self.path} has schema {version}, and this version of the package reads up to {newest}: "
                "upgrade subspace-tuning"
            )
        if connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok":
            raise SubspaceError(f"store {self.path} {_DAMAGED}")
        return version

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, DatabaseError) as error:
            if type(error) not in (OperationalError, DatabaseError):  # its subclasses are mistakes of the code
                raise
            reason = str(error.orig)
            known = next((what for word, what in _ABOUT.items() if word in reason.lower()), None)
            raise SubspaceError(f"store {self.path} {known or f'cannot be used: {reason}'}") from error


def _check_header(path: Path) -> None:
    """Refuse a file that is not SQLite's, also a short one, which SQLite would take for an empty one of its own."""
    if path.is_file():
        with path.open("rb") as file:
            header = file.read(len(_HEADER))
        if header not in (b"", _HEADER):
            raise SubspaceError(f"{path} {_FOREIGN}")


def _engine(path: Path, create: bool) -> Engine:
    def connect() -> sqlite3.Connection:
        made = sqlite3.connect(_address(path, create), timeout=_PATIENCE, isolation_level=None, uri=True)
        made.execute("PRAGMA foreign_keys = ON")
        made.execute(f"PRAGMA synchronous = {_SYNCHRONOUS}")
        return made

    # Transactions are begun here, since Python's sqlite3 begins none before a SELECT.
    return create_engine("sqlite://", creator=connect, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def _address(path: Path, create: bool) -> str:
    name = f"file:{quote(str(path))}"
    if create or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return name
    # A journal cannot be made here, and without one nobody is writing.
    journal = path.with_name(f"{path.name}-wal")
    return f"{name}?mode=ro" if journal.exists() else f"{name}?immutable=1"
