"""A neural twin's customers: they respond as networks say of features, observable history and action."""
from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor, nn

from envs.offers.world.catalogue import Catalogue
from envs.offers.world.history import History
from envs.offers.neural_twin.response_models import REDEEM, TRIP, Rest, Valid
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNSUBSCRIBED, CustomerState, World
from envs.offers.world.response import Outcome


def chains(catalogue: Catalogue) -> list[list[int]]:
    """Contacts through each channel in order of face value, numbered as treatments (envs/offers/world/catalogue.py)."""
    order, codec = 1 + catalogue.value[1:].argsort(), catalogue.action_codec
    return [codec.treatment(codec.encode(order, k)).tolist() for k in range(codec.num_channels)]


def inputs_of(features: Tensor, history: History, halvings: list[float], season: Tensor) -> Tensor:
    """What networks see, [N, F + K + 1]: features, columns of the history, and the logarithm of the season's index []."""
    columns = history.columns(halvings)
    return torch.cat((features.to(columns), columns, season.log().expand(len(features), 1).to(columns)), 1)


class Member(nn.Module):
    """One model of the ensemble."""

    def __init__(self, response: nn.Module, rest: Rest, order: list[list[int]]):
        super().__init__()
        self.response, self.rest = Valid(response, order), rest

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """P(trip), P(redeemed) of all actions [B, A] each, P(churn) without and with a trip [B, 2], P(opt-out) [B, C], margin
        [B]."""
        table = self.response(inputs)
        return table[..., TRIP], table[..., REDEEM], *self.rest(inputs)


class Week(NamedTuple):
    """What N customers do in a week: expected and drawn."""

    trip: Tensor  # P(trip)
    redeem: Tensor  # P(redeemed)
    spend: Tensor  # expected
    margin: Tensor  # money that a trip brings
    churn: Tensor  # P(churn) without and with a trip, [N, 2]
    bought: Tensor  # bool
    redeemed: Tensor  # bool
    paid: Tensor  # what came of the spend
    following: History

    @property
    def lost(self) -> Tensor:
        """P(churn) given whether they bought."""
        return self.churn.gather(1, self.bought.long()[:, None])[:, 0]


