"""The money of every week on disk: reserve, then settle or release; settled + reserved ≤ budget, whoever calls.

The module needs the standard library alone. The database itself keeps the rules: triggers keep the totals, and a CHECK
bounds them inside the statement that changes an entry. So no program, this one included, can break the rules.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

UNITS = 1_000_000  # in one unit of money: amounts are whole numbers, so that sums are exact
REFUSED, ABSENT = "refused", "absent"  # answers beside the status of an entry: no money left; no such entry
RESERVED, SETTLED, RELEASED, EXPIRED = "reserved", "settled", "released", "expired"

SCHEMA = """
CREATE TABLE IF NOT EXISTS weeks (
    season INTEGER NOT NULL, week INTEGER NOT NULL, budget INTEGER NOT NULL,
    reserved INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (season, week),
    CONSTRAINT within_budget CHECK (reserved >= 0 AND settled >= 0 AND settled + reserved <= budget)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    season INTEGER NOT NULL, week INTEGER NOT NULL, customer TEXT NOT NULL, held INTEGER NOT NULL CHECK (held >= 0),
    paid INTEGER NOT NULL DEFAULT 0, status TEXT NOT NULL DEFAULT 'reserved', expires INTEGER NOT NULL,
    PRIMARY KEY (season, week, customer), FOREIGN KEY (season, week) REFERENCES weeks,
    CONSTRAINT within_reserved CHECK (paid BETWEEN 0 AND held AND (paid = 0 OR status = 'settled')),
    CHECK (status IN ('reserved', 'settled', 'released', 'expired'))) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pending ON entries (expires) WHERE status = 'reserved';
CREATE TRIGGER IF NOT EXISTS entered AFTER INSERT ON entries BEGIN
    UPDATE weeks SET reserved = reserved + NEW.held WHERE season = NEW.season AND week = NEW.week;
END;
CREATE TRIGGER IF NOT EXISTS closed AFTER UPDATE ON entries BEGIN
    UPDATE weeks SET reserved = reserved - OLD.held, settled = settled + NEW.paid
    WHERE season = NEW.season AND week = NEW.week;
END;
CREATE TRIGGER IF NOT EXISTS final BEFORE UPDATE ON entries
    WHEN OLD.status <> 'reserved' OR NEW.status = 'reserved' OR NEW.held <> OLD.held OR NEW.customer <> OLD.customer
        OR NEW.season <> OLD.season OR NEW.week <> OLD.week
    BEGIN SELECT RAISE(ABORT, 'a closed entry is final'); END;
CREATE TRIGGER IF NOT EXISTS kept BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'entries are kept'); END;
"""


class Balance(NamedTuple):
    """A week's money in UNITS."""

    budget: int
    reserved: int
    settled: int


