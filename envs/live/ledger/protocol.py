"""What a ledger promises, whatever keeps it: its answers, its figures, and the protocol of its stores.

Money is whole millionths, so that sums are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

UNITS = 1_000_000  # in one unit of money, and in a share of 1

# the status of an entry
RESERVED = "reserved"  # money is held until the reservation expires
SETTLED = "settled"  # paid in time, at most what was held
OVER = "over"  # paid above what was held, or paid again
LATE = "late"  # paid when nothing was held any more
RELEASED = "released"  # freed by the caller
EXPIRED = "expired"  # freed by time
REVERSED = "reversed"  # its payments were errors of the till

# answers beside the status of an entry
KNOWN = "known"  # this key was reserved before, by another call or by this one: don't send
REFUSED = "refused"  # there is no money left
ABSENT = "absent"  # there is no such entry, or no such payment
REFUNDED = "refunded"


class Request(NamedTuple):
    """One call, for `Ledger.together`; the fields are those of the method that `act` names."""

    act: str  # reserve | settle | release | refund | reverse
    season: int
    week: int
    customer: str
    message: str
    amount: int = 0
    expires: datetime | None = None


class Balance(NamedTuple):
    """A week's money in UNITS."""

    budget: int
    grace: int  # share of the lapsed money that stays covered, in UNITS
    reserved: int  # held for messages that may still be redeemed
    lapsed: int  # was held for messages that expired, whether or not they were redeemed later
    settled: int
    late: int
    over: int

    @property
    def paid(self) -> int:
        """What the till paid, less refunds."""
        return self.settled + self.late + self.over

    @property
    def cover(self) -> int:
        """What late redemptions took or may still take: `late`, and at least ⌈grace · lapsed⌉."""
        return max(self.late, -(-self.grace * self.lapsed // UNITS))

    @property
    def available(self) -> int:
        """What may still be reserved; below 0 after payments that nothing covered."""
        return self.budget - self.reserved - self.settled - self.over - self.cover


class Entry(NamedTuple):
    """A message's money in UNITS."""

    status: str
    held: int  # reserved at first; 0 for a payment without a reservation
    settled: int
    late: int
    over: int
    expires: datetime | None
    message: str  # id given by the call that opened the entry

    @property
    def paid(self) -> int:
        """What the till paid for it, less refunds."""
        return self.settled + self.late + self.over


class Record(NamedTuple):
    """A line of the journal: one call that changed something. The last seven fields are changes of the week."""

    id: int
    at: datetime
    caller: str
    message: str
    act: str
    season: int
    week: int
    key: bytes | None  # of the customer; None for the act `fund`
    previous: int | None  # the record before this one, of the same entry
    status: str | None  # of the entry afterwards
    amount: int
    budget: int
    grace: int
    reserved: int
    lapsed: int
    settled: int
    late: int
    over: int


class Audit(NamedTuple):
    """Counts of what a ledger holds. `sound` is false where a program other than a ledger changed it."""

    weeks: int
    entries: int
    records: int
    overspent: int  # weeks whose payments passed their budget: late and over payments can do this
    overbooked: int  # weeks with settled + reserved beyond their budget: no call can do this
    wrong_weeks: int  # weeks that are not the sums of their entries and of their records
    wrong_entries: int  # entries that are not the sums of their records
    wrong_keys: int  # customers whose key is not that of their salt
    settled: int
    late: int
    over: int

    @property
    def sound(self) -> bool:
        """Tell whether entries and weeks are what the journal says, within the promise to every budget."""
        return not (self.overbooked or self.wrong_weeks or self.wrong_entries or self.wrong_keys)


class Ledger(Protocol):
    """A budget a week; a message's money is reserved, then settled or released, by (season, week, customer).

    **Disk.** A call that returns is on disk. A call that raised, whatever raised it, is on disk as a whole or not at
    all; made again, it tells which. **Once.** `reserve` answers `reserved` to one call alone, so that a sender who
    sends on this answer sends at most once. **Facts.** A payment is recorded when it happened, also late, above what
    was held, or without a reservation. **Budget.** settled + reserved ≤ budget in every week, always. The payments of a
    week pass its budget only by late payments beyond `grace` of its lapsed money, or by payments over what was held.

    `message` is an id of the caller's: of the message when it is reserved or released, of the receipt when money is
    paid, refunded or reversed. A call that comes again with the same id changes nothing and gets the same answer. The
    id must not tell who the customer is, for the journal keeps it for good.

    Raises ValueError on keys, amounts, times and ids that can't be, on an id used again with another amount, and on
    weeks without a budget; TimeoutError where other programs keep the ledger locked; OSError where the disk or the
    server refuses; RuntimeError where the ledger is used from a thread or process that didn't open it, or after
    somebody opened a transaction on its connection.
    """

    def fund(self, season: int, week: int, budget: int, *, grace: int) -> bool:
        """Set a week's budget, and the share of lapsed money (in UNITS) that stays covered against late redemptions.

        Returns False, and changes nothing, where a smaller budget or a larger grace finds too much in use.
        """

    def reserve(self, season: int, week: int, customer: str, amount: int, *, expires: datetime, message: str) -> str:
        """Reserve the maximal cost of a message: `reserved` (send it), `known` (don't), or `refused`.

        A refusal leaves no entry, so that the same key may ask again once money was freed.
        """

    def settle(self, season: int, week: int, customer: str, amount: int, *, message: str) -> str:
        """Record what was paid: `settled`, `over` or `late`. What was held beyond the payment is free again."""

    def release(self, season: int, week: int, customer: str, *, message: str) -> str:
        """Free a reservation, for the message was not sent or can't be redeemed; return the status after it."""

    def refund(self, season: int, week: int, customer: str, amount: int, *, message: str) -> str:
        """Record money that came back to the till: `refunded`. `message` is the id of the refund's receipt."""

    def reverse(self, season: int, week: int, customer: str, *, message: str) -> str:
        """Undo the payment of the receipt `message`, which was an error: `reversed`."""

    def expire(self, now: datetime) -> int:
        """Free the reservations that expire at `now` or before, but for the grace; return their number."""

    def together(self, requests: Sequence[Request]) -> list[str]:
        """Make many calls in one transaction, and return their answers when all are on disk."""

    def balance(self, season: int, week: int) -> Balance | None:
        """Return a week's money, None where it was never funded."""

    def entry(self, season: int, week: int, customer: str) -> Entry | None:
        """Return a message's money."""

    def journal(self, season: int, week: int) -> list[Record]:
        """Return a week's records, oldest first."""

    def audit(self) -> Audit:
        """Add up the journal and compare."""

    def erase(self, customer: str) -> bool:
        """Forget who a customer was; return False where nobody of this name is known.

        The customer's entries and records stay under their key, which nothing leads to any more. A later `reserve` for
        the customer therefore answers `reserved`, also with a message id of before. Raises ValueError while money is
        reserved for the customer.
        """

    def close(self) -> None:
        """Close the connection."""


def to_units(money: float) -> int:
    """Express money in UNITS, rounded to the nearest."""
    return round(money * UNITS)
