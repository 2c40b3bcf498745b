"""The sequential environment: one customer a step in each of many worlds, under a weekly budget."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from envs.base import Step, VectorEnv
from envs.offers.world.catalogue import Catalogue
from envs.sequential.step_inputs import InputStream, StepInputs

SLACK = 1e-9  # rounding error of a sum of prices, money


class Delivery(NamedTuple):
    """Results of a step, [W] each."""

    budget_left: Tensor  # of the week
    reward: Tensor
    flat_action: Tensor  # flat action that was really sent
    spend: Tensor
    state: Tensor | None  # new state of structural customers, [W, 4]


class SequentialEnv(VectorEnv):
    """`num_agents` worlds of `customers` each; a season is the world's weeks × customers steps and ends in termination.

    A message takes its face value and its cost out of the week's budget (`weekly_budget`, money a customer), whether it
    is redeemed or not. Pairs that the budget can't pay for are masked. With a `penalty` they are allowed instead: they
    are not sent, and the penalty is added to the reward. The observation is the customer's features, the time, and the
    share of the budget left. `random_start` starts the worlds at random ages. Random numbers are drawn for
    `prefetch_steps` steps at a time.
    """

    info_keys = ("reward", "spend", "contacted")

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        num_agents: int,
        customers: int,
        catalogue: Catalogue,
        world: Callable,
        weekly_budget: float,
        penalty: float | None,
        random_start: bool,
        prefetch_steps: int,
        evaluation: Callable,
    ):
        for name, value in (
            ("num_agents", num_agents),
            ("customers", customers),
            ("prefetch_steps", prefetch_steps),
            ("weekly_budget", weekly_budget),
        ):
            if value <= 0:
                raise ValueError(f"env.{name}: expected more than 0, got {value}")
        self.device, self.customers = torch.device(device), customers
        self.world = world(catalogue, self.device)
        self.season_steps = customers * self.world.weeks
        self.budget, self.penalty, self.random_start = weekly_budget * customers, penalty, random_start
        self.evaluation, self.prefetch_steps = evaluation, prefetch_steps
        self.obs_dim, self.nvec = self.world.num_features + 3, catalogue.nvec
        catalogue = catalogue.to(self.device, torch.float64)
        cost = catalogue.value[:, None] + catalogue.cost
        cost[0] = 0.0  # "nothing" is free through every channel
        self.cost = cost.flatten()  # cost of each flat action, money, [P]
        self.flat_action = torch.arange(len(self.cost), device=self.device).view(self.nvec) * catalogue.valid
        self.needs = self.cost - SLACK  # least budget left for each flat action, [P]
        self.needs_if_valid = (cost - SLACK).masked_fill(~catalogue.valid, torch.inf)
        self._set_size(num_agents, catalogue.valid)
        self.full_budget = torch.tensor(self.budget, device=self.device, dtype=torch.float64)
        self.seed([2 * seed])

    @property
    def has_fixed_lengths(self) -> bool:
        """Whether actions leave the length of a season as it is: they do."""
        return True

    def _set_size(self, num_agents: int, valid: Tensor) -> None:
        self.num_agents = num_agents
        self.valid = valid.expand(num_agents, -1, -1)
        self.final_clock = torch.ones(num_agents, 2, device=self.device)  # at a season's end

    def seed(self, seeds: list[int]) -> None:
        """Restart all worlds; each seed's random stream serves an equal share of the worlds."""
        self.stream = InputStream(
            self.world,
            [torch.Generator(self.device).manual_seed(seed) for seed in seeds],
            self.device,
            worlds=self.num_agents,
            customers=self.customers,
            prefetch_steps=self.prefetch_steps,
        )
        self.restart()

    def restart(self) -> None:
        """Start new seasons in all worlds; the random streams go on."""
        age = self.stream.draw_ages(self.season_steps if self.random_start else 1)
        self.budget_left = self.full_budget.repeat(self.num_agents)
        self.store = self.world.store(self.num_agents, self.customers)
        self.stream.prefetch(age)
        self._visit_next()

    def copy_of_size(self, num_agents: int, seed: int) -> SequentialEnv:
        """Return a copy of another size and stream, with all worlds at the start of a season."""
        other = copy.copy(self)
        other.random_start = False
        other._set_size(num_agents, self.valid[0])
        other.seed([seed])
        return other

    def _visit_next(self) -> None:
        """Look up the current customers; in a season's first week these are new."""
        self.inputs = self.stream.current()
        if self.store is not None:
            place = self._place()
            for kept, new in zip(self.store, self.inputs.visit):
                first = (self.inputs.week == 0).view(-1, *(1,) * (new.dim() - 1))
                kept[place] = torch.where(first, new, kept[place])
            self.inputs = self.inputs._replace(visit=tuple(kept[place] for kept in self.store))

    def _place(self) -> tuple[Tensor, Tensor]:
        return torch.arange(self.num_agents, device=self.device), self.inputs.age % self.customers

    def _obs(self, features: Tensor, clock: Tensor, budget_left: Tensor) -> Tensor:
        return torch.cat((features, clock, (budget_left / self.budget).to(features.dtype)[:, None]), -1)

    def reset(self) -> tuple[Tensor, Tensor]:
        """Observe the current worlds; their seasons go on from rollout to rollout."""
        return self.observe(self.budget_left, self.inputs)

    def observe(self, budget_left: Tensor, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """Return the observation [W, D] and the action mask [W, *nvec] at a budget left [W]. Pure."""
        affordable = self.valid if self.penalty is not None else self.needs_if_valid <= budget_left[:, None, None]
        obs = self._obs(self.world.features(inputs.visit), inputs.clock, budget_left)
        return obs, self.world.mask_actions(inputs.visit, affordable)

    def _send(self, budget_left: Tensor, inputs: StepInputs, action: Tensor) -> Delivery:
        # 1. Send the action if the week's budget pays for it; (0, channel) is nothing too.
        flat_action = self.world.deliver(inputs.visit, self.flat_action[action[:, 0], action[:, 1]])
        fits = self.needs[flat_action] <= budget_left
        sent = torch.where(fits, flat_action, 0)
        spend = self.cost[sent]
        # 2. Simulate the customer's response.
        reward, state = self.world.respond(inputs.visit, sent, inputs.week, inputs.u)
        if self.penalty is not None:
            reward = reward + self.penalty * ~fits
        return Delivery((budget_left - spend).clamp_min(0), reward, sent, spend, state)

    def _next_budget(self, budget_left: Tensor, inputs: StepInputs) -> Tensor:
        return torch.where(inputs.week_ends, self.full_budget, budget_left)

    def step(self, action: Tensor) -> Step:
        """Send [W, 2] offers and channels to one customer in each world."""
        inputs = self.inputs
        delivery = self._send(self.budget_left, inputs, action)
        self.sent_action = delivery.flat_action
        if self.store is not None:
            self.store[-1][self._place()] = delivery.state
        # The next customer, and on Mondays a new budget; where a season is over, the next one's first.
        self.budget_left = self._next_budget(delivery.budget_left, inputs)
        self.stream.advance(1)
        self._visit_next()
        obs, action_mask = self.reset()
        over = self._obs(self.world.features(inputs.visit), self.final_clock, delivery.budget_left)
        final_obs = torch.where(inputs.ends[:, None], over, obs)
        return Step(
            obs=obs,
            action_mask=action_mask,
            reward=delivery.reward,
            terminated=inputs.ends,
            truncated=torch.zeros_like(inputs.ends),
            final_obs=final_obs,
            info=self._info(delivery),
        )

    def _info(self, delivery: Delivery) -> dict[str, Tensor]:
        return {"reward": delivery.reward, "spend": delivery.spend, "contacted": delivery.flat_action > 0}

    # ── the same as pure functions, for worlds that keep nothing of a customer ──────────────────────────────────────
    def as_functional(self) -> SequentialEnv | None:
        """Return this environment if the budget left is its whole state, else None."""
        return self if self.store is None else None

    @property
    def state(self) -> Tensor:
        """The budget left in each world, [W]."""
        return self.budget_left

    def sample_inputs(self, steps: int) -> StepInputs:
        """Take the inputs of the next steps, [steps, W, ...]; the worlds then wait for `set_state`."""
        return self.stream.take(steps)

    def transition(
        self, budget_left: Tensor, inputs: StepInputs, action: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the budget left after actions [W, 2], the rewards and info, [W] each. Pure."""
        delivery = self._send(budget_left, inputs, action)
        return self._next_budget(delivery.budget_left, inputs), delivery.reward, self._info(delivery)

    def set_state(self, budget_left: Tensor) -> None:
        """Continue with the budget left after the sampled steps."""
        self.budget_left = budget_left
        self._visit_next()

    def expected_reward(self) -> Tensor:
        """Return the expected reward of this step alone by action, [W, *nvec], without the penalty."""
        return self.world.values(self.inputs.visit, self.inputs.week).view(-1, *self.nvec)

    def use_realised_outcomes(self) -> None:
        """From now on pay realised rewards."""
        self.world.use_realised_outcomes()

    def state_dict(self) -> dict:
        """Return the worlds' positions, and the streams as they were before the last prefetch."""
        return {
            **self.stream.state_dict(),
            "budget_left": self.budget_left,
            "store": self.store and list(self.store),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`."""
        self.stream.load_state_dict(state)
        self.budget_left = state["budget_left"].to(self.device)
        self.store = state["store"] and tuple(x.to(self.device) for x in state["store"])
        self._visit_next()
