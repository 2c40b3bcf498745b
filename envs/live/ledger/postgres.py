"""A ledger in PostgreSQL, for programs on several machines: `pip install 'crm-rl[postgres]'`."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from envs.live.ledger import postgres_triggers, schema
from envs.live.ledger.store import Refusal, Result, Store

TABLES = schema.tables(
    integer="BIGINT",
    blob="BYTEA",
    counter="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    strict="",
    keyed="",
)
REFUSALS = {
    postgres_triggers.UNFUNDED: "unfunded",
    postgres_triggers.STALE: "stale",
    postgres_triggers.WITHIN_BUDGET: "within_budget",
}
STALE = {
    "23505",  # unique_violation: the same entry was opened at the same time
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
}
TOO_SLOW = {
    "55P03",  # lock_not_available
    "57014",  # query_canceled, by statement_timeout
}
NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class PostgresLedger(Store):
    """`protocol.Ledger` in the schema `name` of a database, which is created where there is none.

    `address` is `postgresql://USER@HOST:PORT/DATABASE`. `timeout` is the number of seconds that a call waits for the
    server and for other calls. What a call that returned survives is the server's `synchronous_commit` and `fsync`.
    A call that was cut short leaves a connection of which nobody knows how far it came, so the next call opens another.
    """

    def __init__(self, address: str, *, name: str, caller: str, timeout: float):
        if not NAME.fullmatch(name):
            raise ValueError(f"ledger: name: expected letters a-z, digits and _ (at most 63), got {name!r}")
        self.address = address
        self.name = name
        self.timeout = timeout
        self._cut_short = False
        self._owns_transaction = False
        try:
            shown = psycopg.conninfo.conninfo_to_dict(address)
        except psycopg.Error as error:
            raise ValueError(f"ledger: expected postgresql://USER@HOST:PORT/DATABASE: {_first_line(error)}") from error
        super().__init__(f"postgresql://{shown.get('host', '')}/{shown.get('dbname', '')}, ledger {name}", caller)
        self._connection = self._connect()
        try:
            self._create()
        except psycopg.Error as error:
            self._connection.close()
            raise self._translated(error) from error
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    # ── how a statement runs ────────────────────────────────────────────────────────────────────────────────────────
    def _connect(self) -> psycopg.Connection:
        milliseconds = max(1, round(1000 * self.timeout))
        settings = f"-c search_path={self.name} -c lock_timeout={milliseconds} -c statement_timeout={milliseconds}"
        try:
            return psycopg.connect(
                self.address, autocommit=True, options=settings, connect_timeout=max(2, round(self.timeout))
            )
        except psycopg.Error as error:
            raise self._translated(error) from error

    def _create(self) -> None:
        """Create tables and triggers, unless they are there."""
        quoted = sql.Identifier(self.name)
        with self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (self.name,))
            found = self._connection.execute(
                "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (self.name,)
            ).fetchone()
            mark = f"crm-rl ledger, version {schema.VERSION}"
            if found is not None and found[0] != mark:
                raise ValueError(
                    f"{self.place}: the schema is there already, and no ledger of version {schema.VERSION}: "
                    f"{found[0] or 'without a comment'}"
                )
            if found is None:
                self._connection.execute(sql.SQL("CREATE SCHEMA {}").format(quoted))
                self._connection.execute(TABLES + postgres_triggers.TRIGGERS)  # type: ignore[arg-type]
                self._connection.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(quoted, sql.Literal(mark)))

    def _run(self, statement: str, values: dict[str, Any]) -> tuple[list[tuple], int]:
        self._check_process()
        if self._owns_transaction:
            return self._run_inside(statement, values)
        self._check_usable()
        self._cut_short = True
        done = self._execute(statement, values)
        self._cut_short = False
        return done

    def _execute(self, statement: str, values: dict[str, Any]) -> tuple[list[tuple], int]:
        try:
            cursor = self._connection.execute(_with_percent(statement), values)
        except psycopg.Error as error:
            self._cut_short = self._connection.closed
            raise self._translated(error) from error
        return cursor.fetchall() if cursor.description else [], cursor.rowcount

    def _run_inside(self, statement: str, values: dict[str, Any]) -> tuple[list[tuple], int]:
        """Run a statement in a transaction, which goes on after a refusal."""
        self._connection.execute("SAVEPOINT before")
        try:
            done = self._execute(statement, values)
        except Refusal:
            self._connection.execute("ROLLBACK TO SAVEPOINT before")
            raise
        self._connection.execute("RELEASE SAVEPOINT before")
        return done

    def _transact(self, weeks: list[tuple[int, int]], work: Callable[[Store], Result]) -> Result:
        self._check_process()
        self._check_usable()
        inside = copy.copy(self)
        inside._connection = self._connect()
        inside._owns_transaction = True
        try:
            inside._connection.execute("BEGIN")
            for season, week in weeks:
                inside._connection.execute(
                    "SELECT 1 FROM weeks WHERE season = %s AND week = %s FOR UPDATE", (season, week)
                )
            done = work(inside)
            inside._connection.execute("COMMIT")
            return done
        except psycopg.Error as error:
            raise self._translated(error) from error
        finally:
            inside._connection.close()

    def _forget(self) -> None:
        self._run("VACUUM ids", {})

    def _check_usable(self) -> None:
        """Refuse to write into a transaction of somebody else; replace a connection that was cut short."""
        status = self._connection.info.transaction_status
        if not self._cut_short and status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            raise RuntimeError(f"{self.place}: a transaction that the ledger did not begin is open on its connection")
        if self._cut_short or status != TransactionStatus.IDLE:
            self._connection.close()
            self._connection = self._connect()
            self._cut_short = False

    def _translated(self, error: psycopg.Error) -> Exception:
        state = error.sqlstate or ""
        if state in REFUSALS or state in STALE:
            return Refusal(REFUSALS.get(state, "stale"))
        message = f"{self.place}: {_first_line(error)}"
        if state in TOO_SLOW or isinstance(error, psycopg.errors.ConnectionTimeout):
            return TimeoutError(message)
        if isinstance(error, (psycopg.IntegrityError, psycopg.DataError)) or state == postgres_triggers.KEPT:
            return ValueError(message)
        return OSError(message)


@cache
def _with_percent(statement: str) -> str:
    """Write `:name` as psycopg does."""
    return re.sub(r":(\w+)", r"%(\1)s", statement)


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().partition("\n")[0]
