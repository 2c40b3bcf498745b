"""The sequential environment: one customer a step in each of many worlds, under a budget that is restored every week."""
from __future__ import annotations

import copy
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from envs.base import BatchedEnv, Step
from envs.offers.catalogue import Catalogue

SLACK = 1e-9  # money that a sum of prices may be off by rounding


class Block(NamedTuple):
    """All that does not depend on actions, for K steps of W worlds: drawn and laid out at once."""

    newcomers: tuple[Tensor, ...]  # what the world draws of a customer, [K, W, ...] each
    u: Tensor  # uniforms for the outcomes [K, U, W]
    age: Tensor  # steps since the season began [K + 1, W]
    week: Tensor  # [K + 1, W]
    clock: Tensor  # what is observed of the time: share of the season's weeks, and of the week's customers [K + 1, W, 2]
    monday: Tensor  # the step ends a week [K, W]
    ends: Tensor  # … and a season [K, W]


class SequentialEnv(BatchedEnv):
    """`num_agents` worlds of `customers` each; a season is the world's weeks × customers steps and ends in termination.

    A message takes its face value and its cost out of the week's budget (`weekly_budget` money a customer), whether
    redeemed or not. What the budget can't pay is masked, or with a `penalty` (added to the reward) allowed and not
    sent. Observation: the world's features, the time, the share of the budget that is left. `stagger` starts the worlds
    at random ages. Random numbers are drawn `block` steps at a time.
    """

    truncates, redeems = False, False

    def __init__(self, device: torch.device, seed: int, *, num_agents: int, customers: int, catalogue: Catalogue,
                 world: Callable, weekly_budget: float, penalty: float | None, stagger: bool, block: int,
                 evaluation: Callable):
        for name, value in (("num_agents", num_agents), ("customers", customers), ("block", block),
                            ("weekly_budget", weekly_budget)):
            if value <= 0:
                raise ValueError(f"env.{name}: expected more than 0, got {value}")
        self.device, self.customers = torch.device(device), customers
        self.world = world(catalogue, self.device)
        self.season_steps = customers * self.world.weeks
        self.budget, self.penalty, self.stagger, self.evaluation = weekly_budget * customers, penalty, stagger, evaluation
        self.obs_dim, self.nvec, self.block_steps = self.world.num_features + 3, catalogue.nvec, block
        self.context_dim = self.obs_dim
        catalogue = catalogue.to(self.device, torch.float64)
        pairs = catalogue.value[:, None] + catalogue.cost
        pairs[0] = 0.0  # nothing is free in whatever channel
        self.cost = pairs.flatten()  # of every flat pair
        self.pair = torch.arange(len(self.cost), device=self.device).view(self.nvec) * catalogue.valid
        self.needs = self.cost - SLACK  # money that must be left to send it
        self.asked = (pairs - SLACK).masked_fill(~catalogue.valid, torch.inf) if penalty is None else None
        self._sized(num_agents, catalogue.valid)
        self.restored = torch.tensor(self.budget, device=self.device, dtype=torch.float64)
        self.seed([2 * seed])

    def _sized(self, num_agents: int, valid: Tensor) -> None:
        self.num_agents = num_agents
        self.valid = valid.expand(num_agents, -1, -1)
        self.over = torch.ones(num_agents, 2, device=self.device)  # the clock at a season's end

    def seed(self, seeds: list[int]) -> None:
        """Begin anew, each seed's random stream serving an equal share of the worlds."""
        self.generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        self.restart()

    def restart(self) -> None:
        """Begin new seasons in all worlds, the random streams going on."""
        w = self.num_agents
        share, high = w // len(self.generators), self.season_steps if self.stagger else 1
        age = torch.cat([torch.randint(high, (share,), generator=g, device=self.device) for g in self.generators])
        self.left = self.restored.expand(w)
        self.store = self.world.store(w, self.customers)
        self._draw(age)
        self.visit = self._visit()

    def beside(self, num_agents: int, seed: int) -> SequentialEnv:
        """Return an environment like this one of other size and stream, all its worlds at the start of a season."""
        other = copy.copy(self)
        other.stagger = False
        other._sized(num_agents, self.valid[0])
        other.seed([seed])
        return other

    def _draw(self, age: Tensor) -> None:
        """Draw the next block; `age` [W] is that of its first step."""
        steps, share = self.block_steps, self.num_agents // len(self.generators)
        self.streams = [g.get_state() for g in self.generators]  # to draw the block again
        drawn = [self.world.draw(steps * share, g) for g in self.generators]
        newcomers = tuple(torch.cat([x.view(steps, share, *x.shape[1:]) for x in parts], 1) for parts in zip(*drawn))
        u = torch.cat([torch.rand(steps, self.world.uniforms, share, generator=g, device=self.device)
                       for g in self.generators], -1)
        ages = (age + torch.arange(steps + 1, device=self.device)[:, None]) % self.season_steps
        week, position = ages // self.customers, ages % self.customers
        clock = torch.stack((week / self.world.weeks, position / self.customers), -1)
        monday, ends = position[1:] == 0, ages[1:] == 0
        self.block, self.k = Block(newcomers, u, ages, week, clock, monday, ends), 0

    def _visit(self) -> tuple[Tensor, ...]:
        """Look up the customers whose turn it is; in a season's first week these are new."""
        newcomers = tuple(x[self.k] for x in self.block.newcomers)
        if self.store is None:
            return newcomers
        at = self._at()
        for kept, new in zip(self.store, newcomers):
            first = (self.block.week[self.k] == 0).view(-1, *(1,) * (new.dim() - 1))
            kept[at] = torch.where(first, new, kept[at])
        return tuple(kept[at] for kept in self.store)

    def _at(self) -> tuple[Tensor, Tensor]:
        return torch.arange(self.num_agents, device=self.device), self.block.age[self.k] % self.customers

    def _obs(self, features: Tensor, clock: Tensor, left: Tensor) -> Tensor:
        return torch.cat((features, clock, (left / self.budget).to(features.dtype)[:, None]), -1)

    def begin(self) -> tuple[Tensor, Tensor]:
        """Observe where the worlds are; they carry on from rollout to rollout."""
        obs = self._obs(self.world.features(self.visit), self.block.clock[self.k], self.left)
        return obs, self._mask()

    def _mask(self) -> Tensor:
        if self.penalty is not None:
            return self.world.allowed(self.visit, self.valid)
        return self.world.allowed(self.visit, self.asked <= self.left[:, None, None])

    def step(self, action: Tensor) -> Step:
        """Send [W, 2] offers and channels to one customer in each world."""
        block, k, features = self.block, self.k, self.world.features(self.visit)
        # 1. What is sent, if the week's budget pays for it.
        pair = self.world.addressed(self.visit, self.pair[action[:, 0], action[:, 1]])  # (0, channel) is nothing too
        fits = self.needs[pair] <= self.left
        self.sent = torch.where(fits, pair, 0)
        paid = self.cost[self.sent]
        # 2. What the customer does.
        reward, state = self.world.respond(self.visit, self.sent, block.week[k], block.u[k])
        if self.penalty is not None:
            reward = reward + self.penalty * ~fits
        if self.store is not None:
            self.store[-1][self._at()] = state
        # 3. The next customer, and on Mondays a new budget; where a season is over, the next one's first.
        left, monday, ends = (self.left - paid).clamp_min(0), block.monday[k], block.ends[k]
        self.left = torch.where(monday, self.restored, left)
        self.k += 1
        if self.k == self.block_steps:
            self._draw(block.age[-1])
        self.visit = self._visit()
        obs, mask = self.begin()
        final_obs = torch.where(ends[:, None], self._obs(features, self.over, left), obs)
        info = {"reward": reward, "spend": paid, "contacted": self.sent > 0}
        return Step(obs, mask, reward, ends, torch.zeros_like(ends), final_obs, info)

    def expected_reward(self) -> Tensor:
        """Expected reward of this step alone by action, [W, *nvec], but for the penalty."""
        return self.world.values(self.visit, self.block.week[self.k]).view(-1, *self.nvec)

    def realise(self) -> None:
        """Give realised outcomes."""
        self.world.realise()

    def state_dict(self) -> dict:
        """Where the worlds are, and the streams as they were before the block at hand was drawn."""
        return {"age": self.block.age[0], "k": self.k, "streams": self.streams, "left": self.left,
                "store": self.store and list(self.store)}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave."""
        for generator, stream in zip(self.generators, state["streams"], strict=True):
            generator.set_state(stream.cpu())
        self._draw(state["age"].to(self.device))
        self.k, self.left = state["k"], state["left"].to(self.device)
        self.store = state["store"] and tuple(x.to(self.device) for x in state["store"])
        self.visit = self._visit()
