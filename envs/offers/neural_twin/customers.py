"""A neural twin's customers: networks of features, observable history and action give their responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs.offers.neural_twin.response_models import REDEEM, TRIP, OtherOutcomes, ValidProbabilities
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNSUBSCRIBED, CustomerState, World
from envs.offers.world.history import History, SeenWeek
from envs.offers.world.response import Outcome


def treatments_by_value(catalogue: Catalogue) -> list[list[int]]:
    """Return, for each channel, its contacts in order of face value, numbered as treatments (ActionCodec.treatment)."""
    order = 1 + catalogue.value[1:].argsort()
    codec = catalogue.action_codec
    return [codec.treatment(codec.encode(order, k)).tolist() for k in range(codec.num_channels)]


def network_inputs(features: Tensor, history: History, half_lives: list[float], season: Tensor) -> Tensor:
    """Return the networks' inputs, [N, F + K + 1]: features [N, F], the history's columns, log season."""
    columns = history.columns(half_lives)
    return torch.cat((features.to(columns), columns, season.log().expand(len(features), 1).to(columns)), 1)


class Predictions(NamedTuple):
    """A member's predictions for a week of B customers."""

    trip: Tensor  # P(trip) by treatment, [B, A]
    redeem: Tensor  # P(trip and redeemed) by treatment, [B, A]
    churn: Tensor  # P(churn) without and with a trip, [B, 2]
    opt_out: Tensor  # P(opt-out | contacted) by channel, [B, C]
    margin: Tensor  # money that a trip brings, [B]


class NeuralMember(nn.Module):
    """One model of the ensemble: network inputs [B, D] → Predictions."""

    def __init__(self, response: nn.Module, other_outcomes: OtherOutcomes, monotone_order: list[list[int]]):
        super().__init__()
        self.response = ValidProbabilities(response, monotone_order)
        self.other_outcomes = other_outcomes

    def forward(self, inputs: Tensor) -> Predictions:
        response = self.response(inputs)
        return Predictions(response[..., TRIP], response[..., REDEEM], *self.other_outcomes(inputs))


class Week(NamedTuple):
    """A simulated week of N customers, [N] each: expectations and draws."""

    trip: Tensor  # P(trip)
    redeem: Tensor  # P(trip and redeemed)
    spend: Tensor  # expected
    margin: Tensor  # money that a trip brings
    churn: Tensor  # P(churn) without and with a trip, [N, 2]
    bought: Tensor  # bool
    redeemed: Tensor  # bool
    paid: Tensor  # the realised spend
    next_history: History

    def seen(self, offer: Tensor, channel: Tensor, status: Tensor) -> SeenWeek:
        """Return what a shop sees of the week, given what was sent and the status before it, [N] each."""
        return SeenWeek.between(
            status,
            self.next_history.status,
            offer=offer,
            channel=channel,
            bought=self.bought,
            redeemed=self.redeemed,
            margin=self.margin,
        )

    @property
    def churn_given_purchase(self) -> Tensor:
        """P(churn) of customers, given whether they bought."""
        return self.churn.gather(1, self.bought.long()[:, None])[:, 0]


