"""What a call does to an entry: pure functions, the same for every store.

reserved ── settle ──> settled, or over if more was paid than held
         ── release ─> released ── settle ──> late
         ── expire ──> expired ── settle ──> late;  ── release ─> released
settled, over ── settle with another receipt ──> over
any payment   ── refund ──> its money is free again;  ── reverse ──> reversed once nothing is left
"""

from __future__ import annotations

from typing import NamedTuple

from envs.live.ledger.protocol import (
    ABSENT,
    EXPIRED,
    KNOWN,
    LATE,
    OVER,
    REFUNDED,
    RELEASED,
    RESERVED,
    REVERSED,
    SETTLED,
    Entry,
    Request,
)


class Change(NamedTuple):
    """What an entry becomes: its status, and what is added to its money and to that of its week."""

    status: str
    reserved: int = 0
    lapsed: int = 0
    settled: int = 0
    late: int = 0
    over: int = 0


class Earlier(NamedTuple):
    """A record of the same entry with the same message id."""

    amount: int
    status: str


class Decision(NamedTuple):
    """The answer to a call, and the change to write first, if any."""

    answer: str
    change: Change | None = None


def decide(request: Request, entry: Entry | None, earlier: dict[str, Earlier]) -> Decision:
    """Answer a call about an entry, given the records {act: record} that have its message id."""
    decisions = {"reserve": _reserve, "settle": _settle, "release": _release, "refund": _refund, "reverse": _reverse}
    if request.act not in decisions:
        raise ValueError(f"ledger: act: expected one of {', '.join(decisions)}, got {request.act!r}")
    return decisions[request.act](request, entry, earlier)


def _reserve(request: Request, entry: Entry | None, earlier: dict[str, Earlier]) -> Decision:
    if entry is None:
        return Decision(RESERVED, Change(RESERVED, reserved=request.amount))
    if entry.expires is not None and entry.held != request.amount:
        raise ValueError(f"{_name(request)}: reserved {entry.held} before, now asks for {request.amount}")
    return Decision(KNOWN)


def _settle(request: Request, entry: Entry | None, earlier: dict[str, Earlier]) -> Decision:
    if paid := earlier.get("settle"):
        if paid.amount != request.amount:
            raise ValueError(
                f"{_name(request)}: receipt {request.message} paid {paid.amount} before, now {request.amount}"
            )
        return Decision(REVERSED if "reverse" in earlier else paid.status)
    change = pay(entry, request.amount)
    return Decision(change.status, change)


def _release(request: Request, entry: Entry | None, earlier: dict[str, Earlier]) -> Decision:
    if entry is None:
        return Decision(ABSENT)
    if entry.status == RESERVED:
        return Decision(RELEASED, Change(RELEASED, reserved=-entry.held))
    if entry.status == EXPIRED:
        return Decision(RELEASED, Change(RELEASED, lapsed=-entry.held))
    return Decision(entry.status)


def _refund(request: Request, entry: Entry | None, earlier: dict[str, Earlier]) -> Decision:
    if entry is None:
        return Decision(ABSENT)
    if refunded := earlier.get("refund"):
        if refunded.amount != request.amount:
            raise ValueError(
                f"{_name(request)}: receipt {request.message} refunded {refunded.amount} before, now {request.amount}"
            )
        return Decision(REFUNDED)
    _check_paid(request, entry, request.amount)
    return Decision(REFUNDED, take_back(entry, request.amount))


def _reverse(request: Request, entry: Entry | None, earlier: dict[str, Earlier]) -> Decision:
    if entry is None or "settle" not in earlier:
        return Decision(ABSENT)
    if "reverse" in earlier:
        return Decision(REVERSED)
    amount = earlier["settle"].amount
    _check_paid(request, entry, amount)
    change = take_back(entry, amount)
    return Decision(REVERSED, change._replace(status=REVERSED) if entry.paid == amount else change)


def pay(entry: Entry | None, amount: int) -> Change:
    """Record a payment: what was held covers it in time; nothing covers what comes late, again or above."""
    if entry is None:
        return Change(OVER, over=amount)
    if entry.status == RESERVED:
        settled = min(amount, entry.held)
        over = amount - settled
        return Change(OVER if over else SETTLED, reserved=-entry.held, settled=settled, over=over)
    if entry.status in (SETTLED, OVER):
        return Change(OVER, over=amount)
    return Change(LATE, late=amount)


def take_back(entry: Entry, amount: int) -> Change:
    """Record money that came back: first what was paid over, then late, then in time."""
    over = min(amount, entry.over)
    late = min(amount - over, entry.late)
    settled = amount - over - late
    status = SETTLED if entry.status == OVER and over == entry.over else entry.status
    return Change(status, settled=-settled, late=-late, over=-over)


def _check_paid(request: Request, entry: Entry, amount: int) -> None:
    if amount > entry.paid:
        raise ValueError(f"{_name(request)}: paid {entry.paid}, can't give back {amount}")


def _name(request: Request) -> str:
    return f"ledger: season {request.season}, week {request.week}, customer {request.customer}"
