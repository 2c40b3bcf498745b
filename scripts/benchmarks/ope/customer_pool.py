"""A pool of customers from which replications are drawn, with exactly known values of policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from envs.data_collection import LoggingPolicy, rollouts
from envs.offers.constraints.contact_policy import ContactPolicy
from envs.offers.env import OffersEnv
from envs.offers.planning.dynamic_program import action_values, best_plan, no_contact_values
from envs.offers.planning.state_values import StateGrid, StateValues
from envs.offers.policies.baselines import KnapsackPolicy
from envs.offers.policies.information import ORACLE
from envs.offers.policies.logging_policies import at_private_prices
from envs.offers.populations.base import Sample
from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, CustomerState
from rlcore.exploration.rules import floored
from rlcore.offline.logged_dataset import LoggedDataset

STATES = HABITS * FATIGUES * EXPECTATIONS


class Pool:
    """A population of a few customers, drawn with replacement.

    A policy is a table of probabilities [T, S, N, P] over the subscribed states of each.
    """

    rows: Tensor  # which customers the last draw gave

    def __init__(self, env: OffersEnv, size: int, seed: int):
        generator = torch.Generator(env.device).manual_seed(seed)
        self.sample, self.num_features = env.population.draw(size, generator, "test"), env.population.num_features
        self.world = env.world.to(env.device, torch.float64)
        self.customers = self.world.inhabit(self.sample.customers)
        self.no_contact_values = no_contact_values(self.customers, self.world)
        # All states of all customers, each as a customer of its own.
        grid = torch.cartesian_prod(*(torch.arange(n, device=env.device) for n in (HABITS, FATIGUES, EXPECTATIONS)))
        everywhere = grid[:, None].expand(-1, size, -1).flatten(0, 1)
        habit, fatigue, expectation = everywhere.unbind(1)
        self.states = CustomerState(habit, fatigue, expectation, status=torch.zeros_like(habit))
        self.copies = torch.arange(size, device=env.device).repeat(STATES)
        self.valid = self.world.catalogue.valid.flatten()

    def draw(self, n: int, generator: torch.Generator, split: str) -> Sample:
        """Return n customers with their start states; `rows` keeps their indices."""
        self.rows = rows = torch.randint(len(self.customers), (n,), generator=generator, device=generator.device)
        return Sample(
            self.sample.customers[rows],
            self.sample.features[rows],
            CustomerState(*(x[rows] for x in self.sample.state)),
        )

    def policy(self, *, price: float, plans: bool, sigma: float, epsilon: float) -> Tensor:
        """The policy of a planner at one price for all (PricePerturbedPolicy of envs/offers/policies)."""
        c, world, expand = self.customers, self.world, self.copies
        paths = torch.full((world.weeks,), price, dtype=torch.float64, device=expand.device)
        values = best_plan(c, world, self.no_contact_values, paths)[0] if plans else None
        values = values and [StateValues(*(x[..., expand] for x in v)) for v in values]
        plan = KnapsackPolicy(c[expand], world, ORACLE, values=values, fee=0.0)
        options = ContactPolicy(world.catalogue, None, (), ())(torch.ones_like(expand, dtype=torch.bool), [])
        weeks = []
        for t in range(world.weeks):
            steps = plan.increments(t, self.states, options)
            probs = at_private_prices(steps, paths[t].expand(len(expand)), sigma, len(self.valid))
            weeks.append(floored(probs, options.action_mask, epsilon).float().view(STATES, len(c), -1))
        return torch.stack(weeks)

    def value(self, policy: Tensor) -> tuple[float, float]:
        """Expected profit (with the terminal value) and spend of a season under a policy, by the dynamic program."""
        without, priced = (self._value(policy, price) for price in (0.0, 1.0))
        return without, without - priced

    def _value(self, policy: Tensor, price: float) -> float:
        c, world, at = self.customers, self.world, StateGrid(self.customers.alpha)
        values = self.no_contact_values[-1]
        for t in reversed(range(world.weeks)):
            nothing, contact = action_values(c, world, t, at, price, values)
            # [P, 6, 4, 3, N]
            table = torch.cat((nothing.expand(1, contact.shape[1], *nothing.shape), contact)).flatten(0, 1)
            chosen = policy[t].double().view(HABITS, FATIGUES, EXPECTATIONS, len(c), -1).movedim(-1, 0)
            values = StateValues((chosen * table).sum(0), self.no_contact_values[t].unsubscribed)
        return values.at(self.sample.state).mean().item()


class TabularPolicy(LoggingPolicy):
    """Act by one table, and note the actions of other tables in the same states."""

    def __init__(self, logging: Tensor, targets: list[Tensor]):
        self.logging, self.targets = logging, targets
        self.noted: list[list[Tensor]] = []

    def probs(self, env, obs, mask):
        state = env.state
        at = (state.habit * FATIGUES + state.fatigue) * EXPECTATIONS + state.expectation
        able = mask[:, 1:].any(1)[:, None]

        def look(table):
            return torch.where(able, table[env.week, at, env.population.rows], mask.float())

        self.noted.append([look(table) for table in self.targets])
        return look(self.logging).double()


def replications(
    env, pool: Pool, logging: Tensor, targets: list[Tensor], *, count: int, customers: int, at_once: int, seed: int
) -> Iterator[tuple[LoggedDataset, list[Tensor]]]:
    """Yield logs of `customers` each, with the targets' probabilities there, [N, P] each."""
    env.population, env.num_agents = pool, at_once * customers
    for start in range(0, count, at_once):
        policy = TabularPolicy(logging, targets)
        (log,) = rollouts(env, policy, "logging", seed + start, decisions=1, steps=1, all_propensities=False)
        noted = [torch.stack(table, 1).flatten(0, 1) for table in zip(*policy.noted)]
        size = customers * env.episode_length
        for k in range(min(at_once, count - start)):
            rows = slice(k * size, (k + 1) * size)
            yield log[rows], [table[rows] for table in noted]


def world_of(env: Callable[..., OffersEnv], device: torch.device, seed: int, size: int) -> tuple[OffersEnv, Pool]:
    """Build an environment of realised outcomes and the pool in it."""
    world = env(device, seed)
    world.use_realised_outcomes()
    return world, Pool(world, size, seed)
