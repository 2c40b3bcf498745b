"""What OffersEnv is made of, apart from the weeks of a season: world, view, prices, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from envs.base import PricedEnv, Repriced
from envs.offers.constraints.budget import Budget
from envs.offers.logs.send_encoding import log_chunks
from envs.offers.logs.send_log import is_send_log
from envs.offers.price_paths import check_price_ranges, draw_price_paths
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import RewardConfig
from envs.offers.world.observation import ViewSetting
from rlcore.offline.column_range import ColumnRange
from rlcore.offline.logged_dataset import LoggedDataset


class CustomerEnv(PricedEnv):
    """The half of OffersEnv without weeks: every customer is an agent, and the shared budget reaches agents as a price.

    `num_agents` customers are drawn from `population`, and seen through `observation`; `price_range`, `drift_range` and
    `price_noise` are those of the price paths of training. Raises ValueError where ranges are empty or budget and
    contact rules do not fit the catalogue.
    """

    episode_length: int  #: weeks of a season

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        num_agents: int,
        catalogue: Catalogue,
        world: Callable,
        reward: RewardConfig,
        population: Callable,
        observation: Callable,
        contact_rules: Callable,
        budget: Budget,
        evaluation: Callable,
        price_range: list[float],
        drift_range: list[float],
        price_noise: float,
        clip_margin: float,
    ):
        check_price_ranges(price_range, drift_range)
        self.device, self.num_agents = torch.device(device), num_agents
        self.world = world(catalogue, reward).to(device, torch.float32)
        self.episode_length = self.world.weeks
        self.calendar = torch.arange(self.world.weeks, device=self.device)
        self.population = population(catalogue)
        self.contact_rules = contact_rules(catalogue, self.population)
        budget.check(catalogue)
        self.budget, self.evaluation = budget, evaluation
        self.price_range, self.drift_range, self.price_noise = price_range, drift_range, price_noise
        self._draw_price_paths = partial(
            draw_price_paths,
            weeks=self.episode_length,
            price_range=price_range,
            drift_range=drift_range,
            noise=price_noise,
        )
        self.nvec, self.observation, self.clip_margin = catalogue.nvec, observation, clip_margin
        self._build_codec()
        self.generator = torch.Generator(self.device).manual_seed(2 * seed)

    def _build_codec(self) -> None:
        self.static_dim = self.population.num_features
        cap_columns = self.contact_rules.cap_columns
        num_features = self.static_dim + len(cap_columns)
        self.codec = self.observation(
            ViewSetting(num_features, self.world, self.population, self.price_range, self.drift_range)
        )
        self.obs_dim = self.codec.obs_dim
        self.obs_names = self.codec.column_names(self.population.feature_names + cap_columns)
        self.seen_features = ColumnRange(self.static_dim, self.device)

    @property
    def context_dim(self) -> int:
        """All columns of an observation but the price and its drift."""
        return self.codec.context_dim

    def decode_price(self, obs: Tensor) -> Tensor:
        """Read the price [B] out of observations [B, D]."""
        return self.codec.decode_price(obs)

    def sample_prices(self, step: Tensor, generator: torch.Generator) -> Repriced:
        """Draw new prices for decisions in weeks [B] and for the weeks after them, distributed as in a season."""
        prices, drift = self._draw_price_paths(torch.stack((step, step + 1)), len(step), generator)
        return Repriced(
            price=prices[0],
            encoded_price=self.codec.encode_price(prices[0], drift),
            next_price=prices[1],
            next_encoded_price=self.codec.encode_price(prices[1], drift),
        )

    def action_name(self, index: int) -> str:
        """Name the offer and the channel of a flat index, for tables."""
        catalogue = self.world.catalogue
        offer, channel = catalogue.action_codec.decode(index)
        name = catalogue.offers[offer]
        return f"{name} by {catalogue.channels[channel]}" if offer else name

    def state_dict(self) -> dict:
        """Return the random stream, what population and view have fitted, and the features' range in training.

        A season leaves nothing for the next one.
        """
        return {
            "generator": self.generator.get_state(),
            "population": self.population.state_dict(),
            "observation": self.codec.state_dict(),
            "seen_features": self.seen_features.state_dict(),
        }

    def use_realised_outcomes(self) -> None:
        """From now on pay realised rewards, without shaping.

        A view that hides the state would show it in what no shop books: the value of the state after the season, and
        the prices of churn and fatigue. They are left out.
        """
        self.world = copy(self.world)
        self.world.reward = replace(self.world.reward, shaping=False, outcomes="realised")
        if self.codec.hides_state:
            self.world.reward = replace(self.world.reward, terminal=0.0, churn_cost=0.0, fatigue_penalty=0.0)

    def load_fitted(self, state: dict) -> None:
        """Use the features that a policy was trained on."""
        if state.get("population"):  # drawn customers have fitted nothing
            self.population.load_state_dict(state["population"])
            self._build_codec()
        self.codec.load_state_dict(state["observation"])
        self.seen_features.load_state_dict(state["seen_features"])

    def see_static_columns(self, obs: Tensor) -> None:
        """Take note of the range of the features of observations [N, D] that something was trained on."""
        self.seen_features.update(obs[:, : self.static_dim])

    def read_log(
        self, path: str, split: str, transform: Callable[[LoggedDataset], LoggedDataset] | None = None
    ) -> LoggedDataset:
        """Read a log; that of a shop's sends is encoded as this environment's policies observe it."""
        if not is_send_log(path):
            return super().read_log(path, split, transform)
        chunks = log_chunks(self, path, split)
        return LoggedDataset.cat([transform(chunk) if transform else chunk for chunk in chunks])

    def has_sides(self, path: str) -> bool:
        """Tell whether `read_log` knows the customers of training: a shop's sends have sides, numbered columns none."""
        return is_send_log(path)

    def static_limits(self) -> tuple[Tensor, Tensor]:
        """Return the range of the features seen in training, with the margin `clip_margin`, [F] each."""
        return self.seen_features.limits(self.clip_margin)

    def load_state_dict(self, state: dict) -> None:
        """Restore the random stream and what the population has fitted."""
        self.load_fitted(state)
        self.generator.set_state(state["generator"].cpu())
