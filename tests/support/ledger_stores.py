"""Ledgers of both stores for tests: a file in a folder, or a schema of its own on a server that .ci/run starts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from envs.live.ledger.protocol import Ledger
from envs.live.ledger.sqlite import SqliteLedger

SERVER = "LEDGER_POSTGRES"  # variable with the address of a server, on which tests create and drop schemas
START = datetime(2026, 1, 5, tzinfo=timezone.utc)


def day(number: int) -> datetime:
    """Return a day of the tests' calendar."""
    return START + timedelta(days=number)


class SqliteFile:
    """One ledger in a file."""

    def __init__(self, folder: Path):
        self.path = folder / "ledger.db"

    def open(self, caller: str = "test", timeout: float = 30.0) -> Ledger:
        """Open the ledger once more."""
        return SqliteLedger(self.path, caller=caller, timeout=timeout, sync="normal")


class PostgresSchema:
    """One ledger in a schema of its own."""

    def __init__(self, address: str):
        self.address = address
        self.name = f"test_{uuid.uuid4().hex}"

    def open(self, caller: str = "test", timeout: float = 30.0) -> Ledger:
        """Open the ledger once more."""
        from envs.live.ledger.postgres import PostgresLedger

        return PostgresLedger(self.address, name=self.name, caller=caller, timeout=timeout)

    def drop(self) -> None:
        """Remove the schema."""
        import psycopg

        with psycopg.connect(self.address, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {self.name} CASCADE")  # type: ignore[call-overload]


Place = SqliteFile | PostgresSchema


def postgres_address() -> str:
    """Return the server's address, or skip the test."""
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    if SERVER not in os.environ:
        pytest.skip(f"needs a PostgreSQL server: {SERVER}=postgresql://USER@HOST:PORT/DATABASE")
    return os.environ[SERVER]


def places(store: str, folder: Path) -> Iterator[Place]:
    """Yield a place for a ledger of a store, and clean up after it."""
    if store == "sqlite":
        yield SqliteFile(folder)
        return
    place = PostgresSchema(postgres_address())
    yield place
    place.drop()
