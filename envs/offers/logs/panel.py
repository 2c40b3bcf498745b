"""A log of the offers environment laid out by customer and week: seasons, or whole lives."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from envs.offers.world.customers import CHURNED, SUBSCRIBED, CustomerState
from rlcore.offline.logged_dataset import LoggedDataset, named_rows
from rlcore.ope.cross_fitting import rows_by_episode

MAX_WEEKS = 1040  # from a customer's first week in a log to the last: 20 years


@dataclass(frozen=True)
class Panel:
    """Logged seasons, or lives, of N customers, T weeks each.

    A life has all weeks from a customer's first one in the log on, through the seasons. Where `logged` is false, the
    other fields mean nothing, but for the `week` and `time` of a life.
    """

    features: Tensor  #: [F, N]
    customer: Tensor  #: index of the customer in the log, int64 [N]
    logged: Tensor  #: bool [T, N]
    week: Tensor  #: of the season, int64 [T, N]
    state: CustomerState  #: before the decision, int64 [T, N] each
    offer: Tensor  #: int64 [T, N]
    channel: Tensor  #: int64 [T, N]
    bought: Tensor  #: bool [T, N]
    redeemed: Tensor  #: bool [T, N]
    next_state: CustomerState  #: after the week, int64 [T, N] each
    margin: Tensor  #: money that a purchase brought, 0 without one, [T, N]
    spend: Tensor  #: money of the budget, [T, N]
    propensity: Tensor  #: of the action taken, float64 [T, N], NaN where missing
    num_allowed: Tensor  #: number of actions that were allowed, int64 [T, N]
    time: Tensor | None = None  #: week of the log, from 0 through its seasons, int64 [T, N]
    dynamics: Tensor | None = None  #: observed columns beside the features, [K, T, N]

    def __len__(self) -> int:
        return len(self.customer)

    @property
    def active(self) -> Tensor:
        """Logged weeks of customers who have not churned, bool [T, N]."""
        return self.logged & (self.state.status != CHURNED)

    @property
    def subscribed(self) -> Tensor:
        """Logged weeks of customers who could be contacted, bool [T, N]."""
        return self.logged & (self.state.status == SUBSCRIBED)

    @property
    def missed(self) -> Tensor:
        """Weeks that were not logged, with later ones that were, bool [T, N]."""
        later = self.logged.flip(0).cumsum(0).flip(0) > 0
        return later & ~self.logged

    def map(self, function) -> Panel:
        """Apply `function` to every tensor."""

        def apply(x):
            if x is None:
                return None
            return CustomerState(*map(function, x)) if isinstance(x, CustomerState) else function(x)

        return replace(self, **{f.name: apply(getattr(self, f.name)) for f in fields(self)})

    def __getitem__(self, rows) -> Panel:
        """Take some of the customers."""
        return self.map(lambda x: x[..., rows])


def to_panel(log: LoggedDataset, env, where: str) -> Panel:
    """Lay a log's seasons out by customer and week.

    Raises ValueError, with a message that begins with `where`, if the log lacks the states after decisions, or has
    outcomes that the world cannot produce.
    """
    return laid_out_panel(log, env, where, rows_by_episode(log).T)


def to_life_panel(log: LoggedDataset, env, where: str) -> Panel:
    """Lay the whole lives of a log's customers out: the seasons of each are joined in time, [L, N].

    Raises ValueError as `to_panel` does.
    """
    weeks = env.world.weeks
    rows_by_episode(log)  # no repeats
    time = log.episode * weeks + log.step
    _, owner = log.unit.unique(return_inverse=True)
    first = torch.full((int(owner.amax()) + 1,), torch.iinfo(torch.long).max, device=time.device)
    first = first.scatter_reduce(0, owner, time, "amin")
    place = time - first[owner]
    if (wrong := place >= MAX_WEEKS).any():
        raise ValueError(
            f"{where}: {named_rows(wrong, log.row)}, column '{log.names.episode}': expected seasons numbered in a row, "
            f"of at most {MAX_WEEKS:,} weeks"
        )
    rows = torch.full((int(place.amax()) + 1, len(first)), -1, device=time.device)
    rows[place, owner] = torch.arange(len(place), device=time.device)
    panel = laid_out_panel(log, env, where, rows)
    time = first + torch.arange(len(rows), device=time.device)[:, None]
    return replace(panel, time=time, week=time % weeks)


def laid_out_panel(log: LoggedDataset, env, where: str, row: Tensor) -> Panel:
    """Lay out the rows int64 [T, N] of a log, −1 where there is none; the first row of each customer is one."""
    if log.next_obs is None:
        raise ValueError(f"{where}: expected next_state_* and next_valid_*, what decisions led to")
    state, next_state = (env.codec.decode_state(x[:]) for x in (log.obs, log.next_obs))
    offer, channel = env.world.catalogue.action_codec.decode(log.action)
    bought = log.outcome("trips", "algo=twin") > 0
    redeemed = log.outcome("redeemed", "algo=twin") > 0
    weeks = env.world.weeks
    if (wrong := redeemed & (~bought | (offer == 0))).any():
        raise ValueError(
            f"{where}: {named_rows(wrong, log.row)}, column 'redeemed': expected a redemption only of an offer and "
            "with a trip"
        )
    if (wrong := (log.step < 0) | (log.step >= weeks)).any():
        raise ValueError(
            f"{where}: {named_rows(wrong, log.row)}, column 'week': expected a week of the season, 0 to {weeks - 1}"
        )
    margin = margin_of(log, env.world.reward, state, next_state, offer, bought)
    logged, row = row >= 0, row.clamp_min(0)
    first = row[0]

    def laid_out(x: Tensor) -> Tensor:
        return x[row]

    return Panel(
        features=log.obs[first, : log.static_dim].T,
        customer=log.unit[first],
        logged=logged,
        week=laid_out(log.step),
        state=CustomerState(*map(laid_out, state)),
        offer=laid_out(offer),
        channel=laid_out(channel),
        bought=laid_out(bought),
        redeemed=laid_out(redeemed),
        next_state=CustomerState(*map(laid_out, next_state)),
        margin=laid_out(torch.where(bought, margin, 0.0)),
        spend=laid_out(log.cost),
        propensity=laid_out(log.propensity),
        num_allowed=laid_out(log.action_mask[:].sum(1)),
        time=laid_out(log.episode * weeks + log.step),
        dynamics=laid_out(env.codec.decode_dynamics(log.obs[:])).permute(2, 0, 1),
    )


def margin_of(
    log: LoggedDataset, terms, state: CustomerState, next_state: CustomerState, offer: Tensor, bought: Tensor
) -> Tensor:
    """Return the margin of a purchase [B], as logged or from the logged rewards, whose other terms are known."""
    if "margin" in log.outcomes:  # a shop's log of sends has it
        return log.outcomes["margin"]
    churned = (next_state.status == CHURNED) & (state.status != CHURNED)
    annoyed = (offer > 0) & (state.fatigue >= terms.fatigue_limit)
    return log.reward + log.cost + terms.churn_cost * churned + terms.fatigue_penalty * annoyed - terms.trips * bought
