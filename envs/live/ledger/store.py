"""The calls of a ledger, for every database: look at the entry, decide, append one record to the journal.

A record is one statement, and the database's triggers apply it to entry and week within that statement. So no exception
can come between a call's parts: before the statement nothing was written, after it everything is on disk. The record
names the record of its entry that came before it; where another call wrote one in the meantime, the database refuses
the record as stale, and the call looks again.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from envs.live.ledger import keys, statements
from envs.live.ledger.protocol import (
    REFUSED,
    UNITS,
    Audit,
    Balance,
    Entry,
    Record,
    Request,
)
from envs.live.ledger.transitions import Change, Decision, Earlier, decide

LOOKS = 1000  # at an entry that others change at the same time
OPENING = ("reserve", "settle")  # acts that a customer may begin with
WITH_RECEIPT = ("settle", "refund", "reverse")
Result = TypeVar("Result")


class Refusal(Exception):
    """The database refused a record: `unfunded`, `stale` or `within_budget`."""


class Found(NamedTuple):
    """What the database knows: the key of the customer, the entry, and the last record of the entry."""

    key: bytes | None
    entry: Entry | None
    record: int | None


class Store(ABC):
    """All calls of `protocol.Ledger` on a database of which subclasses know how to run a statement.

    `caller` is written into every record: the program that makes the calls, or the person.
    """

    def __init__(self, place: str, caller: str):
        self.place = place
        self.caller = keys.text("caller", caller)
        self._process = os.getpid()

    # ── what a database must do ─────────────────────────────────────────────────────────────────────────────────────
    @abstractmethod
    def _run(self, statement: str, values: dict[str, Any]) -> tuple[list[tuple], int]:
        """Run one statement as a transaction of its own; return its rows, and how many rows it wrote.

        Raises Refusal, and the errors of `protocol.Ledger`.
        """

    @abstractmethod
    def _transact(self, weeks: list[tuple[int, int]], work: Callable[[Store], Result]) -> Result:
        """Do `work` in one transaction on a connection of its own that holds the locks of `weeks`.

        The end of that connection undoes the work, unless it was committed.
        """

    @abstractmethod
    def _forget(self) -> None:
        """Remove what erased rows left in the database's files."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def fund(self, season: int, week: int, budget: int, *, grace: int) -> bool:
        where = _week(season, week)
        budget = keys.whole_number("budget", budget)
        grace = keys.whole_number("grace", grace, UNITS)
        for _ in range(LOOKS):
            found, _ = self._run(statements.FUNDED, where)
            old_budget, old_grace, previous = found[0] if found else (0, 0, None)
            if found and (old_budget, old_grace) == (budget, grace):
                return True
            values = {
                "act": "fund",
                "previous": previous,
                "amount": budget,
                "budget": budget - old_budget,
                "grace": grace - old_grace,
            }
            try:
                self._append(where | values)
                return True
            except Refusal as refusal:
                if str(refusal) == "within_budget":
                    return False
        raise TimeoutError(f"{self.place}: others kept changing season {season}, week {week}")

    def reserve(self, season: int, week: int, customer: str, amount: int, *, expires: datetime, message: str) -> str:
        return self._call(_checked(Request("reserve", season, week, customer, message, amount, expires)))

    def settle(self, season: int, week: int, customer: str, amount: int, *, message: str) -> str:
        return self._call(_checked(Request("settle", season, week, customer, message, amount)))

    def release(self, season: int, week: int, customer: str, *, message: str) -> str:
        return self._call(_checked(Request("release", season, week, customer, message)))

    def refund(self, season: int, week: int, customer: str, amount: int, *, message: str) -> str:
        return self._call(_checked(Request("refund", season, week, customer, message, amount)))

    def reverse(self, season: int, week: int, customer: str, *, message: str) -> str:
        return self._call(_checked(Request("reverse", season, week, customer, message)))

    def expire(self, now: datetime) -> int:
        values = {"at": _now(), "caller": self.caller, "now": keys.microseconds("now", now)}
        return self._run(statements.EXPIRE, values)[1]

    def together(self, requests: Sequence[Request]) -> list[str]:
        checked = [_checked(request) for request in requests]
        for request in checked:  # first, for two transactions could wait for each other's new customers
            if request.act in OPENING:
                self._introduce(request.customer)
        weeks = sorted({(request.season, request.week) for request in checked})
        return self._transact(weeks, lambda store: [store._call(request) for request in checked])

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def balance(self, season: int, week: int) -> Balance | None:
        rows, _ = self._run(statements.BALANCE, _week(season, week))
        return Balance(*rows[0]) if rows else None

    def entry(self, season: int, week: int, customer: str) -> Entry | None:
        return self._find(_week(season, week) | {"customer": keys.text("customer", customer)}).entry

    def journal(self, season: int, week: int) -> list[Record]:
        rows, _ = self._run(statements.JOURNAL, _week(season, week))
        return [Record(row[0], keys.moment(row[1]), *row[2:]) for row in rows]

    def audit(self) -> Audit:
        (weeks,), _ = self._run(statements.AUDIT_WEEKS, {})
        (entries,), _ = self._run(statements.AUDIT_ENTRIES, {})
        ids, _ = self._run(statements.IDS, {})
        wrong_keys = sum(keys.key_of(customer, salt) != key for customer, salt, key in ids)
        count, overspent, overbooked, wrong_weeks, settled, late, over = weeks
        return Audit(count, entries[0], entries[1], overspent, overbooked, wrong_weeks, entries[2], wrong_keys,
                     settled, late, over)  # fmt: skip

    def erase(self, customer: str) -> bool:
        values = {"customer": keys.text("customer", customer)}
        erased = self._run(statements.ERASE, values)[1] > 0
        if not erased and self._run(statements.KEY, values)[0]:
            raise ValueError(
                f"{self.place}: customer {customer}: money is reserved; release it, or wait until it expires"
            )
        self._forget()  # also where an earlier call was cut short between the two
        return erased

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _call(self, request: Request) -> str:
        week = {"season": request.season, "week": request.week}
        for _ in range(LOOKS):
            found = self._find(week | {"customer": request.customer})
            if found.key is None and request.act in OPENING:
                self._introduce(request.customer)
                continue
            where = week | {"key": found.key}
            earlier = self._earlier(where, request.message) if request.act in WITH_RECEIPT else {}
            decision = decide(request, found.entry, earlier)
            if decision.change is None:
                return decision.answer
            try:
                self._append(where | _record(request, decision, found.record))
                return decision.answer
            except Refusal as refusal:
                if str(refusal) == "within_budget":
                    return REFUSED
                if str(refusal) == "unfunded":
                    raise ValueError(
                        f"{self.place}: season {request.season}, week {request.week} has no budget yet"
                    ) from refusal
        raise TimeoutError(f"{self.place}: others kept changing the entry of {request}")

    def _append(self, values: dict[str, Any]) -> None:
        self._run(statements.APPEND, statements.EMPTY_RECORD | {"at": _now(), "caller": self.caller} | values)

    def _introduce(self, customer: str) -> None:
        """Give a customer a key, unless there is one."""
        salt = keys.new_salt()
        self._run(statements.NEW_ID, {"customer": customer, "salt": salt, "key": keys.key_of(customer, salt)})

    def _find(self, where: dict[str, Any]) -> Found:
        rows, _ = self._run(statements.ENTRY, where)
        if not rows:
            return Found(None, None, None)
        key, status, held, settled, late, over, expires, message, record = rows[0]
        if status is None:
            return Found(key, None, None)
        until = None if expires is None else keys.moment(expires)
        return Found(key, Entry(status, held, settled, late, over, until, message), record)

    def _earlier(self, where: dict[str, Any], message: str) -> dict[str, Earlier]:
        rows, _ = self._run(statements.EARLIER, where | {"message": message})
        return {act: Earlier(amount, status) for act, amount, status in rows}

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(f"{self.place}: opened by process {self._process}; open one ledger in each process")