class NeuralCustomers:
    """N customers, each of whom responds as the member `member_of` [N] of `members`.

    They replace a world's Customers wherever no hidden states are needed. Their state is the history.
    """

    def __init__(
        self,
        members: list[Callable[[Tensor], Predictions]],
        member_of: Tensor,
        features: Tensor,
        world: World,
        half_lives: list[float],
    ):
        self.members, self.member_of, self.features = members, member_of, features
        self.world, self.half_lives = world, half_lives
        rows_of = [(member, (member_of == k).nonzero()[:, 0]) for k, member in enumerate(members)]
        self.rows_of = [(member, rows) for member, rows in rows_of if len(rows)]
        self.codec = world.catalogue.action_codec
        action = self.codec.every_action(member_of.device)
        self.offer, self.channel = self.codec.decode(action)
        self.treatment = self.codec.treatment(action)  # of every action, [P]

    def __len__(self) -> int:
        return len(self.member_of)

    def __getitem__(self, rows) -> NeuralCustomers:
        return NeuralCustomers(self.members, self.member_of[rows], self.features[rows], self.world, self.half_lives)

    @torch.no_grad()
    def predict(self, history: History, week: int | None) -> Predictions:
        """Return each customer's predictions by its own member; `week` None is a week of season index 1."""
        season = self.world.season.new_ones(()) if week is None else self.world.season[week]
        inputs = network_inputs(self.features, history, self.half_lives, season).float()
        if len(self.rows_of) == 1:
            member, _ = self.rows_of[0]
            return Predictions(*(x.to(self.world.season) for x in member(inputs)))
        parts = [member(inputs[rows]) for member, rows in self.rows_of]
        position = torch.cat([rows for _, rows in self.rows_of]).argsort()
        return Predictions(*(torch.cat(x)[position].to(self.world.season) for x in zip(*parts)))

    def outcomes(self, world: World, week: int, state: CustomerState, history: History | None) -> Outcome:
        """Return the outcome of every action, [N, P] each."""
        assert history is not None  # the options of a market have it
        predicted = self.predict(history, week)
        trip, redeem = predicted.trip[:, self.treatment], predicted.redeem[:, self.treatment]
        return Outcome(redeem, trip - redeem, world.catalogue.spend(self.offer, self.channel, redeem))

    def profit_and_spend(self, week: int, history: History) -> tuple[Tensor, Tensor]:
        """Return the week's expected profit and expected spend of every action, [N, P] each."""
        predicted = self.predict(history, week)
        trip, redeem = predicted.trip[:, self.treatment], predicted.redeem[:, self.treatment]
        spend = self.world.catalogue.spend(self.offer, self.channel, redeem)
        return self.expected_profit(trip, spend, predicted.margin[:, None], predicted.churn[:, None]), spend

    def expected_profit(self, trip: Tensor, spend: Tensor, margin: Tensor, churn: Tensor) -> Tensor:
        """Return the expected profit of a week, less spend, of customers who have not churned; churn is [..., 2]."""
        terms = self.world.reward
        without_trip, with_trip = churn.unbind(-1)
        p_churn = torch.lerp(without_trip, with_trip, trip)
        return (margin + terms.trips) * trip - spend - terms.churn_cost * p_churn

    def realised_profit(self, week: Week, churned: Tensor) -> Tensor:
        """Return the realised profit of a week, less spend, [N]."""
        terms = self.world.reward
        return (week.margin + terms.trips) * week.bought - week.paid - terms.churn_cost * churned

    def earns(self, week: int, state: CustomerState, history: History | None) -> Tensor:
        """Return the margin of a trip, [N]."""
        assert history is not None  # the options of a market have it
        return self.predict(history, week).margin

    def simulate_week(
        self, history: History, week: int | None, offer: Tensor, channel: Tensor, u: Tensor, draws_churn: bool
    ) -> Week:
        """Simulate a week by uniforms u [6, N], of which rows 0, 4 and 5 are used, as the world uses them.

        Customers who are not subscribed get nothing. Without `draws_churn` nobody churns, and the caller weights by the
        probability of staying.
        """
        active = history.status != CHURNED
        offer = torch.where(history.status == SUBSCRIBED, offer, 0)
        predicted = self.predict(history, week)
        treatment = self.treatment[self.codec.encode(offer, channel)][:, None]
        trip = predicted.trip.gather(1, treatment)[:, 0] * active
        redeem = predicted.redeem.gather(1, treatment)[:, 0] * active
        redeemed, bought = u[0] < redeem, u[0] < trip
        opts_out = (offer > 0) & (u[5] < predicted.opt_out.gather(1, channel[:, None])[:, 0])
        status = torch.where(opts_out, UNSUBSCRIBED, history.status)
        if draws_churn:
            p_churn = predicted.churn.gather(1, bought.long()[:, None])[:, 0]
            status = torch.where(~active | (u[4] < p_churn), CHURNED, status)
        catalogue = self.world.catalogue
        return Week(
            trip=trip,
            redeem=redeem,
            spend=catalogue.spend(offer, channel, redeem),
            margin=predicted.margin,
            churn=predicted.churn,
            bought=bought,
            redeemed=redeemed,
            paid=catalogue.spend(offer, channel, redeemed.to(u)),
            next_history=history.after(status, catalogue, offer, channel, bought, redeemed),
        )

    def tail_value(self, history: History, p_active: Tensor) -> Tensor:
        """Return the discounted margin [N] of the world's tail weeks, without a contact.

        Customers are still there with probability `p_active` [N]. The weeks enter the history as probabilities, because
        chance would hide the lasting effect of a contact.
        """
        world, nothing, total = self.world, torch.zeros_like(history.status), torch.zeros_like(p_active)
        p_active = p_active * (history.status != CHURNED)
        for k in range(world.tail_weeks):
            predicted = self.predict(history, None)
            trip = predicted.trip[:, 0]
            total = total + world.tail_discount**k * p_active * (predicted.margin + world.reward.trips) * trip
            p_active = p_active * (1 - torch.lerp(predicted.churn[:, 0], predicted.churn[:, 1], trip))
            history = history.after(history.status, world.catalogue, nothing, nothing, trip, nothing)
        return world.reward.terminal * total
