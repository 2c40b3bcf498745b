"""The filter of the hidden state where features leave α open: a belief for each of K values of α, and their weights.

At given features customers still differ. Who bought often is then likelier to buy again, and a model without such
differences takes them for habit (heterogeneity against state dependence, Heckman 1981). α is therefore G(x) plus a
normal random effect, integrated by Gauss–Hermite quadrature (Butler & Moffitt 1982).
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.world.customers import SUBSCRIBED, UNSUBSCRIBED, Customers, World
from envs.offers.world.filtering import Belief, Predicted, filter_week, predict_week
from envs.offers.world.history import SeenWeek


def hermite_nodes(nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes [K] of a standard normal and the logarithms of their weights [K], whose sum is 1."""
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return like.new_tensor(at), like.new_tensor(weight / weight.sum()).log()


class MixtureFilter:
    """The filter of N customers from the start of a season, whose α is normal with sd `alpha_sd` [] or [N].

    `start` [14] are the marginals of the state at the start, and `opted_out`, bool [N], who had opted out by then. The
    K nodes of a customer stand N columns apart.
    """

    def __init__(
        self, customers: Customers, world: World, start: Tensor, opted_out: Tensor, alpha_sd: Tensor, nodes: int
    ):
        at, log_weight = hermite_nodes(nodes, customers.alpha)
        n = len(customers)
        shift = (at[:, None] * alpha_sd).expand(nodes, n)
        of_nodes = customers.map(lambda x: x.repeat(*(1,) * (x.dim() - 1), nodes))
        self.customers = replace(of_nodes, alpha=of_nodes.alpha + shift.flatten())
        self.world, self.nodes = world, nodes
        self.log_weight = log_weight[:, None].expand(nodes, n)  #: log P(node | weeks so far), [K, N]
        marginals = start.to(customers.alpha)[:, None].expand(-1, nodes * n)
        self.belief = Belief.from_marginals(marginals, opted_out.repeat(nodes))

    def mixed(self, of_nodes: Tensor) -> Tensor:
        """Return the mean of [K·N] over the nodes, [N]."""
        return (self.log_weight.exp() * of_nodes.view(self.nodes, -1)).sum(0)

    def predict(self, week: int, offer: Tensor, channel: Tensor) -> Predicted:
        """Predict what a week (from 0) shows of the customers, before it is seen."""
        predicted = predict_week(
            self.customers, self.world, week, self.belief, offer.repeat(self.nodes), channel.repeat(self.nodes)
        )
        return Predicted(*map(self.mixed, predicted))

    def observe(self, week: int, seen: SeenWeek) -> Tensor:
        """Condition on a week and move to the next; return log P(week | weeks before), [N]."""
        of_nodes = SeenWeek(*(x.repeat(self.nodes) for x in seen))
        self.belief, log_probability = filter_week(self.customers, self.world, week, self.belief, of_nodes)
        joint = self.log_weight + log_probability.view(self.nodes, -1)
        total = joint.logsumexp(0)
        self.log_weight = joint - total
        return total


def seen_weeks(panel: Panel) -> list[SeenWeek]:
    """Return what a panel shows of each week; a week that is not logged shows nothing sent and nothing bought."""
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
    return [SeenWeek(*(x[t] for x in columns)) for t in range(len(panel.week))]


def from_the_first_week(panel: Panel) -> Panel:
    """Leave out the seasons that customers joined after the first week, for the hidden state is filtered from there.

    Prints how many. Raises ValueError where weeks of another season are missing before its last one, or none is left.
    """
    joined_later = panel.week[0] > 0
    if joined_later.any():
        print(
            f"note: log: {int(joined_later.sum()):,} of {len(panel):,} seasons of customers, who joined after the "
            "first week, are left out: the hidden state is filtered from there",
            file=sys.stderr,
        )
        panel = panel[~joined_later]
    if not len(panel):
        raise ValueError("log: column 'week': expected seasons from their first week on, got none")
    weeks = torch.arange(len(panel.week), device=panel.week.device)[:, None]
    skipped = ((panel.week != weeks) & panel.logged).any(0)
    if skipped.any():
        raise ValueError(
            f"log: customer {panel.customer[skipped][0].item()}, column 'week': expected all weeks of a season from "
            "the first, for the hidden state is filtered from there"
        )
    return panel


def opted_out_before(panel: Panel) -> Tensor:
    """Return who had opted out before the first week, bool [N]."""
    return panel.state.status[0] != SUBSCRIBED
