"""Nuisance models of variance reduction: fitted on some rows of a log, they adjust the rewards of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from envs.offers.logs.contact_states import ContactStates
from envs.offers.logs.response_model import NONE, REDEEMED, TRIP, OutcomeLikelihood
from envs.offers.world.catalogue import ActionCodec
from envs.offers.world.customers import CHURNED
from rlcore.offline.adjusted_rewards import AdjustedRewards
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.outcome_models import CHUNK

OUTCOMES = REDEEMED + 1
MIN_STAY = 0.1  # least probability to stay: its inverse is a weight


class Transitions(NamedTuple):
    """A minibatch for the fit of the potential: contexts [B, D] and columns [B]."""

    obs: Tensor
    action: Tensor
    next_obs: Tensor
    reward: Tensor
    discount: Tensor
    weight: Tensor


class NuisanceOptions(Protocol):
    """The options of the fits: a VarianceReduction (envs/offers/logs/variance_reduction.py)."""

    model: Any  #: fits regressions of numbers
    likelihood: OutcomeLikelihood | None  #: fits trip and redemption; None leaves rewards as logged
    hazard: OutcomeLikelihood | None  #: fits the probability of being lost for good
    sample: int  #: largest number of decisions that `model` is fitted on
    heuristic_mixing: float  #: λ, the share of the discounted future that is left for values to learn

    def fit_potential(
        self,
        transitions: Callable[[Tensor], Transitions],
        rows: Tensor,
        width: int,
        nvec: tuple[int, ...],
        generator: torch.Generator,
    ) -> Callable[[Tensor], Tensor]:
        """Fit the potential Φ [B] as a function of contexts [B, D]."""


class NuisanceModels:
    """Models fitted on `rows` of a dataset. Values are in units of `trip_value`, except those of `adjusted_rewards`."""

    def __init__(
        self,
        options: NuisanceOptions,
        env,
        dataset: LoggedDataset,
        reward: Tensor,
        gamma: float,
        rows: Tensor,
        generator: torch.Generator,
    ):
        self.options, self.env, self.dataset, self.reward, self.gamma = options, env, dataset, reward, gamma
        self.generator, self.width = generator, env.context_dim
        self.next_obs = dataset.obs if dataset.next_obs is None else dataset.next_obs
        self.trip = dataset.outcome("trips", "algo.variance_reduction") > 0
        likelihood = options.likelihood if env.as_priced() is not None else None
        self.models_outcomes = likelihood is not None
        self.hazard: Callable[[Tensor], Tensor] | None = None
        self.trip_value_model: Callable[[Tensor], Tensor] | None = None
        if likelihood is None:
            self.potential = options.fit_potential(self._transitions, rows, self.width, env.nvec, generator)
            return
        self.action_codec = ActionCodec(*env.nvec)
        lost, gone = (
            torch.cat([self._churned(x[some]) for some in rows.split(CHUNK)]) for x in (self.next_obs, dataset.obs)
        )
        present, stayed = rows[~gone], rows[~lost]
        self._fit_trip_value(present)
        losing = torch.zeros_like(dataset.terminated).index_fill_(0, rows[lost], True)
        assert options.hazard is not None  # conf/algo/variance_reduction sets it beside the likelihood
        self.hazard = options.hazard.fit_hazard(
            lambda at: self._with_trip(at, self.trip[at]), losing, present, generator
        )
        redeemed = dataset.outcome("redeemed", "algo.variance_reduction") > 0
        outcome = torch.where(redeemed, REDEEMED, torch.where(self.trip, TRIP, NONE))
        x = self._obs(rows[:CHUNK])
        contact_columns = (x != self._rested(x)).any(0).nonzero()[:, 0]
        self.probs = likelihood.fit_response(
            self._obs, dataset.action, outcome, present, env.nvec, contact_columns, generator
        )
        self.potential = options.fit_potential(self._transitions, stayed, self.width, env.nvec, generator)
        sample = self._sampled(stayed)
        drift = torch.cat([self._drift(at) for at in sample.split(CHUNK)])
        self.value_drift = self._model(self._rested(self._obs(sample)), outcome[sample], drift, OUTCOMES)
        self.states = ContactStates.count(
            contact_columns,
            rested=self._rested(self._obs(stayed[:1]))[:, contact_columns],
            now=[dataset.obs[some][:, contact_columns] for some in stayed.split(CHUNK)],
            then=[self.next_obs[some][:, contact_columns] for some in stayed.split(CHUNK)],
            outcome=outcome[stayed],
            contact=self._contact(dataset.action[stayed]),
            outcomes=OUTCOMES,
            contacts=1 + env.nvec[-1],
            weeks=env.episode_length,
        )

    # ── fits ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _sampled(self, rows: Tensor) -> Tensor:
        order = torch.randperm(len(rows), generator=self.generator, device=rows.device)
        return rows[order[: self.options.sample]]

    def _model(self, x: Tensor, action: Tensor, outcome: Tensor, actions: int) -> Callable[[Tensor], Tensor]:
        predict = self.options.model(x, action, outcome[:, None], actions, self.generator)
        return lambda x: predict(x)[..., 0]

    def _fit_trip_value(self, rows: Tensor) -> None:
        earned = self.reward[rows] + self.dataset.cost[rows]
        bought = self._sampled(rows[self.trip[rows] & (earned > 0)])
        if len(bought):
            earned = self.reward[bought] + self.dataset.cost[bought]
            self.trip_value_model = self._model(self._static(bought), torch.zeros_like(bought), earned.log(), 1)
            self.trip_value_scale = smearing(earned, self.trip_value_model(self._static(bought))[:, 0])

    def _drift(self, rows: Tensor) -> Tensor:
        """Change of the potential in a week, or from the potential to the terminal value, [B]."""
        value = self.gamma * self.potential(self._rested(self.next_obs[rows, : self.width]))
        terminal_value = self.dataset.terminal_value[rows] / self.trip_value(rows)
        then = torch.where(self.dataset.terminated[rows], terminal_value, value)
        return then - self.potential(self._rested(self._obs(rows)))

    # ── what they predict of rows [B] ───────────────────────────────────────────────────────────────────────────────
    def _obs(self, rows: Tensor) -> Tensor:
        return self.dataset.obs[rows, : self.width]

    def _static(self, rows: Tensor) -> Tensor:
        return self.dataset.obs[rows, : self.env.static_dim]

    def _churned(self, obs: Tensor) -> Tensor:
        return self.env.codec.decode_status(obs) == CHURNED

    def _rested(self, x: Tensor) -> Tensor:
        """Contexts without the effects of contacts, as if nothing had been sent for a long time."""
        return self.env.codec.without_contacts(x) if self.models_outcomes else x

    def _with_trip(self, rows: Tensor, trip: Tensor) -> Tensor:
        return torch.cat((self._obs(rows), trip[:, None].to(self.reward)), 1)

    def _contact(self, action: Tensor) -> Tensor:
        """0 for no contact, 1 + channel."""
        return torch.where(self.action_codec.is_contact(action), 1 + self.action_codec.channel_of(action), 0)

    def trip_value(self, rows: Tensor) -> Tensor:
        """Expected reward of a trip before the trip's cost, money."""
        if not self.trip_value_model:
            return torch.ones_like(self.reward[rows])
        return self.trip_value_scale * self.trip_value_model(self._static(rows))[:, 0].exp()

    def _stay(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Probability to stay, and its inverse as the weight of customers who stayed."""
        probability = torch.ones_like(self.reward[rows])
        if not self.hazard:
            return probability, probability
        staying = 1 - self.hazard(self._with_trip(rows, self.trip[rows]))
        probability = torch.where(self._churned(self.dataset.obs[rows]), probability, staying.clamp(MIN_STAY, 1.0))
        return probability, torch.where(self._churned(self.next_obs[rows]), 0.0, 1 / probability)

    def _transitions(self, rows: Tensor) -> Transitions:
        """The minibatch of rows that values are fitted to."""
        stay, weight = self._stay(rows)
        return Transitions(
            obs=self._rested(self._obs(rows)),
            action=self.dataset.action[rows],
            next_obs=self._rested(self.next_obs[rows, : self.width]),
            reward=(self.reward[rows] + stay * self.dataset.terminal_value[rows]) / self.trip_value(rows),
            discount=torch.where(self.dataset.terminated[rows], 0.0, self.gamma * stay),
            weight=weight,
        )

    def _expected(self, x: Tensor, action: Tensor, next_value: Tensor, trip_value: Tensor) -> Tensor:
        """Expected value of actions in contexts x [B, D], with next week's values by outcome, `next_value` [B, 3]."""
        assert self.hazard is not None  # models of outcomes have one
        hazard = self.hazard
        probs = self.probs(x, action)
        trip = torch.arange(OUTCOMES, device=x.device) != NONE
        lost = torch.stack([hazard(functional.pad(x, (0, 1), value=float(made))) for made in (False, True)], 1)
        value = trip + (1 - lost[:, trip.long()]) * next_value
        redeem = probs[:, REDEEMED, None, None].expand(-1, *self.env.nvec)
        spend = self.env.expected_cost(redeem).flatten(1).gather(1, action[:, None])[:, 0]
        return (probs * value).sum(1) - spend / trip_value

    def _effect(self, rows: Tensor, states: ContactStates) -> Tensor:
        """Expected effect of decisions against no contact, including the cost of the states that follow."""
        x, action, trip_value = self._obs(rows), self.dataset.action[rows], self.trip_value(rows)
        rested = self._rested(x)
        next_value = self.potential(rested)[:, None] + self.value_drift(rested)
        nothing = torch.zeros_like(action)
        cost = states.cost(
            torch.stack(
                [self._expected(states.placed(x, state), nothing, next_value, trip_value) for state in states.states], 1
            )
        )
        now, outcome = states.index(x)[:, None], torch.arange(OUTCOMES, device=x.device)

        def expected(action: Tensor) -> Tensor:
            reached = states.transitions[now, outcome, self._contact(action)[:, None]]  # [B, outcomes, M]
            return self._expected(x, action, next_value + (reached * cost[:, None]).sum(-1), trip_value)

        return expected(action) - expected(nothing)

    def adjusted_rewards(self, rows: Tensor) -> AdjustedRewards:
        """Rewards of rows, in money, with all adjustments that the models make possible."""
        batch, trip_value = self._transitions(rows), self.trip_value(rows)
        mixing = self.options.heuristic_mixing
        if not self.models_outcomes:
            reward = batch.reward + batch.discount * self.potential(batch.next_obs) - self.potential(batch.obs)
        elif self.states is not None:
            reward = torch.zeros_like(batch.reward)
            contacted = self.action_codec.is_contact(batch.action).nonzero()[:, 0]
            reward[contacted] = self._effect(rows[contacted], self.states)  # no contact has no effect
        else:
            next_value, mixing = self.potential(batch.obs)[:, None] + self.value_drift(batch.obs), 1.0
            reward = self._expected(self._obs(rows), batch.action, next_value, trip_value) - self._expected(
                batch.obs, 0 * batch.action, next_value, trip_value
            )
        return AdjustedRewards(reward * trip_value, mixing * batch.discount, batch.weight)


def smearing(y: Tensor, predicted_log: Tensor) -> Tensor:
    """Return the factor that makes exp(predicted log y) the mean of y, []: Duan's smearing estimate (1983).

    exp(E[log y]) alone is below E[y], the more so the more y varies.
    """
    return (y / predicted_log.exp()).mean()
