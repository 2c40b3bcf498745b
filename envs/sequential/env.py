"""The sequential environment: one customer a step in each of many worlds, under a budget that is restored every week."""
from __future__ import annotations

import copy
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from envs.base import VectorEnv, Step
from envs.offers.world.catalogue import Catalogue

SLACK = 1e-9  # money that a sum of prices may be off by rounding


class StepInputs(NamedTuple):
    """All of a step that does not depend on actions, [W, ...] each; a block of K steps, drawn at once, is [K, W, ...]."""

    visit: tuple[Tensor, ...]  # the customers whose turn it is; in a block, those that are new
    u: Tensor  # uniforms for the outcomes [U, W]
    age: Tensor  # steps since the season began
    week: Tensor
    clock: Tensor  # what is observed of the time: share of the season's weeks, and of the week's customers [W, 2]
    monday: Tensor  # the step ends a week
    ends: Tensor  # … and a season

    def at(self, k: int | slice) -> StepInputs:
        """Take some steps out of a block."""
        return StepInputs(tuple(x[k] for x in self.visit), *(x[k] for x in self[1:]))


class Sent(NamedTuple):
    """What came of a step, [W] each."""

    left: Tensor  # of the week's budget
    reward: Tensor
    pair: Tensor  # that was really sent
    paid: Tensor
    state: Tensor | None  # of the customers, who remember


class SequentialEnv(VectorEnv):
    """`num_agents` worlds of `customers` each; a season is the world's weeks × customers steps and ends in termination.

    A message takes its face value and its cost out of the week's budget (`weekly_budget` money a customer), whether
    redeemed or not. What the budget can't pay is masked, or with a `penalty` (added to the reward) allowed and not
    sent. Observation: the world's features, the time, the share of the budget that is left. `stagger` starts the worlds
    at random ages. Random numbers are drawn `block` steps at a time.
    """

    info_keys = ("reward", "spend", "contacted")

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
        self.left = self.restored.repeat(w)
        self.store = self.world.store(w, self.customers)
        self._draw(age)
        self._meet()

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
        clock = torch.stack((week / self.world.weeks, position / self.customers), -1)[:-1]
        self.block, self.k = StepInputs(newcomers, u, ages[:-1], week[:-1], clock, position[1:] == 0, ages[1:] == 0), 0
        self.next_age = ages[-1]

    def _go(self, steps: int) -> None:
        """Let steps of the block go by."""
        self.k += steps
        if self.k == self.block_steps:
            self._draw(self.next_age)

    def _meet(self) -> None:
        """Look up the customers whose turn it is; in a season's first week these are new."""
        self.inputs = self.block.at(self.k)
        if self.store is not None:
            at = self._at()
            for kept, new in zip(self.store, self.inputs.visit):
                first = (self.inputs.week == 0).view(-1, *(1,) * (new.dim() - 1))
                kept[at] = torch.where(first, new, kept[at])
            self.inputs = self.inputs._replace(visit=tuple(kept[at] for kept in self.store))

    def _at(self) -> tuple[Tensor, Tensor]:
        return torch.arange(self.num_agents, device=self.device), self.inputs.age % self.customers

    def _obs(self, features: Tensor, clock: Tensor, left: Tensor) -> Tensor:
        return torch.cat((features, clock, (left / self.budget).to(features.dtype)[:, None]), -1)

    def reset(self) -> tuple[Tensor, Tensor]:
        """Observe where the worlds are; they carry on from rollout to rollout."""
        return self.observe(self.left, self.inputs)

    def observe(self, left: Tensor, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """Observe with so much budget left, [W]: obs [W, D], mask [W, *nvec]. Pure."""
        mask = self.valid if self.penalty is not None else self.asked <= left[:, None, None]
        obs = self._obs(self.world.features(inputs.visit), inputs.clock, left)
        return obs, self.world.allowed(inputs.visit, mask)

    def _send(self, left: Tensor, inputs: StepInputs, action: Tensor) -> Sent:
        # 1. What is sent, if the week's budget pays for it; (0, channel) is nothing too.
        pair = self.world.addressed(inputs.visit, self.pair[action[:, 0], action[:, 1]])
        fits = self.needs[pair] <= left
        sent = torch.where(fits, pair, 0)
        paid = self.cost[sent]
        # 2. What the customer does.
        reward, state = self.world.respond(inputs.visit, sent, inputs.week, inputs.u)
        if self.penalty is not None:
            reward = reward + self.penalty * ~fits
        return Sent((left - paid).clamp_min(0), reward, sent, paid, state)

    def _restored(self, left: Tensor, inputs: StepInputs) -> Tensor:
        return torch.where(inputs.monday, self.restored, left)

    def step(self, action: Tensor) -> Step:
        """Send [W, 2] offers and channels to one customer in each world."""
        inputs = self.inputs
        sent = self._send(self.left, inputs, action)
        self.sent = sent.pair
        if self.store is not None:
            self.store[-1][self._at()] = sent.state
        # The next customer, and on Mondays a new budget; where a season is over, the next one's first.
        self.left = self._restored(sent.left, inputs)
        self._go(1)
        self._meet()
        obs, mask = self.reset()
        over = self._obs(self.world.features(inputs.visit), self.over, sent.left)
        final_obs = torch.where(inputs.ends[:, None], over, obs)
        return Step(obs, mask, sent.reward, inputs.ends, torch.zeros_like(inputs.ends), final_obs, self._info(sent))

    def _info(self, sent: Sent) -> dict[str, Tensor]:
        return {"reward": sent.reward, "spend": sent.paid, "contacted": sent.pair > 0}

    # ── the same as pure functions, for worlds that keep nothing of a customer ──────────────────────────────────────
    def as_functional(self) -> SequentialEnv | None:
        """Return this environment, where the budget that is left is all of its state."""
        return self if self.store is None else None

    @property
    def state(self) -> Tensor:
        """The budget that each world has left, [W]."""
        return self.left

    def sample_inputs(self, steps: int) -> StepInputs:
        """Take the inputs of the next steps, [steps, W, ...]; the worlds then wait for the budget that the steps lead to."""
        parts = []
        while steps:
            part = min(steps, self.block_steps - self.k)
            parts.append(self.block.at(slice(self.k, self.k + part)))
            self._go(part)
            steps -= part
        if len(parts) == 1:
            return parts[0]
        visit = tuple(map(torch.cat, zip(*(part.visit for part in parts))))
        return StepInputs(visit, *map(torch.cat, zip(*(part[1:] for part in parts))))

    def transition(self, left: Tensor, inputs: StepInputs, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the budget left after actions [W, 2], the rewards and info, [W] each. Pure."""
        sent = self._send(left, inputs, action)
        return self._restored(sent.left, inputs), sent.reward, self._info(sent)

    def set_state(self, left: Tensor) -> None:
        """Continue with the budget that the sampled steps have left."""
        self.left = left
        self._meet()

    def expected_reward(self) -> Tensor:
        """Expected reward of this step alone by action, [W, *nvec], but for the penalty."""
        return self.world.values(self.inputs.visit, self.inputs.week).view(-1, *self.nvec)

    def use_realised_outcomes(self) -> None:
        """Give realised outcomes."""
        self.world.use_realised_outcomes()

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
        self._meet()
