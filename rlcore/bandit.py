"""A neural contextual bandit over any BatchedEnv: it learns what an action earns at once, and nothing of what follows.

train = (collect, update) repeated; with a log, what would be collected is read from it. In a priced environment it learns profit and spend apart, and acts on profit less the
spend at the agent's price; so its values clear any budget by the exact knapsack.
"""
from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from rlcore.distributions import draw, unflatten
from rlcore.exploration import best
from rlcore.backends.cuda_graphs import fast
from rlcore.algorithm import Learner
from rlcore.offline.logged_dataset import Logged
from rlcore.networks import ActionValues


class Memory:
    """The last `size` decisions as columns on the device: context [S, D], flat action [S], reward [S]."""

    def __init__(self, size: int, context_dim: int, device: torch.device):
        self.context = torch.zeros(size, context_dim, device=device)
        self.action = torch.zeros(size, dtype=torch.long, device=device)
        self.reward = torch.zeros(size, device=device)
        self.written = 0

    def __len__(self) -> int:
        return min(self.written, len(self.reward))

    def write(self, *columns: Tensor) -> None:
        """Add rows [B, …], over the oldest where it is full."""
        rows = (self.written + torch.arange(len(columns[0]), device=self.reward.device)) % len(self.reward)
        for kept, new in zip((self.context, self.action, self.reward), columns):
            kept[rows] = new
        self.written += len(columns[0])

    def rows(self, index=slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is remembered, or some of it."""
        n = len(self)
        return self.context[:n][index], self.action[:n][index], self.reward[:n][index]

    def state_dict(self) -> dict:
        """What is remembered, and where to write next."""
        return {"written": self.written, "rows": tuple(x.clone() for x in self.rows())}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave."""
        self.written = state["written"]
        for kept, old in zip((self.context, self.action, self.reward), state["rows"]):
            kept[:len(old)] = old


class Decisions(NamedTuple):
    """What a rollout leaves to learn from, [T·N, …]; `redeemed` only where a spend head learns from it."""

    context: Tensor
    action: Tensor
    reward: Tensor
    redeemed: Tensor | None


class Bandit(Learner):
    """A contextual bandit that acts for num_steps by an explorer (rlcore/exploration.py), then learns from memory.

    net is an ActionValues. In an iteration it learns from `updates` minibatches of `batch_size` remembered decisions.
    Raises ValueError where the parts don't fit.
    """

    valued, sees_price = True, False

    def __init__(self, env, seed: int, mode: str, *, net: Callable, optim: Callable, schedule: Callable | None,
                 explore: Callable, spend: Callable | None, total_steps: int, num_steps: int, memory: int, updates: int,
                 batch_size: int, eval_every: int, checkpoint_every: int):
        super().__init__(env, seed, net=net, optim=optim, schedule=schedule, spend=spend, total_steps=total_steps,
                         num_steps=num_steps, eval_every=eval_every, checkpoint_every=checkpoint_every)
        if not isinstance(self.net, ActionValues):
            raise ValueError("algo.net: the bandit needs a network of action values, as algo/net=values or logistic")
        if memory < self.batch:
            raise ValueError(f"algo.memory: expected at least {self.batch}, the decisions of an iteration, got {memory}")
        self.explore = explore(self.net)
        self.updates, self.batch_size = updates, batch_size
        self.memory = Memory(memory, env.context_dim, env.device)
        self.regret = torch.zeros((), device=env.device)  # of an agent since the start
        self.seed, self.log = seed, None
        self.loss = fast(self.net.loss, mode)

    def train(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
              stop: Callable[[], bool]) -> None:
        """Run to the last iteration, or to the end of the one in which `stop` turns true."""
        for _, metrics in self.loop(logger, save, evaluate, stop):
            decisions, charts = self.collect() if self.log is None else (self.recall(), {})
            metrics |= self.update(decisions) | charts

    def learn_from(self, log: Logged) -> None:
        """Take decisions from a log, over and over in one random order, in place of acting."""
        self.log = log
        self.order = torch.randperm(len(log), generator=torch.Generator().manual_seed(self.seed)).to(self.env.device)

    @torch.no_grad()
    def recall(self) -> Decisions:
        """As many logged decisions as an iteration would make, after those of the last."""
        rows = (self.iteration * self.batch + torch.arange(self.batch, device=self.lr.device)) % len(self.log)
        rows = self.order[rows]
        context, action = self.log.obs[rows, :self.env.context_dim], self.log.action[rows]
        for part in zip(context.chunk(self.num_steps), action.chunk(self.num_steps)):
            self.explore.absorb(self.net, *part)
        return Decisions(context, action, self.log.profit[rows], self.log.redeemed[rows] > 0 if self.spend else None)

    def values(self, context: Tensor) -> Tensor:
        """Expected reward of all actions, [B, Πn]."""
        return self.explore.predict(self.net, context)

    @torch.no_grad()
    def collect(self) -> tuple[Decisions, dict[str, Tensor]]:
        """Act for num_steps in every world, and count what exploring cost."""
        env, rows, charts = self.env, [], []
        obs, mask = env.begin()
        u = torch.rand(self.num_steps, env.num_agents, generator=self.generator, device=env.device)
        for t in range(self.num_steps):
            context, valid = obs[:, :env.context_dim], mask.flatten(1)
            charge = self.charge(context, env.price if env.priced else None)
            probs = self.explore.probs(self.net, context, charge, valid, self.generator)
            action = draw(probs, u[t])
            self.explore.absorb(self.net, context, action)
            regret, expected = {}, env.expected_reward()
            if expected is not None:
                expected = expected.flatten(1).masked_fill(~valid, -torch.inf)
                regret = {"regret": expected.amax(-1) - expected.gather(1, action[:, None])[:, 0]}
            step = env.step(unflatten(action, env.nvec))
            rows.append((context, action, step.info["profit"] if env.priced else step.reward,
                         step.info["redeemed"] if self.spend else None))
            charts.append({**step.info, **regret, "explored": 1 - probs.amax(-1)})
            obs, mask = step.obs, step.mask
        means = {f"rollout/{name}": torch.stack([chart[name].float().mean() for chart in charts]).mean()
                 for name in charts[0]}
        if "rollout/regret" in means:
            self.regret += self.num_steps * means["rollout/regret"]
            means["rollout/cumulative_regret"] = self.regret.clone()
        return Decisions(*(None if column[0] is None else torch.cat(column) for column in zip(*rows))), means

    def charge(self, context: Tensor, price: Tensor | None) -> Tensor | float:
        """What pairs cost agents, [B, Πn], at the prices [B] they act under: known, and so not part of what is learned."""
        if not self.env.priced:
            return 0.0
        return (price[:, None, None] * self.env.spend(self.spend and self.spend.redeem(context))).flatten(1)

    @torch.no_grad()
    def probs(self, obs: Tensor, mask: Tensor, price: Tensor) -> Tensor:
        """All on what is worth most at prices [B], as [B, Πn], of masks bool [B, Πn]."""
        if self.env.priced and not self.spend:
            raise ValueError("algo.spend: without a spend head nothing tells what pairs cost the customers of a log")
        context = obs[:, :self.env.context_dim]
        return best(self.values(context) - self.charge(context, price), mask)

    def update(self, decisions: Decisions) -> dict[str, Tensor]:
        """Remember what was seen and learn from memory; return metrics as device tensors."""
        self.memory.write(*decisions[:3])
        self.net.rescale(decisions.context)
        total = torch.zeros_like(self.lr)
        for _ in range(self.updates):
            index = torch.randint(len(self.memory), (self.batch_size,), generator=self.generator, device=total.device)
            loss = self.loss(*self.memory.rows(index))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        with torch.no_grad():
            self.explore.refit(self.net, self.iteration, *self.memory.rows())
        metrics = {"losses/value_loss": total / self.updates}
        if self.spend:
            pairs = unflatten(decisions.action, self.env.nvec)
            metrics["losses/spend"] = self.spend.fit(decisions.context, pairs, decisions.redeemed, self.updates,
                                                     self.generator)
        return metrics

    def state_dict(self) -> dict:
        """Everything that training needs to go on as if it had not stopped."""
        return super().state_dict() | {"explore": self.explore.state_dict(), "memory": self.memory.state_dict(),
                                       "regret": self.regret}

    def load_weights(self, state: dict) -> None:
        """Restore what acting needs, on whatever device."""
        super().load_weights(state)
        self.explore.load_state_dict(state["explore"])

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave, to train on."""
        super().load_state_dict(state)
        self.memory.load_state_dict(state["memory"])
        self.regret.copy_(state["regret"])
