"""The filter of the hidden state where features leave parameters open: a belief for each of Q nodes, and their weights.

At given features customers still differ. Who bought often is then likelier to buy again, and a model without such
differences takes them for habit (heterogeneity against state dependence, Heckman 1981). Some parameters are therefore
G(x) plus a normal random effect (envs/offers/twin/hidden_states/random_effects.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.world.customers import SUBSCRIBED, UNSUBSCRIBED, Customers, World
from envs.offers.world.filtering import Belief, Predicted, predict_week
from envs.offers.world.history import SeenWeek
from envs.offers.world.life_likelihood import observe_week


class PanelWeek(NamedTuple):
    """A week of the lives of N customers."""

    number: Tensor  # week of the log, int64 [N]: seasons in a row
    seen: SeenWeek
    missed: Tensor  # bool [N]: in the log before and after this week, but not in it

    def take(self, rows) -> PanelWeek:
        """Take some of the customers."""
        return PanelWeek(self.number[rows], self.seen.take(rows), self.missed[rows])


class MixtureFilter:
    """The filter of N customers from their first week in the log, each of whom has the parameters of one of Q nodes.

    `customers` are Q·N: the nodes of a customer stand N columns apart. `log_weight` [Q] are the logarithms of the
    nodes' probabilities before the first week. `start` [14] are the marginals of the state then, and `opted_out`,
    bool [N], who had opted out by then.
    """

    def __init__(self, customers: Customers, world: World, start: Tensor, opted_out: Tensor, log_weight: Tensor):
        self.customers, self.world, self.nodes = customers, world, len(log_weight)
        #: log P(node | weeks so far), [Q, N]
        self.log_weight = log_weight.to(customers.alpha)[:, None].expand(-1, len(opted_out))
        marginals = start.to(customers.alpha)[:, None].expand(-1, len(customers))
        self.belief = Belief.from_marginals(marginals, opted_out.repeat(self.nodes))

    def mixed(self, of_nodes: Tensor) -> Tensor:
        """Return the mean of [Q·N] over the nodes, [N]."""
        return (self.log_weight.exp() * of_nodes.view(self.nodes, -1)).sum(0)

    def predict(self, week: int | Tensor, offer: Tensor, channel: Tensor) -> Predicted:
        """Predict what a week, a number or [N], shows of the customers, before it is seen."""
        week = week.repeat(self.nodes) if isinstance(week, Tensor) else week
        predicted = predict_week(
            self.customers, self.world, week, self.belief, offer.repeat(self.nodes), channel.repeat(self.nodes)
        )
        return Predicted(*map(self.mixed, predicted))

    def observe(self, week: PanelWeek) -> Tensor:
        """Condition on a week and move to the next; return log P(week | weeks before), [N], 0 where it was missed."""
        of_nodes = PanelWeek(
            week.number.repeat(self.nodes),
            SeenWeek(*(x.repeat(self.nodes) for x in week.seen)),
            week.missed.repeat(self.nodes),
        )
        self.belief, log_probability = observe_week(
            self.customers, self.world, of_nodes.number, self.belief, of_nodes.seen, of_nodes.missed
        )
        joint = self.log_weight + log_probability.view(self.nodes, -1)
        total = joint.logsumexp(0)
        self.log_weight = joint - total
        return total


def panel_weeks(panel: Panel) -> list[PanelWeek]:
    """Return what a panel shows of each week; a week that is not logged shows nothing sent and nothing bought."""
    assert panel.time is not None  # the panel is of lives
    subscribed = panel.subscribed
    opted_out = subscribed & (panel.next_state.status == UNSUBSCRIBED)
    columns = (
        torch.where(subscribed, panel.offer, 0),
        torch.where(subscribed, panel.channel, 0),
        panel.bought & panel.logged,
        panel.redeemed & panel.logged,
        opted_out,
        torch.where(panel.bought & panel.logged, panel.margin, 0.0),
    )
    weeks = zip(panel.time, panel.missed, *columns)
    return [PanelWeek(number, SeenWeek(*seen), missed) for number, missed, *seen in weeks]


def seen_weeks(panel: Panel) -> list[SeenWeek]:
    """Return what a panel shows of each week, without its number."""
    return [week.seen for week in panel_weeks(panel)]


def opted_out_before(panel: Panel) -> Tensor:
    """Return who had opted out before the first week, bool [N]."""
    return panel.state.status[0] != SUBSCRIBED
