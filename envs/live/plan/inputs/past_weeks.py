"""What the shop's log of sends says of the customers of a table: their memory, opt-outs and contacts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from envs.offers.logs import send_log
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.send_checks import changed_ids
from envs.offers.logs.send_log import Calendar
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.history import SeenWeek


@dataclass(frozen=True)
class PastWeeks:
    """The weeks of the log before the week that is planned, for the N customers of a table."""

    log: CustomerWeeks | None
    calendar: Calendar | None
    row: np.ndarray  #: of each customer in the log, −1 for a customer without history, int64 [N]
    week: int  #: that is planned, counted from the log's first

    @classmethod
    def none(cls, n: int, week: int) -> PastWeeks:
        """Return no history of n customers."""
        return cls(None, None, np.full(n, -1), week)

    @classmethod
    def read(cls, path: str, ids: Sequence[str], week: int | None, catalogue: Catalogue) -> PastWeeks:
        """Read a log. `week` None is the first week after it; weeks of the log from `week` on are left out.

        Raises ValueError where weeks before `week` are missing, so that contact caps could be broken, where the log
        knows none of the customers, and where it knows one under an id of another text.
        """
        log, calendar = send_log.read(path, list(catalogue.offers), list(catalogue.channels))
        week = log.weeks if week is None else week
        if week > log.weeks:
            raise ValueError(
                f"{path}: the log ends with week {log.weeks - 1}, and week {week} is planned: import the sends of the "
                "weeks between, for contact caps count them"
            )
        place = {name: k for k, name in enumerate(log.ids)}
        row = np.fromiter((place.get(name, -1) for name in ids), dtype=np.int64, count=len(ids))
        if not (row >= 0).any():
            raise ValueError(
                f"{path}: knows none of the customers: ids in the log are such as '{log.ids[0]}', in the table such as "
                f"'{ids[0]}'"
            )
        changed_ids(log, ids)
        return cls(log, calendar, row, week)

    def of(self, rows: np.ndarray) -> PastWeeks:
        """Take some of the customers."""
        return replace(self, row=self.row[rows])

    @property
    def known(self) -> np.ndarray:
        """Customers whom the log knows, bool [N]."""
        return self.row >= 0

    def cell(self, name: str, week: int, rows: slice = slice(None)) -> Tensor:
        """Return a field of the log in a week for some customers, zeros for those without history."""
        assert self.log is not None
        at = self.row[rows]
        values = getattr(self.log, name)[week][np.maximum(at, 0)]
        return torch.from_numpy(np.where(at >= 0, values, np.zeros((), values.dtype)))

    def seen(self, week: int, rows: slice) -> SeenWeek:
        """Return what the shop saw of a week of some customers."""
        return SeenWeek(
            offer=self.cell("offer", week, rows).long(),
            channel=self.cell("channel", week, rows).long(),
            bought=self.cell("bought", week, rows),
            redeemed=self.cell("redeemed", week, rows),
            opted_out=self.cell("unsubscribed", week, rows),
            margin=self.cell("margin", week, rows),
        )

    def present(self, week: int, rows: slice) -> Tensor:
        """Tell which customers were in the log in a week, bool."""
        assert self.log is not None
        at = self.row[rows]
        is_there = self.log.is_present(week)[np.maximum(at, 0)]
        return torch.from_numpy(is_there & (at >= 0))

    def left(self) -> Tensor:
        """Customers who were in the log and had left by the planned week, bool [N]."""
        return self.of_the_log(lambda log: log.last < self.week - 1)

    def is_to_join(self) -> Tensor:
        """Customers who by a log that goes on after the planned week joined later, bool [N]."""
        return self.of_the_log(lambda log: log.first > self.week)

    def of_the_log(self, condition: Callable[[CustomerWeeks], np.ndarray]) -> Tensor:
        """Tell for which customers a condition holds, of those who are in the log in some week, bool [N]."""
        if self.log is None:
            return torch.zeros(len(self.row), dtype=torch.bool)
        found = condition(self.log) & (self.log.last >= self.log.first)
        return torch.from_numpy(found[np.maximum(self.row, 0)] & self.known)

    def subscribed(self) -> Tensor:
        """Customers who have not opted out, bool [N]."""
        subscribed = torch.ones(len(self.row), dtype=torch.bool)
        for week in range(self.week if self.log is not None else 0):
            subscribed &= ~self.cell("unsubscribed", week)
        return subscribed

    def contacted(self, weeks: int) -> list[Tensor]:
        """Return who was contacted in each of the last weeks, the oldest first, bool [N] each."""
        if self.log is None:
            return []
        return [self.cell("offer", week) > 0 for week in range(max(self.week - weeks, 0), self.week)]

    def first_day(self) -> np.datetime64 | None:
        """First day of the planned week, where the log has dates."""
        if self.calendar is None or not self.calendar.has_dates:
            return None
        return np.datetime64(self.calendar.start + send_log.DAYS * self.week, "D")