def _now() -> int:
    return time.time_ns() // 1000


def _week(season: int, week: int) -> dict[str, Any]:
    return {"season": keys.whole_number("season", season), "week": keys.whole_number("week", week)}


def _checked(request: Request) -> Request:
    """Return the request with plain types."""
    if request.act == "reserve":
        keys.microseconds("expires", request.expires)
    return request._replace(
        **_week(request.season, request.week),
        customer=keys.text("customer", request.customer),
        message=keys.text("message", request.message),
        amount=keys.whole_number("amount", request.amount),
    )


def _record(request: Request, decision: Decision, previous: int | None) -> dict[str, Any]:
    """Name the fields of the record that writes a decision."""
    change: Change = decision.change or Change(decision.answer)
    opened = {"held": request.amount if request.act == "reserve" else 0} if previous is None else {}
    expires = None if request.expires is None else keys.microseconds("expires", request.expires)
    return {
        "act": request.act,
        "message": request.message,
        "previous": previous,
        "amount": _amount(request, change),
        "expires": expires,
        **opened,
        **change._asdict(),
    }


def _amount(request: Request, change: Change) -> int:
    """Return the money that a call named; a reversal names none, and takes back that of its receipt."""
    return -(change.settled + change.late + change.over) if request.act == "reverse" else request.amount
