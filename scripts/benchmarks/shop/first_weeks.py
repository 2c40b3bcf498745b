"""A made-up shop without a log, and what may decide its first weeks: chance, or a rule at private prices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from envs.offers.constraints.budget_rules import ExpectedSpend
from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.evaluation.simulation import EvaluationMarket, score_decisions
from envs.offers.example_shop.life import Shop, Week
from envs.offers.planning.batching import no_contact_values_if_they_fit
from envs.offers.planning.knapsack import Increments
from envs.offers.policies.belief_planner import BeliefPlanner, BeliefView
from envs.offers.policies.information import FEATURES, Information
from envs.offers.policies.logging_policies import at_private_prices, contact_with, reach_probabilities
from envs.offers.world.customers import Customers, CustomerState, World
from envs.offers.world.history import PassedWeek, SeenWeek
from rlcore.distributions import draw
from rlcore.exploration.rules import floored

ON_PRIORS = Information(FEATURES, ("beliefs",), equations=True)
BISECTIONS = 40


@dataclass(frozen=True)
class Believed:
    """What the shop takes its N customers for before it has a log."""

    customers: Customers  #: as the priors and the customer table have them
    world: World
    start: Tensor  #: marginals of the state at the start of a season, [14]
    fee: float  #: money a contact, by which the rule makes up for the weeks after this one
    weekly: float  #: money a customer and week


class Choice(Protocol):
    """What decides in the first weeks."""

    def prepare(self, believed: Believed) -> None:
        """Take what the shop believes of its customers."""

    def probs(self, options: ContactOptions, week: int, state: CustomerState) -> Tensor:
        """Return the probabilities [N, P] of the pairs; the states are not read."""

    def remember(self, passed: PassedWeek) -> None:
        """Take note of a week; the states are not read."""


class RandomSends:
    """A share of those who may be contacted get a message, any allowed pair with the same probability."""

    def __init__(self, *, share: float):
        self.share = share

    def prepare(self, believed: Believed) -> None:
        """Need nothing."""

    def probs(self, options: ContactOptions, week: int, state: CustomerState) -> Tensor:
        """Return the probabilities [N, P] of the pairs."""
        share = torch.full((len(options.action_mask),), self.share, dtype=torch.float64)
        return contact_with(share, options.action_mask)

    def remember(self, passed: PassedWeek) -> None:
        """Need nothing."""


class RuleAtPrivatePrices:
    """The week's knapsack on what is believed of customers, with a fee a contact, at private prices λ·exp(σξ).

    λ is the price at which the expected spend is the week's money. A share ε of decisions is drawn from all pairs.
    """

    def __init__(self, *, sigma: float, epsilon: float):
        self.sigma, self.epsilon = sigma, epsilon

    def prepare(self, believed: Believed) -> None:
        """Start to filter the states of the customers."""
        self.money = believed.weekly * len(believed.customers)
        view = BeliefView(believed.customers, believed.world, believed.start)
        self.rule = BeliefPlanner(believed.customers, believed.world, ON_PRIORS, view, values=None, fee=believed.fee)
        nobody = torch.zeros(len(believed.customers), dtype=torch.long)
        self.memory = view.start(CustomerState(nobody, nobody, nobody, nobody))

    def probs(self, options: ContactOptions, week: int, state: CustomerState) -> Tensor:
        """Return the probabilities [N, P] of the pairs."""
        steps = self.rule.increments(week, state, options._replace(memory=self.memory))
        price = price_of_money(steps, self.money, self.sigma)
        probs = at_private_prices(steps, price.expand(len(self.memory)), self.sigma, options.action_mask.shape[1])
        return floored(probs, options.action_mask, self.epsilon)

    def remember(self, passed: PassedWeek) -> None:
        """Filter the states by what a week showed."""
        self.memory = self.rule.view.after(self.memory, passed)


def price_of_money(steps: Increments, money: float, sigma: float) -> Tensor:
    """Return the price [] at which steps bought at private prices are expected to spend the money, by bisection."""
    real = steps.price > 0
    if not real.any():
        return torch.ones((), dtype=torch.float64)
    log_price = steps.price[real].double().log()
    low, high = log_price.min() - 10 * sigma, log_price.max() + 10 * sigma
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        reached = reach_probabilities(steps, middle.exp().expand(len(steps.price)), sigma)
        fits = torch.where(real, reached * steps.spend, 0.0).sum() <= money
        low, high = (low, middle) if fits else (middle, high)
    return high.exp()


class NewShop(Shop):
    """A made-up shop from its first week on, all customers present, in which a choice decides; `lived` has its past."""

    def __init__(self, rows: list[dict[str, str]], seed: int, choice: Choice):
        super().__init__(rows, torch.zeros(len(rows), dtype=torch.long), seed)
        self.choice = choice
        self.states: list[CustomerState] = []  # before each week

    def decide(self) -> tuple[Tensor, Tensor]:
        """Return flat actions [N] and their propensities [N]."""
        present = self.stay.includes(self.week) & ~self.opted_out
        options = self.policy(present, self.contacted)
        probs = self.choice.probs(options, self.week % self.world.weeks, self.state)
        action = draw(probs, self.uniforms(len(probs)))
        return action, probs.gather(1, action[:, None])[:, 0]

    def live(self) -> Week:
        """Live through the next week, and let the choice take note of it."""
        before = self.state
        self.states.append(before)
        week = super().live()
        seen = SeenWeek(week.offer, week.channel, week.bought, week.redeemed, week.unsubscribed, week.margin)
        self.choice.remember(PassedWeek((self.week - 1) % self.world.weeks, seen, before, self.state))
        return week

    def profit_and_spend(self, weeks: list[Week]) -> tuple[float, float]:
        """Return what the first season's weeks brought beyond sending nothing, and what they cost, a customer.

        The profit is the expected one, with what is lost later (A⁰), as in the tables of policies.
        """
        catalogue, n = self.catalogue, len(self.customers)
        action = torch.stack([catalogue.action_codec.encode(week.offer, week.channel) for week in weeks])
        score = score_decisions(self._market(), None, slice(None), self.states[: len(weeks)], action)
        spend = sum(catalogue.spend(x.offer, x.channel, x.redeemed.double()).sum().item() for x in weeks)
        return score.incremental_profit.sum().item() / n, spend / n

    def _market(self) -> EvaluationMarket:
        customers = self.world.inhabit(self.customers)
        return EvaluationMarket(
            customers=customers,
            world=self.world,
            features=torch.zeros(len(customers), 0),
            initial_state=self.states[0],
            no_contact_values=no_contact_values_if_they_fit(customers, self.world),
            budget=torch.zeros(self.world.weeks, dtype=torch.float64),
            stock=torch.zeros(len(self.catalogue.offers)),
            rollover=False,
            budget_rule=ExpectedSpend(),
            contact_policy=self.policy,
        )