class Crowd:
    """N customers, each of whom responds as one of `members`: `who` int64 [N]. In place of a world's Customers wherever
    nothing asks for hidden states; its state of a customer is the history."""

    def __init__(self, members: list[Callable], who: Tensor, features: Tensor, world: World, halvings: list[float]):
        self.members, self.who, self.features, self.world, self.halvings = members, who, features, world, halvings
        self.rows = [(member, (who == k).nonzero()[:, 0]) for k, member in enumerate(members)]
        self.rows = [(member, rows) for member, rows in self.rows if len(rows)]
        self.codec = world.catalogue.action_codec
        pair = self.codec.every_action(who.device)
        self.offer, self.channel = self.codec.decode(pair)
        self.actions = self.codec.treatment(pair)

    def __len__(self) -> int:
        return len(self.who)

    def __getitem__(self, rows) -> Crowd:
        return Crowd(self.members, self.who[rows], self.features[rows], self.world, self.halvings)

    @torch.no_grad()
    def ask(self, history: History, week: int | None) -> tuple[Tensor, ...]:
        """What Member says of all customers; `week` None is a week of index 1."""
        season = self.world.season.new_ones(()) if week is None else self.world.season[week]
        inputs = inputs_of(self.features, history, self.halvings, season).float()
        if len(self.rows) == 1:
            return tuple(x.to(self.world.season) for x in self.rows[0][0](inputs))
        each = [member(inputs[rows]) for member, rows in self.rows]
        back = torch.cat([rows for _, rows in self.rows]).argsort()
        return tuple(torch.cat(x)[back].to(self.world.season) for x in zip(*each))

    def outcomes(self, world: World, week: int, state: CustomerState, history: History) -> Outcome:
        """Outcome of every flat pair, [N, (O+1)·C] each."""
        trip, redeem = (x[:, self.actions] for x in self.ask(history, week)[:2])
        return Outcome(redeem, trip - redeem, world.catalogue.spend(self.offer, self.channel, redeem))

    def worth(self, week: int, history: History) -> tuple[Tensor, Tensor]:
        """Expected profit of the week and expected spend of every flat pair, [N, (O+1)·C] each."""
        trip, redeem, churn, _, margin = self.ask(history, week)
        spend = self.world.catalogue.spend(self.offer, self.channel, redeem[:, self.actions])
        return self.earned(trip[:, self.actions], spend, margin[:, None], churn[:, None]), spend

    def earned(self, trip: Tensor, spend: Tensor, margin: Tensor, churn: Tensor) -> Tensor:
        """Expected profit of those who are there, spend taken off."""
        terms = self.world.reward
        lost = torch.lerp(*churn.unbind(-1), trip)
        return (margin + terms.trips) * trip - spend - terms.churn_cost * lost

    def realised(self, week: Week, churned: Tensor) -> Tensor:
        """Profit that came of a week, spend taken off."""
        terms = self.world.reward
        return (week.margin + terms.trips) * week.bought - week.paid - terms.churn_cost * churned

    def earns(self, week: int, state: CustomerState, history: History) -> Tensor:
        """Margin of a trip, [N]."""
        return self.ask(history, week)[4]

    def live(self, history: History, week: int | None, offer: Tensor, channel: Tensor, u: Tensor, churns: bool) -> Week:
        """Let a week go by with uniforms u [6, N], of which rows 0, 4 and 5 are used as the world uses them.

        Who is not subscribed gets nothing. Without `churns` nobody leaves: what is lost by it is for weights to say.
        """
        alive, offer = history.status != CHURNED, torch.where(history.status == SUBSCRIBED, offer, 0)
        contacted = offer > 0
        trip, redeem, churn, leave, margin = self.ask(history, week)
        action = self.actions[self.codec.encode(offer, channel)][:, None]
        trip, redeem = (x.gather(1, action)[:, 0] * alive for x in (trip, redeem))
        redeemed, bought = u[0] < redeem, u[0] < trip
        left = contacted & (u[5] < leave.gather(1, channel[:, None])[:, 0])
        status = torch.where(left, UNSUBSCRIBED, history.status)
        if churns:
            lost = churn.gather(1, bought.long()[:, None])[:, 0]
            status = torch.where(~alive | (u[4] < lost), CHURNED, status)
        paid = self.world.catalogue.spend(offer, channel, redeemed.to(u))
        return Week(trip, redeem, self.world.catalogue.spend(offer, channel, redeem), margin, churn, bought, redeemed, paid,
                    history.after(status, self.world.catalogue, offer, channel, bought, redeemed))

    def tail(self, history: History, alive: Tensor) -> Tensor:
        """Margin of the world's tail weeks without a contact, discounted, by who is `alive` [N] and stays so, [N].

        A forecast: weeks have probabilities for a history, for chance would drown what a contact leaves behind.
        """
        world, nothing, total = self.world, torch.zeros_like(history.status), torch.zeros_like(alive)
        alive = alive * (history.status != CHURNED)
        for k in range(world.tail_weeks):
            trip, _, churn, _, margin = self.ask(history, None)
            trip = trip[:, 0]
            total = total + world.tail_discount**k * alive * (margin + world.reward.trips) * trip
            alive = alive * (1 - torch.lerp(churn[:, 0], churn[:, 1], trip))
            history = history.after(history.status, world.catalogue, nothing, nothing, trip, nothing)
        return world.reward.terminal * total


class Life(NamedTuple):
    """What N customers have been through, and the probability [N] that each is still there (where nobody churns by chance)."""

    history: History
    alive: Tensor


class Contrast:
    """A season of a crowd beside that of its rested self, whom nobody contacts, under the same uniforms.

    Without a contact both are the same to the last bit.
    """

    def __init__(self, crowd: Crowd, status: Tensor, realised: bool):
        self.crowd, self.realised = crowd, realised
        season = crowd.world.season
        self.life = self.resting = Life(History.start(status, season.dtype), season.new_ones(len(crowd)))

    def live(self, week: int, offer: Tensor, channel: Tensor, u: Tensor) -> tuple[Week, Tensor, Tensor]:
        """Let a week go by; return what it brings, and the profit of it and of the rested one, [N] each: expected of those
        who are there, or where `realised`, as it came."""
        self.life, lived, earned = self._one(self.life, week, offer, channel, u)
        self.resting, _, rested = self._one(self.resting, week, torch.zeros_like(offer), channel, u)
        return lived, earned, rested

    def _one(self, life: Life, week: int, offer: Tensor, channel: Tensor, u: Tensor) -> tuple[Life, Week, Tensor]:
        crowd, history = self.crowd, life.history
        lived = crowd.live(history, week, offer, channel, u, self.realised)
        if self.realised:
            lost = (lived.following.status == CHURNED) & (history.status != CHURNED)
            return Life(lived.following, life.alive), lived, crowd.realised(lived, lost)
        there = life.alive * (history.status != CHURNED)
        earned = there * crowd.earned(lived.trip, lived.spend, lived.margin, lived.churn)
        return Life(lived.following, life.alive * (1 - lived.lost)), lived, earned

    def tails(self) -> tuple[Tensor, Tensor]:
        """What both are worth after the season, [N] each."""
        return tuple(self.crowd.tail(*life) for life in (self.life, self.resting))
