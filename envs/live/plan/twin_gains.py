"""What a send gains over sending nothing, by a structural twin: margin this week, and the value of later weeks."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.live.package import Package
from envs.live.plan.deciding import Customers
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.offers.planning.dynamic_program import action_values, no_contact_values
from envs.offers.planning.state_values import StateGrid, StateValues
from envs.offers.populations.base import theta_from_matrix
from envs.offers.populations.feature_transform import FeatureTransform
from envs.offers.twin.structural_model import fitted_networks, mean_theta
from envs.offers.twin.twin_checkpoint import load_twin
from envs.offers.world.customers import Customers as Theta
from envs.offers.world.filtering import Belief, filter_week, start_belief

ROWS = 2048  # customers valued at once: their tables fit a cache


class ExpectedGain(NamedTuple):
    """Expected gain of some sends against sending nothing, money."""

    now: float  #: margin of the week, less what the sends spend
    later: float  #: margin of the weeks after it


class TwinGains:
    """A structural twin on the columns of a package.

    θ is the mean of the twin's members. The hidden state is filtered from the log under θ, and the value after the week
    is V⁰, that of never contacting again. Gains are money: what a reward adds to margin and spend (trips, churn,
    fatigue) is left out. Raises ValueError where the checkpoint is not that of a structural twin, or was fitted to
    other columns.
    """

    def __init__(self, path: str, package: Package):
        twin = load_twin(path, "twin")["agent"]
        state = twin["env"]["population"].get("transform")
        here = package.transform
        if state is None or list(state["numbers"]) != list(here.numbers) or state["levels"] != here.levels:
            raise ValueError(f"twin={path}: fitted to other columns or levels than those of the package")
        transform, channels = FeatureTransform(state), len(package.catalogue.channels)
        self.features, num_features = transform.to_module(), len(transform.names)
        self.networks = fitted_networks(twin, f"twin={path}", num_features=num_features, channels=channels)
        self.world = package.world.to("cpu", torch.float64)  # gains are small differences of values
        self.world.reward = replace(package.world.reward, trips=0.0, churn_cost=0.0, fatigue_penalty=0.0)

    def theta(self, features: Tensor) -> Theta:
        """Return the mean of the members' θ, of customers with features [N, F]."""
        return theta_from_matrix(mean_theta(self.networks, features))

    def of(self, customers: Customers, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the gain of each customer's flat action [N], this week and after it, float32 [N]; 0 for nothing."""
        now, later = np.zeros(len(action), dtype=np.float32), np.zeros(len(action), dtype=np.float32)
        sent = np.flatnonzero(action > 0)
        for first in range(0, len(sent), ROWS):
            rows = sent[first : first + ROWS]
            found = self._gains(customers, rows, torch.from_numpy(action[rows]))
            now[rows], later[rows] = (x.float().numpy() for x in found)
        return now, later

    @torch.no_grad()
    def _gains(self, customers: Customers, rows: np.ndarray, action: Tensor) -> tuple[Tensor, Tensor]:
        at, world = torch.from_numpy(rows), self.world
        c = world.inhabit(self.theta(self.features(customers.numbers[at], customers.levels[at])))
        belief = self.belief(c, customers.past.of(rows))
        week = customers.past.week % world.weeks
        grid = StateGrid(c.alpha)
        offer, channel = world.catalogue.action_codec.decode(action)
        wasted = world.catalogue.cost[channel] * belief.churned  # a message to who has churned costs as much

        def gain(then: StateValues | None) -> Tensor:
            nothing, contact = action_values(c, world, week, grid, 0.0, then)
            of_sent = contact[offer - 1, channel, ..., torch.arange(len(rows))].movedim(0, -1)
            return (belief.subscribed * (of_sent - nothing)).sum((0, 1, 2)) - wasted

        now = gain(None)
        return now, gain(no_contact_values(c, world)[week + 1]) - now

    def belief(self, c: Theta, past: PastWeeks) -> Belief:
        """Filter the hidden state of customers through the weeks in which the log has them."""
        belief, every = start_belief(c), slice(None)
        for week in range(past.week if past.log is not None else 0):
            after = filter_week(c, self.world, week, belief, past.seen(week, every))[0]
            present = past.present(week, every)
            belief = Belief(*(torch.where(present, new, old) for new, old in zip(after, belief)))
        return belief
