"""Variance reduction for logged rewards: potential-based shaping and control variates, cross-fitted by customer.

A learned potential Φ(s), the value of a customer who is never contacted, is subtracted. Sampled outcomes are replaced
by their expectations. Only the effect of the decision remains.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from envs.offers.logs.nuisance_models import NuisanceModels, Transitions
from envs.offers.logs.response_model import OutcomeLikelihood
from rlcore.normalization import Standardizer
from rlcore.offline.adjusted_rewards import AdjustedRewards
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.cross_fitting import consecutive_ids, folds
from rlcore.ope.outcome_models import CHUNK, fit_sgd

MIN_STD = 1e-3
MIN_REWARD_STD = 1e-6
MIN_HORIZON_SHARE = 0.05  # least 1 − γ, whose inverse is the horizon that scales values


class VarianceReduction:
    """Adjusts logged rewards by a potential and by models of a decision's outcome, fitted on other customers.

    The potential Φ is the value of a customer who is never contacted, learned by temporal differences on a network of
    all actions' values. The target of each action continues with the first action, nothing. Φ is the first action's
    column, and contacted customers inform it too. γ·Φ(s') − Φ(s) is added to rewards (Ng, Harada & Russell 1999), so
    that no action's rank changes. The target network is copied from the network every `target_every` of `steps`
    minibatches.

    The remaining noise is still far larger than the effect of a decision. Where spend is priced and `likelihood` models
    the outcome of decisions (null: rewards stay as logged), a reward is therefore the expected reward of the decision
    (the direct method), less that of no contact to the same customer, by the same models. Errors in the level of a
    customer cancel, and only errors in the effect remain. The effect of a decision is assumed to act through trip and
    redemption, spend, and the next state. The models (envs/offers/logs/nuisance_models.py) are
    - trip value: the scale of a customer's rewards (`model`). Values are measured in this unit, because money is
      proportional to it;
    - trip and redemption by state and action (`likelihood`), and the hazard of being lost for good by state and trip
      (`hazard`). Values are learned only from customers who stayed, discounted by their probability to stay, which has
      the same expectation;
    - value drift: the change of a rested customer's Φ in a week, by the outcome (`model`);
    - state cost: the states that only contacts change (`ObservationCodec.without_contacts`) are counted, with their
      transitions by outcome and channel, and without contact. A state's cost, until the state has passed, is the loss
      of expected reward in it by the models above. A fitted value can't find this cost, because few customers of a log
      are rested late in a season. Where states can't be counted (histories have too many), a reward is instead compared
      with no contact to the same customer when rested, and values learn all later effects.

    `heuristic_mixing` is λ of Cheng, Kolobov & Swaminathan (2021): values learn a share λ of the discounted future, and
    the potential stands for the rest. Maxima over values of states that are rare in the log cost more than they bring.
    `model` is fitted on at most `sample` decisions.
    """

    def __init__(
        self,
        *,
        net: Callable,
        lr: float,
        decay: float,
        steps: int,
        batch_size: int,
        target_every: int,
        model: Callable | None,
        likelihood: OutcomeLikelihood | None,
        hazard: OutcomeLikelihood | None,
        sample: int,
        heuristic_mixing: float,
    ):
        self.net, self.lr, self.decay, self.steps = net, lr, decay, steps
        self.batch_size, self.target_every = batch_size, target_every
        self.model, self.likelihood, self.hazard = model, likelihood, hazard
        self.sample, self.heuristic_mixing = sample, heuristic_mixing

    @torch.no_grad()
    def __call__(
        self, env, dataset: LoggedDataset, reward: Tensor, gamma: float, generator: torch.Generator
    ) -> AdjustedRewards:
        """Adjust the rewards [N] of a dataset, each half by models of the other half of the customers."""
        fold = folds(consecutive_ids(dataset.unit), 2, generator)
        columns = reward.new_empty(3, len(dataset))
        for k in range(2):
            models = NuisanceModels(self, env, dataset, reward, gamma, (fold != k).nonzero()[:, 0], generator)
            for rows in (fold == k).nonzero()[:, 0].split(CHUNK):
                columns[:, rows] = torch.stack(models.adjusted_rewards(rows))
        return AdjustedRewards(*columns)

    def fit_potential(
        self,
        transitions: Callable[[Tensor], Transitions],
        rows: Tensor,
        width: int,
        nvec: tuple[int, ...],
        generator: torch.Generator,
    ) -> Callable[[Tensor], Tensor]:
        """Fit action values to `rows`, of which `transitions` makes minibatches.

        Returns Φ [B] as a function of contexts [B, width].
        """
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        sample = transitions(rows[torch.randint(len(rows), (CHUNK,), generator=generator, device=rows.device)])
        standardize = Standardizer(width, MIN_STD).fit(sample.obs)
        horizon_share = (1 - sample.discount.mean()).clamp_min(MIN_HORIZON_SHARE)
        scale = sample.reward.std().clamp_min(MIN_REWARD_STD) / horizon_share  # about that of a value
        net = self.net(width, nvec).to(sample.obs)
        target_net = deepcopy(net).requires_grad_(False)
        count = iter(range(self.steps))

        def values(network, x: Tensor) -> Tensor:
            return network(standardize(x)) * scale

        def loss() -> Tensor:
            if next(count) % self.target_every == 0:
                target_net.load_state_dict(net.state_dict())
            at = rows[torch.randint(len(rows), (self.batch_size,), generator=generator, device=rows.device)]
            batch = transitions(at)
            with torch.no_grad():
                goal = batch.reward + batch.discount * values(target_net, batch.next_obs)[:, 0]
            value = values(net, batch.obs).gather(1, batch.action[:, None])[:, 0]
            return (batch.weight * (value - goal).square()).mean() / scale.square()

        fit_sgd(net.parameters(), loss, self.lr, self.decay, self.steps)
        return lambda x: values(net, x)[:, 0]
