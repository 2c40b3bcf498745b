"""Whether an earlier twin still fits: its likelihood of weeks since its log, beside that of its own weeks.

A likelihood changes from month to month for reasons of its own: a week in which half of the customers buy is harder to
predict than one in which few do, and more and more customers fall silent. What an earlier twin lost is therefore
measured against the twin that is fitted to all weeks: the loss of log-likelihood on the new weeks, less that on its own
weeks. Both twins predict the same decisions of customers that neither was fitted to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.ope.intervals import LEVEL, normal_quantile


class WeeksFit(NamedTuple):
    """The fit of two twins on some weeks of a log, log-likelihoods a decision."""

    first: int  # week of the log, from 0
    last: int
    decisions: int
    earlier: float  # of the earlier twin
    now: float  # of the twin fitted to all weeks

    def line(self) -> str:
        """Say it in words."""
        return f"{self.earlier:.4f} in weeks {self.first + 1}-{self.last + 1} (this twin {self.now:.4f})"


class FitDrift(NamedTuple):
    """The earlier twin's fit on the weeks of its own log and on later ones."""

    own: WeeksFit
    new: WeeksFit
    change: float  # of the earlier twin's log-likelihood less this twin's, from its own to the new weeks
    low: float  # 95 % interval, by customers
    high: float

    @property
    def verdict(self) -> str:
        """Say whether the fit became worse."""
        return "it became worse" if self.high < 0 else "no sign that it became worse"

    def lines(self) -> list[str]:
        """Say in two lines what was found."""
        return [
            f"log-likelihood a decision under the earlier twin: {self.own.line()}, {self.new.line()}",
            f"its fit on the new weeks, less that on its own: {self.change:+.4f} "
            f"({self.low:+.4f} to {self.high:+.4f}), {self.verdict}",
        ]

    def numbers(self) -> dict:
        """Lay everything out for metrics.json."""
        return {
            "own": self.own._asdict(),
            "new": self.new._asdict(),
            "change": self.change,
            "change_ci": [self.low, self.high],
            "verdict": self.verdict,
        }


def fit_drift(
    earlier: Tensor, now: Tensor, logged: Tensor, time: Tensor, customer: Tensor, since: int
) -> FitDrift | None:
    """Compare the weeks of the log from `since` on with those before; None where one side has no decisions.

    `earlier` and `now` are log-likelihoods under the two twins, [T, N], `logged` is bool [T, N], `time` the week of the
    log [T, N], and `customer` [N] groups the columns. The interval is that of a difference of ratios, by linearisation,
    over customers.
    """
    sides = [logged & (time < since), logged & (time >= since)]
    if not all(side.any() for side in sides):
        return None
    of_customer = customer.unique(return_inverse=True)[1]
    customers = int(of_customer.amax()) + 1
    ahead = (earlier - now).double()
    fits, means = [], []
    influence = torch.zeros(customers, dtype=torch.float64, device=ahead.device)
    for side, sign in zip(sides, (-1, 1)):
        count, mean = int(side.sum()), ahead[side].mean()
        influence.index_add_(0, of_customer, sign * torch.where(side, ahead - mean, 0.0).sum(0) / count)
        means.append(mean.item())
        first, last = (int(x) for x in time[side].aminmax())
        fits.append(WeeksFit(first, last, count, *(x.double()[side].mean().item() for x in (earlier, now))))
    half = normal_quantile(LEVEL) * (influence.square().sum() * customers / max(customers - 1, 1)).sqrt().item()
    change = means[1] - means[0]
    own, new = fits
    return FitDrift(own, new, change, change - half, change + half)
