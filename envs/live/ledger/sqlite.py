"""A ledger in a file: SQLite, on a local disk, for any number of processes of one machine."""

from __future__ import annotations

import copy
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from envs.live.ledger import schema, sqlite_triggers
from envs.live.ledger.local_disk import create_private, network_disk
from envs.live.ledger.store import Refusal, Result, Store

APPLICATION_ID = 0x63524C4C  # in the file's header: a ledger of this project
STRICT_SINCE = (3, 37, 0)
TABLES = schema.tables(
    integer="INTEGER",
    blob="BLOB",
    counter="INTEGER PRIMARY KEY",
    strict=" STRICT",
    keyed=" STRICT, WITHOUT ROWID",
)
CREATION = f"""
BEGIN IMMEDIATE;
{TABLES}
{sqlite_triggers.TRIGGERS}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {schema.VERSION};
COMMIT;
"""
REFUSALS = {f"ledger: {name}": name for name in ("unfunded", "stale", "within_budget")}
SCHEMA_QUERY = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"


class SqliteLedger(Store):
    """`protocol.Ledger` in the file `path`, which is created, for its owner alone, where there is none.

    Use one instance a thread. `timeout` is the number of seconds that a call waits for others. `sync` is `full` or
    `normal`: `normal` is many times faster, and a power failure can take the last calls with it, though never a part of
    a call; the death of a process loses nothing under either.

    Raises ValueError on files that are no ledger or of another version, OSError on network disks and on files that
    can't be opened.
    """

    def __init__(self, path: Path | str, *, caller: str, timeout: float, sync: str):
        if sync not in ("full", "normal"):
            raise ValueError(f"ledger: sync: expected full or normal, got '{sync}'")
        if sqlite3.sqlite_version_info < STRICT_SINCE:
            raise OSError(f"{path}: a ledger needs SQLite 3.37 or newer, this Python has {sqlite3.sqlite_version}")
        super().__init__(str(path), caller)
        self.path = Path(path)
        self.timeout = timeout
        self.sync = sync
        self._owns_transaction = False
        if kind := network_disk(self.path):
            raise OSError(f"{path}: on a network disk ({kind}), where SQLite's locks don't hold; use a local disk")
        try:
            create_private(self.path)
            self._connection = self._connect()
            self._cursor = self._connection.cursor()
        except sqlite3.OperationalError as error:
            raise self._translated(error) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: not a ledger: {error}") from error

    def close(self) -> None:
        self._connection.close()

    def back_up(self, path: Path | str) -> None:
        """Copy the ledger as it is at one moment into a new file, for its owner alone; others may go on writing."""
        target = Path(path)
        if target.exists():
            raise ValueError(f"{target}: there is a file already; a backup overwrites nothing")
        self._check_usable()
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        create_private(unfinished)
        try:
            with closing(sqlite3.connect(unfinished)) as copied:
                self._connection.backup(copied, pages=1000)
                copied.execute("PRAGMA journal_mode = DELETE")  # everything in the one file
                _check_schema(unfinished, copied)
                if (found := copied.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                    raise OSError(f"{self.place}: the file is damaged: {found[0][0]}")
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
            os.link(unfinished, target)  # unlike a renaming, this fails where somebody was faster
        except sqlite3.OperationalError as error:
            raise self._translated(error) from error
        finally:
            unfinished.unlink()

    # ── how a statement runs ────────────────────────────────────────────────────────────────────────────────────────
    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self.timeout, isolation_level=None)
        try:
            if _is_empty(connection):  # looked at first: another program's file is not written to
                self._create(connection)
            _check_schema(self.path, connection)
            connection.execute(f"PRAGMA synchronous = {self.sync}")
            connection.execute("PRAGMA recursive_triggers = ON")  # a row that is replaced is a row that is deleted
            connection.execute("PRAGMA secure_delete = ON")  # erased customers are overwritten
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        patience = time.monotonic() + self.timeout
        while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            try:
                if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                    raise OSError(f"{self.path}: SQLite can't keep a write-ahead log here")
            except sqlite3.OperationalError as error:  # another process does the same; SQLite does not wait here
                if "locked" not in str(error) or time.monotonic() > patience:
                    raise
                time.sleep(0.01)
        connection.executescript(CREATION)

    def _run(self, statement: str, values: dict[str, Any]) -> tuple[list[tuple], int]:
        self._check_usable()
        try:
            # One cursor for all: a statement that an exception cut off from its rows ends when the next one begins.
            self._cursor.execute(statement, values)
            return self._cursor.fetchall(), self._cursor.rowcount
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _transact(self, weeks: list[tuple[int, int]], work: Callable[[Store], Result]) -> Result:
        self._check_usable()
        try:
            with closing(self._connect()) as connection:
                inside = copy.copy(self)
                inside._connection = connection
                inside._cursor = connection.cursor()
                inside._cursor.execute("BEGIN IMMEDIATE")
                inside._owns_transaction = True
                done = work(inside)
                inside._cursor.execute("COMMIT")
                return done
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _forget(self) -> None:
        (row,), _ = self._run("PRAGMA wal_checkpoint(TRUNCATE)", {})
        if row[0]:
            raise TimeoutError(
                f"{self.place}: erased, but the write-ahead log is in use and still has the text; call again"
            )

    def _check_usable(self) -> None:
        """Refuse to write into a transaction that somebody else may end or undo."""
        self._check_process()
        if self._connection.in_transaction and not self._owns_transaction:
            raise RuntimeError(f"{self.place}: a transaction that the ledger did not begin is open on its connection")

    def _translated(self, error: sqlite3.Error) -> Exception:
        message = str(error)
        if message in REFUSALS:
            return Refusal(REFUSALS[message])
        if isinstance(error, sqlite3.IntegrityError):
            return ValueError(f"{self.place}: the database refuses this record: {message}")
        if isinstance(error, sqlite3.ProgrammingError):
            return RuntimeError(f"{self.place}: {message.splitlines()[0]}")
        if "locked" in message:
            return TimeoutError(f"{self.place}: the ledger stayed locked: {message}")
        return OSError(f"{self.place}: the ledger can't be read or written: {message}")


def _is_empty(connection: sqlite3.Connection) -> bool:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return not application and not objects


def _check_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse files of other programs and of other versions, and ledgers that somebody altered."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise ValueError(f"{path}: not a ledger: a database of another program")
    if version != schema.VERSION:
        raise ValueError(f"{path}: a ledger of version {version}, expected {schema.VERSION}")
    expected = _expected_schema()
    found = dict(connection.execute(SCHEMA_QUERY).fetchall())
    if found != expected:
        names = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        raise ValueError(f"{path}: the ledger's schema was altered: {', '.join(names)}")


@cache
def _expected_schema() -> dict[str, str]:
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(CREATION)
        return dict(fresh.execute(SCHEMA_QUERY).fetchall())
