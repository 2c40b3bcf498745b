"""What was sent to each customer in each week, and what came of it, laid out from rows; weeks without one filled in."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

ARMS = ("holdout", "random", "bau", "rl")  # of planned weeks: which rule decides for a customer
DRAWN = (ARMS.index("random"), ARMS.index("rl"))  # the arms that draw lots


@dataclass(frozen=True)
class Rows:
    """R rows of a shop's files: sends, weeks in which nothing was sent, or purchases."""

    customer: np.ndarray  #: index of the customer, int64 [R]
    week: np.ndarray  #: week of the log, from 0, int64 [R]
    offer: np.ndarray  #: 0 for nothing, int64 [R]
    channel: np.ndarray  #: int64 [R]
    propensity: np.ndarray  #: of the decision, NaN where unknown, float64 [R]
    bought: np.ndarray  #: bool [R]
    redeemed: np.ndarray  #: bool [R]
    margin: (
        np.ndarray
    )  #: money: of a send's row, what its week's purchases brought; of a purchase, its own, float64 [R]
    unsubscribed: np.ndarray  #: bool [R]

    def __len__(self) -> int:
        return len(self.customer)

    def take(self, rows) -> Rows:
        """Take some of the rows."""
        return Rows(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def of_purchases(cls, customer: np.ndarray, week: np.ndarray, margin: np.ndarray) -> Rows:
        """Return purchases as rows in which nothing was sent; a return, whose margin is below 0, buys nothing."""
        no = np.zeros(len(week), dtype=bool)
        none = np.zeros(len(week), dtype=np.int64)
        unknown = np.full(len(week), np.nan)
        return cls(customer, week, none, none, unknown, margin >= 0, no, margin, no)


@dataclass(frozen=True)
class CustomerWeeks:
    """The log of N customers over W weeks. A customer is in the log from week `first` to week `last`, both included.

    Cells of other weeks are empty: nothing sent, nothing bought, propensity NaN.
    """

    ids: tuple[str, ...]  #: the shop's own, [N]
    first: np.ndarray  #: int64 [N]
    last: np.ndarray  #: int64 [N]; below `first`: never in the log
    offer: np.ndarray  #: 0 for nothing, int16 [W, N]
    channel: np.ndarray  #: int16 [W, N]
    propensity: np.ndarray  #: of the decision, NaN where unknown, float64 [W, N]
    arm: np.ndarray  #: that decided in a planned week, an index into ARMS; −1 where no plan did, int8 [W, N]
    bought: np.ndarray  #: bool [W, N]
    redeemed: np.ndarray  #: bool [W, N]
    margin: np.ndarray  #: money that purchases brought, float64 [W, N]
    unsubscribed: np.ndarray  #: in this week, bool [W, N]
    row: np.ndarray  #: of the file that was read, the header being row 1; 0: of none, int32 [W, N]

    @classmethod
    def empty(cls, ids: tuple[str, ...], weeks: int) -> CustomerWeeks:
        """Return a log of so many weeks in which nobody is."""
        shape = (weeks, len(ids))
        return cls(
            ids=ids,
            first=np.zeros(len(ids), dtype=np.int64),
            last=np.full(len(ids), -1, dtype=np.int64),
            offer=np.zeros(shape, dtype=np.int16),
            channel=np.zeros(shape, dtype=np.int16),
            propensity=np.full(shape, np.nan),
            arm=np.full(shape, -1, dtype=np.int8),
            bought=np.zeros(shape, dtype=bool),
            redeemed=np.zeros(shape, dtype=bool),
            margin=np.zeros(shape),
            unsubscribed=np.zeros(shape, dtype=bool),
            row=np.zeros(shape, dtype=np.int32),
        )

    @property
    def weeks(self) -> int:
        """W."""
        return len(self.offer)

    def is_present(self, week: int) -> np.ndarray:
        """Tell who is in the log in a week, bool [N]."""
        return (self.first <= week) & (week <= self.last)

    def cells(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Return the matrices [W, N] of some fields."""
        return {name: getattr(self, name) for name in names}

    def arms_with_propensities(self) -> np.ndarray:
        """Tell of which arms a week has decisions with a propensity, bool [W, 1 + A]; the first is that of no plan."""
        found = np.zeros((self.weeks, 1 + len(ARMS)), dtype=bool)
        week, customer = np.nonzero(~np.isnan(self.propensity))
        found[week, self.arm[week, customer] + 1] = True
        return found

    def extended(self, ids: tuple[str, ...], weeks: int) -> CustomerWeeks:
        """Return the same log with room for more weeks and for the customers of `ids`, which begins with the log's."""
        whole = CustomerWeeks.empty(ids, weeks)
        old_weeks, n = self.offer.shape
        for name, x in whole.cells(CELLS).items():
            x[:old_weeks, :n] = getattr(self, name)
        whole.first[:n] = self.first
        whole.last[:n] = self.last
        return whole

    def has_equal_cells(self, other: CustomerWeeks) -> bool:
        """Tell whether another log of the same shape says the same of every customer and week."""
        pairs = [(x, getattr(other, name)) for name, x in self.cells((*CELLS, "first", "last")).items()]
        return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)


CELLS = tuple(f.name for f in fields(CustomerWeeks) if f.name not in ("ids", "first", "last", "row"))


def staying(
    log: CustomerWeeks,
    before: int,
    rows: Rows,
    joined: np.ndarray | None,
    left: np.ndarray | None,
    *,
    in_table: np.ndarray,
    has_everyone: bool,
    lists_silence: bool,
) -> CustomerWeeks:
    """Return a log, whose first `before` weeks are an older log's, with the weeks in which each customer is in it.

    `joined` and `left` are weeks, NaN where unknown, [N], and `in_table`, bool [N], are the customers whom the table
    has. Where `joined` does not say it, a customer of no older week is there from the first new one or, if the files
    list every week without a send too (`lists_silence`), from the customer's first row. Unless the files have everyone,
    who is in no row is not in the log. The older log's last week may have been cut off, so that customers may still
    join in it. Who had left by the older log and has by the table, in which there is no earlier date of leaving now, or
    by a row, is in the log again, and in the weeks between. A week in which something happened stays in the log,
    whatever `left` says.
    """
    n, end = len(log.ids), log.weeks - 1
    earliest = max(before - 1, 0)
    appears = np.full(n, log.weeks)
    np.minimum.at(appears, rows.customer, rows.week)
    first_seen = np.clip(appears, earliest, before)  # the first new week, or the cut-off week where a row is in it
    if joined is not None:
        first = np.maximum(np.where(np.isnan(joined), first_seen, joined), earliest).astype(np.int64)
    elif lists_silence:
        first = np.maximum(appears, earliest)
    else:
        first = first_seen
    if not has_everyone:
        first = np.where(appears < log.weeks, first, log.weeks)
    last = np.full(n, end)
    if left is not None:
        last = np.where(np.isnan(left), end, np.minimum(left, end)).astype(np.int64)
        last = np.maximum(last, last_event(log))
    was_there = log.last >= log.first
    stayed = was_there & (log.last == before - 1)
    is_here = np.zeros(n, dtype=bool) if left is None else in_table & ~(left < before)  # NaN is not below
    came_back = was_there & ~stayed & (is_here | (appears < log.weeks))
    gone = was_there & ~stayed & ~came_back
    return replace(log, first=np.where(was_there, log.first, first), last=np.where(gone, log.last, last))


def last_event(log: CustomerWeeks) -> np.ndarray:
    """Return the last week in which something was sent to a customer or bought, −1 where there is none, [N]."""
    happened = (log.offer > 0) | log.bought
    weeks = np.arange(log.weeks)[:, None]
    return np.where(happened, weeks, -1).max(0, initial=-1)


def second_of_a_cell(key: np.ndarray) -> tuple[int, int] | None:
    """Return the first row whose key came before, and the row it came in; None where all keys [R] differ."""
    order = np.argsort(key, kind="stable")
    repeats = key[order][1:] == key[order][:-1]
    if not repeats.any():
        return None
    later = order[1:][repeats]
    at = int(later.argmin())
    return int(later[at]), int(order[:-1][repeats][at])


def put_sends(log: CustomerWeeks, rows: Rows) -> None:
    """Put rows, in the order of time, into a log's cells.

    A cell's decision is its first send. It has a purchase if one of its rows has one; opt-outs and redemptions are
    those of `after_the_decision`.
    """
    sent = np.flatnonzero(rows.offer > 0)
    free = sent[log.offer[rows.week[sent], rows.customer[sent]] == 0]
    reversed_order = free[::-1]  # of several writes to a cell the last one stays, so the first send is written last
    chosen = rows.take(reversed_order)
    at = (chosen.week, chosen.customer)
    log.offer[at] = chosen.offer
    log.channel[at] = chosen.channel
    log.propensity[at] = chosen.propensity
    put_silence(log, rows)
    put_outcomes(log, after_the_decision(log, rows))


def put_silence(log: CustomerWeeks, rows: Rows) -> None:
    """Give cells without a send the propensities that rows have of sending nothing."""
    unsent = np.flatnonzero((rows.offer == 0) & ~np.isnan(rows.propensity))
    unsent = unsent[log.offer[rows.week[unsent], rows.customer[unsent]] == 0]
    log.propensity[rows.week[unsent], rows.customer[unsent]] = rows.propensity[unsent]


def after_the_decision(log: CustomerWeeks, rows: Rows) -> Rows:
    """Keep what rows say of their cell's decision: opt-outs after any send, redemptions of its own offer and channel.

    A cell without a send keeps neither.
    """
    cell = (rows.week, rows.customer)
    is_sent = log.offer[cell] > 0
    is_decision = is_sent & (log.offer[cell] == rows.offer) & (log.channel[cell] == rows.channel)
    return replace(rows, redeemed=rows.redeemed & is_decision, unsubscribed=rows.unsubscribed & is_sent)


def is_in_log(log: CustomerWeeks, rows: Rows) -> np.ndarray:
    """Tell which of R rows are of a customer and week that the log has, bool [R]."""
    customer = rows.customer.clip(0)
    return (rows.customer >= 0) & (log.first[customer] <= rows.week) & (rows.week <= log.last[customer])


def has_no_send(log: CustomerWeeks, rows: Rows) -> np.ndarray:
    """Tell which of R sends are of a customer and week that the log has, without a send, bool [R]."""
    cell = (rows.week.clip(0, log.weeks - 1), rows.customer.clip(0))
    return is_in_log(log, rows) & (rows.offer > 0) & (log.offer[cell] == 0)


def put_outcomes(log: CustomerWeeks, rows: Rows) -> None:
    """Note the outcomes of sends' rows in a log's cells.

    A row's margin is that of its week's purchases: of several rows of a cell, and of what the cell had before, the
    greatest counts.
    """
    bought = rows.take(np.flatnonzero(rows.bought))
    cell = (bought.week, bought.customer)
    log.margin[cell] = np.where(log.bought[cell], log.margin[cell], -np.inf)
    np.maximum.at(log.margin, cell, bought.margin)
    for name in ("bought", "redeemed", "unsubscribed"):
        true = getattr(rows, name)
        getattr(log, name)[rows.week[true], rows.customer[true]] = True


def put_purchases(log: CustomerWeeks, rows: Rows) -> None:
    """Add purchases to a log's cells; the margin of a cell is the sum of its purchases'."""
    log.bought[rows.week[rows.bought], rows.customer[rows.bought]] = True
    np.add.at(log.margin, (rows.week, rows.customer), rows.margin)


def put_later_outcomes(log: CustomerWeeks, rows: Rows) -> None:
    """Note what came later of sends that are in the log already, and whose rows a later file has again."""
    put_outcomes(log, after_the_decision(log, rows))


def buy_what_was_redeemed(log: CustomerWeeks) -> int:
    """Count a redemption as a purchase; return the number of cells that had none, because its row has another week."""
    without = log.redeemed & ~log.bought
    log.bought[without] = True
    return int(without.sum())


def move_opt_outs(log: CustomerWeeks) -> int:
    """Let customers' opt-outs stand at their last send; return of how many customers there was none yet.

    A file has an opt-out beside the message whose link was used, and other messages went out before it was.
    """
    who = np.flatnonzero(log.unsubscribed.any(0))
    last = log.weeks - 1 - (log.offer[::-1, who] > 0).argmax(0)
    late = int((~log.unsubscribed[last, who]).sum())
    log.unsubscribed[:, who] = False
    log.unsubscribed[last, who] = True
    return late


def drop_returns_alone(log: CustomerWeeks) -> int:
    """Set the margin of cells without a purchase to 0; return the number of cells whose margin was another."""
    alone = ~log.bought & (log.margin != 0)
    log.margin[alone] = 0.0
    return int(alone.sum())