class Ledger:
    """Entries by (season, week, customer), the idempotency key; each call returns the status of its entry after it.

    A repeated call changes nothing and gets the same answer. A call that comes too late (to settle a released or
    expired reservation) or too early (before its reservation) changes nothing, and its answer says so. Every call is
    one transaction, on disk when it returns. Use one instance a thread; any number of processes may share the file on a
    local disk. `timeout` is the number of seconds that a call waits for other calls. `sync` is `full` or `normal`.
    `normal` is many times faster, but can lose the last calls before a power failure (not before the death of a
    process); the ledger stays consistent.

    Raises ValueError on impossible amounts, on a key used again with another amount and on files that are no ledger,
    TimeoutError where the file stays locked.
    """

    def __init__(self, path: Path | str, *, timeout: float, sync: str):
        if sync not in ("full", "normal"):
            raise ValueError(f"ledger: sync: expected full or normal, got '{sync}'")
        self.path = Path(path)
        try:
            self.db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute(f"PRAGMA synchronous = {sync}")
            self.db.execute("PRAGMA foreign_keys = ON")
            self.db.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: the ledger can't be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: not a ledger: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make the calls in the context one transaction: all are on disk at its end, or none after an error."""
        if self.db.in_transaction:
            yield
            return
        try:
            self.db.execute("BEGIN IMMEDIATE")  # write lock from the start: values read stay valid until the write
        except sqlite3.OperationalError as error:
            raise TimeoutError(f"{self.path}: the ledger stayed locked: {error}") from error
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def fund(self, season: int, week: int, budget: int) -> bool:
        """Set a week's budget; return False, and change nothing, where more is already reserved and settled."""
        _check(budget=budget)
        with self.together():
            try:
                changed = self.db.execute(
                    "UPDATE weeks SET budget = ? WHERE season = ? AND week = ?", (budget, season, week)
                )
            except sqlite3.IntegrityError:
                return False
            if not changed.rowcount:
                self.db.execute("INSERT INTO weeks (season, week, budget) VALUES (?, ?, ?)", (season, week, budget))
        return True

    def reserve(self, season: int, week: int, customer: str, amount: int, expires: int) -> str:
        """Reserve the maximal cost of a message until `expires` (in the caller's days, weeks or seconds).

        A refusal leaves no entry, so that the same key may ask again once money was released.
        """
        _check(amount=amount, expires=expires)
        key = (season, week, str(customer))
        with self.together():
            if found := self._find(key):
                if found[1] != amount:
                    raise ValueError(f"{self._name(key)}: reserved {found[1]} before, now asks for {amount}")
                return found[0]
            try:
                self.db.execute(
                    "INSERT INTO entries (season, week, customer, held, expires) VALUES (?, ?, ?, ?, ?)",
                    (*key, amount, expires),
                )
            except sqlite3.IntegrityError as error:
                if "within_budget" in str(error):
                    return REFUSED
                raise ValueError(f"{self._name(key)}: the week has no budget yet") from error
        return RESERVED

    def settle(self, season: int, week: int, customer: str, amount: int) -> str:
        """Pay the real cost of a reserved message, at most the reserved amount; the rest is free again."""
        _check(amount=amount)
        key = (season, week, str(customer))
        with self.together():
            status, held, paid = self._find(key) or (ABSENT, amount, amount)
            if amount > held or (status == SETTLED and amount != paid):
                known = paid if status == SETTLED else held
                raise ValueError(f"{self._name(key)}: {status} {known}, can't pay {amount}")
            return self._close(key, status, SETTLED, amount)

    def release(self, season: int, week: int, customer: str) -> str:
        """Free a reservation: the message was not sent, or can't be redeemed any more."""
        key = (season, week, str(customer))
        with self.together():
            return self._close(key, (self._find(key) or (ABSENT,))[0], RELEASED, 0)

    def expire(self, now: int) -> int:
        """Free all reservations that expire at `now` or before; return the number of these entries."""
        _check(now=now)
        with self.together():
            return self.db.execute(
                "UPDATE entries SET status = 'expired' WHERE status = 'reserved' AND expires <= ?", (now,)
            ).rowcount

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def balance(self, season: int, week: int) -> Balance | None:
        """Return a week's balance, None where the week has no money yet."""
        row = self.db.execute(
            "SELECT budget, reserved, settled FROM weeks WHERE season = ? AND week = ?", (season, week)
        ).fetchone()
        return row and Balance(*row)

    def entry(self, season: int, week: int, customer: str) -> tuple[str, int, int] | None:
        """Return status, amount reserved and amount paid of a key."""
        return self._find((season, week, str(customer)))

    def audit(self) -> dict[str, int]:
        """Count weeks and entries, and weeks over budget or with wrong totals, from the entries alone."""
        weeks, breached, wrong = self.db.execute("""
            SELECT count(*), coalesce(sum(s.settled + s.reserved > w.budget), 0),
                   coalesce(sum(s.settled <> w.settled OR s.reserved <> w.reserved), 0)
            FROM weeks w JOIN (SELECT k.season, k.week, coalesce(sum(e.paid), 0) AS settled,
                                      coalesce(sum(CASE e.status WHEN 'reserved' THEN e.held END), 0) AS reserved
                               FROM weeks k LEFT JOIN entries e USING (season, week) GROUP BY k.season, k.week) s
                 ON s.season = w.season AND s.week = w.week""").fetchone()
        (entries,) = self.db.execute("SELECT count(*) FROM entries").fetchone()
        return {"weeks": weeks, "entries": entries, "breached": breached, "wrong_totals": wrong}

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _find(self, key: tuple) -> tuple[str, int, int] | None:
        return self.db.execute(
            "SELECT status, held, paid FROM entries WHERE season = ? AND week = ? AND customer = ?", key
        ).fetchone()

    def _close(self, key: tuple, status: str, to: str, paid: int) -> str:
        if status != RESERVED:
            return status
        self.db.execute(
            "UPDATE entries SET status = ?, paid = ? WHERE season = ? AND week = ? AND customer = ?", (to, paid, *key)
        )
        return to

    def _name(self, key: tuple) -> str:
        return f"{self.path}: season {key[0]}, week {key[1]}, customer {key[2]}"


def _check(**amounts: int) -> None:
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, int) or not 0 <= amount < 2**62:
            raise ValueError(f"ledger: {name}: expected a whole number from 0, got {amount!r}")


def to_units(money: float) -> int:
    """Express money in UNITS, rounded to the nearest."""
    return round(money * UNITS)
