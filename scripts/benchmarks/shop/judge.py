"""The true world of a made-up shop's customers from whom nothing is learned, in which a benchmark judges policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from envs.offers.env import OffersEnv
from envs.offers.evaluation.evaluator import OffersEvaluator
from envs.offers.evaluation.profit_decomposition import summarise_seasons
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord
from envs.offers.evaluation.streams import TEST_SEASONS
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.policies.base import SeasonPolicy
from envs.offers.world.customers import Customers
from rlcore.ope.intervals import LEVEL, normal_half_width
from scripts.benchmarks.common.planning import plan_on_twin
from scripts.benchmarks.common.training import evaluator_of
from scripts.benchmarks.shop import made_up_shop


@dataclass(frozen=True)
class Judge:
    """The true world of N customers; all policies meet the same random numbers."""

    evaluator: OffersEvaluator
    folder: Path  #: of the customers' table
    row: Tensor  #: of each customer in the table, int64 [N]
    market: EvaluationMarket
    bound: Bound

    @classmethod
    def of(cls, make_env: Callable[..., OffersEnv], folder: Path, device: torch.device, seed: int) -> Judge:
        """Draw customers of the test side of a folder's table, none twice, and solve the bound of their true world."""
        env = made_up_shop.shop_env(make_env, folder, device, seed, made_up_shop.population(folder, truth=True))
        evaluator = evaluator_of(env)
        n = min(evaluator.customers, len(env.population.given.customers["test"]))
        sample = env.population.draw(n, torch.Generator(device).manual_seed(seed), "test")
        market = EvaluationMarket.from_sample(sample, evaluator.world, env.budget, env.contact_rules)
        return cls(evaluator, folder, sample.row, market, evaluator.solve_bound(market))

    def features(self, env: OffersEnv) -> Tensor:
        """Return the customers' features as another environment of the shop makes them, [N, F]."""
        population = made_up_shop.population(self.folder, truth=False)(env.world.catalogue)
        population.load_state_dict(env.population.state_dict())
        features: Tensor = population.sample(self.row, torch.Generator(env.device).manual_seed(0)).features
        return features

    def simulate(self, policy: SeasonPolicy) -> list[SeasonRecord]:
        """Simulate a policy's seasons."""
        return self.evaluator.simulate(policy, self.market, self.bound, self.evaluator.seasons, TEST_SEASONS)

    def plan(self, estimates: Customers, start: Tensor) -> SeasonPolicy:
        """Plan on a twin's θ̂ of the customers; `start` [14] are the marginals of a season's first state."""
        return plan_on_twin(self.evaluator, self.market, estimates, start)

    def summary(self, seasons: list[SeasonRecord]) -> dict[str, float]:
        """Return a policy's score, and its profit beyond sending nothing, spend and contacts a customer and season."""
        found = summarise_seasons(seasons, self.market, self.bound)
        spend = torch.stack([x.expected_spend.sum() for x in seasons]).mean().item()
        contacts = torch.stack([(x.action > 0).double().sum() for x in seasons]).mean().item()
        n = len(self.market)
        return {
            "score": found["score"],
            "profit": self.profit(seasons).mean().item(),
            "spend": spend / n,
            "contacts": contacts / n,
        }

    def profit(self, seasons: list[SeasonRecord]) -> Tensor:
        """Return the expected profit of each customer beyond sending nothing, money a season, [N]."""
        return torch.stack([x.incremental_profit.sum(0) for x in seasons]).mean(0)

    def ahead(self, ours: list[SeasonRecord], theirs: list[SeasonRecord]) -> list[float]:
        """Return how much more profit a customer and season one policy brings than another, paired, with its 95 %."""
        difference = self.profit(ours) - self.profit(theirs)
        mean, half_width = difference.mean().item(), normal_half_width(difference, LEVEL).item()
        return [mean, mean - half_width, mean + half_width]
