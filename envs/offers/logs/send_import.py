"""Turn a shop's sends and purchases into a log, or add what is new to a log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from envs.offers.logs.customer_dates import later_features, weeks_of
from envs.offers.logs.customer_weeks import (
    CustomerWeeks,
    Rows,
    buy_what_was_redeemed,
    drop_returns_alone,
    has_no_send,
    is_in_log,
    move_opt_outs,
    put_later_outcomes,
    put_purchases,
    put_sends,
    staying,
)
from envs.offers.logs.planned_weeks import PlannedWeek
from envs.offers.logs.send_checks import (
    changed_ids,
    check_not_taken,
    check_numbers_go_on,
    check_one_a_week,
    check_stay,
    left_out,
    weeks_to,
)
from envs.offers.logs.send_log import Calendar, moment_of
from envs.offers.logs.send_propensities import FileFacts, put_propensities
from envs.offers.logs.send_reader import Table, days_of, read_sends, to_rows

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True)
class Imported:
    """A log after an import, and what the import has to say."""

    log: CustomerWeeks
    calendar: Calendar
    warnings: list[str]
    planned: list[str]  # of each planned week among the new ones: how many planned sends were made
    is_changed: bool  #: False where the files have nothing that the older log lacks


class Sends:
    """Reads one row a send: customer, date, offer, channel and, where known, propensity and outcomes.

    These parameters name columns (null: the file has none): `customer` (ids of the customer table), `date` (a date, a
    week such as 2026-W05, or a week's number), `offer` and `channel` (empty: nothing was sent; a null channel is the
    catalogue's only one), `propensity` of the decision, `bought` and `redeemed` (0 or 1), `margin` (money of all the
    week's purchases before discounts; of several rows of a week the greatest counts) and `unsubscribed` (1 if the
    customer opted out). `purchases` is a table of its own with `path`, `separator`, `customer`, `date` and `margin`,
    one row a purchase; with it `bought` and `margin` are not read. A customer's weeks that the file lacks are weeks
    without a send, of propensity `propensity_of_nothing`.

    A customer is in the log from the date in the column `joined` of the customer table, else from their first row where
    the file lists all weeks without a send too (`lists_silence`), else from the log's first week; and to the date in
    the column `left`, else to the log's last week. Where weeks without a send are listed, or there is no table of
    purchases, who is in no row is not in the log. Weeks begin on `week_starts`; the log begins with the week of
    `start`, else with that of the first send. It goes to the week of `until`, up to which the files are complete: later
    rows are left out, and counted. Without `until` it goes to the week of the last send. `several` sends of a customer
    in a week are refused, or the first is the week's decision. Policies are valued on the log at `price`, what one unit
    of spend must bring, and with `trips`, the value of a purchase beside its margin.
    """

    def __init__(
        self,
        *,
        path: str | None,
        separator: str,
        customer: str,
        date: str,
        offer: str,
        channel: str | None,
        propensity: str | None,
        propensity_of_nothing: float | None,
        bought: str | None,
        redeemed: str | None,
        margin: str | None,
        unsubscribed: str | None,
        purchases: dict,
        joined: str | None,
        left: str | None,
        week_starts: str,
        start: str | int | None,
        until: str | int | None,
        lists_silence: bool,
        several: str,
        price: float,
        trips: float,
    ):
        if week_starts not in WEEKDAYS:
            raise ValueError(f"sends.week_starts: expected one of {', '.join(WEEKDAYS)}, got {week_starts}")
        if several not in ("refuse", "first"):
            raise ValueError(f"sends.several: expected refuse or first, got {several}")
        self.weekday = WEEKDAYS.index(week_starts)
        self.joined, self.left, self.several, self.lists_silence = joined, left, several, lists_silence
        self.price, self.trips = price, trips
        self.start, self.until = start, until
        self.has_purchases = purchases["path"] is not None
        names = {
            "customer": customer,
            "date": date,
            "offer": offer,
            "channel": channel,
            "propensity": propensity,
            "bought": None if self.has_purchases else bought,
            "redeemed": redeemed,
            "margin": None if self.has_purchases else margin,
            "unsubscribed": unsubscribed,
        }
        self.of_the_file = FileFacts(bool(propensity), propensity_of_nothing, self.has_purchases)
        self.sends = read_sends(path, separator, {key: name for key, name in names.items() if name}, "sends")
        self.has_outcomes = self.has_purchases or bool(bought)
        if not self.has_outcomes:
            raise ValueError("sends.bought: expected a column, or a table of purchases (sends.purchases.path)")
        self.purchases: Table | None = None
        if self.has_purchases:
            columns = {key: purchases[key] for key in ("customer", "date", "margin")}
            self.purchases = read_sends(purchases["path"], purchases["separator"], columns, "sends.purchases")

    # ── the whole ───────────────────────────────────────────────────────────────────────────────────────────────────
    def __call__(self, env, old: tuple[CustomerWeeks, Calendar] | None, plans: Iterable[PlannedWeek] = ()) -> Imported:
        """Return the log of these files, or an older log with what is new in them.

        The propensities of weeks that `plans` has are those of the plans. Weeks that lack a plan after the first
        planned week are warned of.
        """
        given = env.population.given
        if given is None:
            raise ValueError("sends: expected the customers that they went to, as env/population=customer_table")
        self.warnings: list[str] = []
        moments = days_of(self.sends)
        calendar = old[1] if old else Calendar.of(moments, self.start, self.weekday, self.price, self.trips)
        knows_silence = calendar.knows_silence and (self.has_purchases or self.lists_silence)
        calendar = replace(calendar, knows_silence=knows_silence, price=self.price, trips=self.trips)
        until = None if self.until is None else moment_of(self.until, calendar.has_dates, "sends.until")
        moment = self._numbers(self.sends, moments, calendar)
        is_after = moment > (np.inf if until is None else until)
        is_new = (moment > calendar.sends_to if old else moment >= calendar.start) & ~is_after
        if old is None and not is_new.any():
            cut = f" up to sends.until, {self.until}," if is_after.any() else ""
            raise ValueError(f"{self.sends.path}: expected a send{cut} to begin a log with, got none")
        sends_to = calendar.last_of(moment, until)
        weeks = weeks_to(sends_to, self.sends, moment, calendar)

        known = dict.fromkeys(old[0].ids) if old else {}
        if old:
            self.warnings += changed_ids(old[0], given.ids)
        ids = (*known, *(x for x in given.ids if x not in known))
        before = old[0].extended(ids, weeks) if old else CustomerWeeks.empty(ids, weeks)
        index = {name: k for k, name in enumerate(ids)}
        customer = self._customers(self.sends, index, is_after)
        rows = to_rows(self.sends, customer, calendar.week_of(moment), env.world.catalogue)
        kept = np.flatnonzero(is_new & (customer >= 0))
        kept = kept[np.argsort(moment[kept], kind="stable")]  # of several sends in a week the first in time decides
        if self.several == "refuse":
            check_one_a_week(self.sends, rows, len(ids))
        joined, left = (
            weeks_of(given, name, key, index, calendar) if name else None
            for key, name in (("joined", self.joined), ("left", self.left))
        )
        log = staying(
            before.extended(ids, weeks),
            old[0].weeks if old else 0,
            rows.take(kept),
            joined,
            left,
            in_table=np.isin(np.arange(len(ids)), [index[x] for x in given.ids]),
            has_everyone=self.has_purchases and not self.lists_silence,
            lists_silence=self.lists_silence,
        )
        self.warnings += later_features(given, env.population.feature_names, log, calendar)
        check_stay(self.sends, log, rows, is_new & (customer >= 0))
        if self.several == "refuse":
            check_not_taken(self.sends, log, rows, kept)
        late = ~is_new & has_no_send(log, rows)
        if old:
            check_numbers_go_on(self.sends, moment, late, calendar, begins_at_start=self.start is not None)
        for wrong, why in left_out(log, rows, ~is_new & ~late & ~is_after, is_first=old is None):
            self._count(wrong, "sends", why)
        if late.any():
            self.warnings.append(
                f"{int(late.sum()):,} sends of weeks that the log has were not in it, such as row {late.argmax() + 2}: "
                "added"
            )
        added = np.flatnonzero(late | (~is_new & is_in_log(log, rows) & ~is_in_log(before, rows)))
        put_sends(log, rows.take(added[np.argsort(moment[added], kind="stable")]))
        put_sends(log, rows.take(kept))
        put_later_outcomes(log, rows.take(np.flatnonzero(~is_new & (customer >= 0) & (rows.week >= 0))))
        purchases_to = calendar.purchases_to
        if self.purchases is not None:
            bought_at = self._numbers(self.purchases, days_of(self.purchases), calendar)
            purchases_to = self._put_purchases(log, before, self.purchases, bought_at, until, index, calendar)
        self._move_opt_outs(log)
        self._complete_purchases(log)
        first_new = max(old[0].weeks - 1, 0) if old else 0  # the older log's last week may have been cut off
        planned, said = put_propensities(log, before, plans, range(first_new, weeks), rows, kept, self.of_the_file)
        self.warnings += said
        if purchases_to is not None and int(calendar.week_of(np.array(purchases_to))) < weeks - 1:
            self.warnings.append(
                f"the last purchase is of {calendar.describe(purchases_to)}, before the log's last week: the weeks "
                "after it count as weeks in which nobody bought"
            )
        calendar = replace(calendar, sends_to=sends_to, purchases_to=purchases_to)
        is_changed = old is None or calendar != old[1] or not before.has_equal_cells(log)
        return Imported(log, calendar, self.warnings, planned, is_changed)

    # ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _numbers(self, table: Table, moments: np.ndarray, calendar: Calendar) -> np.ndarray:
        """Return moments as whole numbers; raise ValueError where they are of another kind than the log's."""
        if len(moments) and (moments.dtype.kind == "M") != calendar.has_dates:
            kinds = ("dates", "numbers of weeks") if calendar.has_dates else ("numbers of weeks", "dates")
            raise ValueError(
                f"{table.path}: column '{table.names['date']}': expected {kinds[0]}, as in the log, got {kinds[1]}"
            )
        return moments.astype(np.int64)

    def _count(self, wrong: np.ndarray, what: str, why: str) -> None:
        if wrong.any():
            self.warnings.append(f"{int(wrong.sum()):,} of {len(wrong):,} {what} {why}: left out")

    # ── customers ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _customers(self, table: Table, index: dict[str, int], is_after: np.ndarray) -> np.ndarray:
        """Return the customers of R rows, −1 where the customer table lacks one, or a row is after `sends.until`.

        Of the other rows there must be one whose customer the table has; `is_after` is bool [R].
        """
        texts = table.columns["customer"].tolist()
        found = np.fromiter((index.get(x, -1) for x in texts), dtype=np.int64, count=len(texts))
        lacks, what = (found < 0) & ~is_after, table.where.replace("sends.", "")
        if lacks.any():
            if lacks[~is_after].all():
                table.refuse("customer", lacks, f"an id of the customer table, such as {next(iter(index))}", shows=True)
            row = int(lacks.argmax())
            why = f"went to customers whom the customer table lacks, such as '{texts[row]}' in row {row + 2}"
            self._count(lacks, what, why)
        self._count(is_after, what, "lie after sends.until")
        return np.where(is_after, -1, found)

    # ── what is not on the sends' rows ──────────────────────────────────────────────────────────────────────────────
    def _move_opt_outs(self, log: CustomerWeeks) -> None:
        """Let opt-outs count from a customer's last send on, and warn where the file has them beside an earlier one."""
        late = move_opt_outs(log)
        if late:
            self.warnings.append(
                f"{late:,} customers were sent something after the message beside which "
                f"'{self.sends.names['unsubscribed']}' is 1: their opt-out counts from their last message on"
            )

    def _put_purchases(
        self,
        log: CustomerWeeks,
        before: CustomerWeeks,
        table: Table,
        moment: np.ndarray,
        until: int | None,
        index: dict[str, int],
        calendar: Calendar,
    ) -> int:
        """Add the purchases up to `until` that are new and lie in a customer's weeks; return the last one's moment.

        New are those after the last one of the log `before`, and those of a week in which it did not have the customer.
        """
        newest = calendar.start - 1 if calendar.purchases_to is None else calendar.purchases_to
        week = calendar.week_of(moment)
        is_after = moment > (np.inf if until is None else until)
        customer = self._customers(table, index, is_after)
        rows = Rows.of_purchases(customer, week, table.columns["margin"])
        is_there = is_in_log(log, rows)
        is_new = (moment > newest) | (is_there & ~is_in_log(before, rows))
        self._count(moment < calendar.start, "purchases", "lie before the log's first week")
        self._count((moment >= calendar.start) & ~is_new & ~is_after, "purchases", "are in the log already")
        self._count((week >= log.weeks) & ~is_after, "purchases", "lie after the week of the last send")
        absent = is_new & (week < log.weeks) & (customer >= 0) & ~is_there
        self._count(absent, "purchases", "lie in weeks in which the customer is not in the log")
        put_purchases(log, rows.take(np.flatnonzero(is_new & is_there)))
        taken = moment[(week < log.weeks) & ~is_after]
        return max(newest, int(taken.max()) if len(taken) else newest)

    def _complete_purchases(self, log: CustomerWeeks) -> None:
        """Give redemptions their purchases, leave returns without a purchase out, and warn of both."""
        without = buy_what_was_redeemed(log)
        if without:
            self.warnings.append(f"{without:,} redemptions in weeks without a purchase: they count as one of margin 0")
        returns = drop_returns_alone(log)
        if returns:
            self.warnings.append(f"{returns:,} returns in weeks without a purchase: left out")
