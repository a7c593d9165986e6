"""The tables of a store, and the migrations that make them.

A store is a user's file of a few tables, opened by a library, so its schema version is SQLite's own `user_version`,
which is read and written in the transaction that migrates. Alembic, made for one server with many deployments, would
add an environment, a folder of revisions and a table of its own.

A run may stand in several cells, such as one without a rank at several budgets. So runs are kept by their content, and
`places` says where each one stands. Cells and places are those of the last config and can be made again; runs stay.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Integer, LargeBinary, MetaData, Table, Text

APPLICATION = 0x53554253
"""SQLite's `application_id` of a store: "SUBS"."""

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
"""The states of a run."""

metadata = MetaData()

facts = Table("facts", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

cells = Table(
    "cells",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("row", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("budget", Integer),
    Column("trained", Integer, nullable=False),
    Column("around", Float, nullable=False),
    Column("larger", Integer, nullable=False),
    Column("config", Text, nullable=False),
    Column("origin", Text, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("config", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("owner", Text),
    Column("expires", Float),
    Column("error", Text),
    Column("diverged", Integer, nullable=False, server_default="0"),
    Column("metric", Text),
    Column("score", Float),
    Column("scores", Text),
    Column("trained", Integer),
    Column("head", Integer),
    Column("seconds", Float),
    Column("memory", Float),
    Column("curve", Text),
    Column("finished", Float),
)

places = Table(
    "places",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("cell", Integer, ForeignKey("cells.id"), nullable=False),
    Column("stage", Text, nullable=False),
    Column("step", Integer),
    Column("rate", Float, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("run", Text, ForeignKey("runs.id"), nullable=False),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("run", Text, ForeignKey("runs.id"), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

_FIRST = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)",
    "CREATE TABLE cells (id INTEGER PRIMARY KEY, row TEXT NOT NULL, method TEXT NOT NULL, task TEXT NOT NULL, "
    "model TEXT NOT NULL, budget INTEGER, trained INTEGER NOT NULL, around FLOAT NOT NULL, larger INTEGER NOT NULL, "
    "config TEXT NOT NULL, origin TEXT NOT NULL)",
    "CREATE TABLE runs (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, config TEXT NOT NULL, "
    "state TEXT NOT NULL, owner TEXT, expires FLOAT, error TEXT, diverged INTEGER NOT NULL DEFAULT 0, metric TEXT, "
    "score FLOAT, scores TEXT, trained INTEGER, head INTEGER, seconds FLOAT, memory FLOAT, curve TEXT, finished FLOAT)",
    "CREATE INDEX runs_by_state ON runs (state)",
    "CREATE TABLE places (number INTEGER PRIMARY KEY, cell INTEGER NOT NULL REFERENCES cells (id), "
    "stage TEXT NOT NULL, step INTEGER, rate FLOAT NOT NULL, seed INTEGER NOT NULL, "
    "run TEXT NOT NULL REFERENCES runs (id), UNIQUE (cell, stage, rate, seed))",
    "CREATE INDEX places_by_run ON places (run)",
    "CREATE TABLE outcomes (run TEXT PRIMARY KEY NOT NULL REFERENCES runs (id), content BLOB NOT NULL)",
)

MIGRATIONS: list[tuple[str, ...]] = [_FIRST]
"""The statements that lead from each version to the next, from an empty file on. What is released is not changed."""
