"""Offline reinforcement learning: double Q-learning on a log of decisions, and BCQ and CQL, which keep to what it holds.

train = (sample, prepare, update) repeated. In a priced environment the table has what pairs are worth before the price of
their own spend; prices are drawn anew for every decision that is learned from, so that one log serves every budget.
"""
from __future__ import annotations

import math
from copy import deepcopy
from typing import Callable, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.distributions import unflatten
from rlcore.exploration import best
from rlcore.backends.cuda_graphs import fast
from rlcore.algorithm import Learner
from envs.offers.logs.variance_reduction import plain
from rlcore.offline.logged_dataset import Logged
from rlcore.networks import ActionValues
from rlcore.ope.outcome_models import CHUNK

UNHEARD_OF = -1e9  # worth of a pair that the log has too little of; finite, that two of them can be compared


# ── mathematics: tables [B, P] of all pairs, masks of what is valid, actions flat [B] ───────────────────────────────
def supported(logits: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """Valid pairs whose probability is above `threshold` of the likeliest's, and that one (Fujimoto et al. 2019b)."""
    logits = torch.where(mask, logits, -torch.inf)
    gap = logits - logits.amax(-1, keepdim=True)
    return (gap > (math.log(threshold) if threshold > 0 else -torch.inf)) | (gap == 0)


def double_target(reward: Tensor, discount: Tensor, online: Tensor, target: Tensor, charge: Tensor | float,
                  allowed: Tensor) -> Tensor:
    """r + γ·(target − charge)(s', a*), a* the allowed pair that `online` less the charge thinks best (van Hasselt et al.
    2016); discounts γ [B] are 0 where all ends."""
    action = (online - charge).masked_fill(~allowed, -torch.inf).argmax(-1, keepdim=True)
    return reward + discount * (target - charge).gather(1, action)[:, 0]


def td_loss(value: Tensor, goal: Tensor, weight: Tensor, huber: float | None) -> Tensor:
    """Weighted mean of Huber's loss at width `huber`; without one, of half the squared error, of which means are the
    solution."""
    if huber is None:
        return 0.5 * (weight * (value - goal).square()).mean()
    error = functional.huber_loss(value, goal, delta=huber, reduction="none")
    return (weight * error).mean()


def conservative(q: Tensor, mask: Tensor, action: Tensor) -> Tensor:
    """Mean of log Σ exp Q over valid pairs less Q of the pair taken (Kumar et al. 2020, eq. 4)."""
    return (torch.where(mask, q, -torch.inf).logsumexp(-1) - q.gather(1, action[:, None])[:, 0]).mean()


def imitation(logits: Tensor, mask: Tensor, action: Tensor, penalty: float) -> Tensor:
    """Cross-entropy of the pairs taken among valid ones, and `penalty` times the mean square of their logits."""
    log_probs = torch.where(mask, logits, -torch.inf).log_softmax(-1)
    square = torch.where(mask, logits, 0.0).square().sum() / mask.sum()
    return -log_probs.gather(1, action[:, None])[:, 0].mean() + penalty * square


class Batch(NamedTuple):
    """Decisions to learn from, [B, …]."""

    obs: Tensor  # at a price drawn anew
    mask: Tensor
    action: Tensor
    charge: Tensor  # what pairs cost at that price, [B, P]
    goal: Tensor  # of the value of the pair taken
    weight: Tensor
    logged: Tensor  # the observation that the decision was made on
    cost: Tensor  # what pairs cost at the price of then


class Conservative(nn.Module):
    """CQL's: values of valid pairs are not to exceed those of pairs taken, weighed by `alpha`."""

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, alpha: float):
        super().__init__()
        self.alpha = alpha

    def allowed(self, obs: Tensor, mask: Tensor) -> Tensor:
        """All that is valid."""
        return mask

    def loss(self, batch: Batch, net: Callable) -> Tensor:
        """The conservative term, of values less what pairs cost, at the price that the pair was taken at: at another price
        the log's policy may do another."""
        return self.alpha * conservative(net(batch.logged) - batch.cost, batch.mask, batch.action)


class Imitated(nn.Module):
    """BCQ's: only pairs above `threshold` of the likeliest's probability, as a network of its own learns it from the log."""

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, net: Callable, threshold: float, penalty: float):
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"algo.keep.threshold: expected a share in [0, 1], got {threshold}")
        self.net, self.threshold, self.penalty = net(obs_dim, nvec), threshold, penalty

    def allowed(self, obs: Tensor, mask: Tensor) -> Tensor:
        """What the log's policy does often enough."""
        return supported(self.net(obs), mask, self.threshold) if self.threshold > 0 else mask

    def loss(self, batch: Batch, net: Callable) -> Tensor:
        """Cross-entropy on what was observed then, prices too."""
        return imitation(self.net(batch.logged), batch.mask, batch.action, self.penalty)


class DoubleQ(Learner):
    """Double Q-learning on a log, from `learn_from`.

    `keep` keeps it to what the log has (null: nothing does). An iteration is `updates` minibatches of `batch_size`
    decisions, `total_steps` decisions in all. The target network moves by a share `target_rate` every `target_every`
    updates. `baseline` (envs/offers/logs/variance_reduction.py) frees rewards of what decisions did not do. `relabel`: draw prices anew. Raises
    ValueError where the parts don't fit.
    """

    valued, sees_price = True, True

    def __init__(self, env, seed: int, mode: str, *, net: Callable, optim: Callable, schedule: Callable | None,
                 spend: Callable | None, keep: Callable | None, baseline: Callable | None, total_steps: int, updates: int,
                 batch_size: int, gamma: float, huber: float | None, target_every: int, target_rate: float, relabel: bool,
                 eval_every: int, checkpoint_every: int):
        super().__init__(env, seed, net=net, optim=optim, schedule=schedule, spend=spend, total_steps=total_steps,
                         num_steps=env.season or 1, eval_every=eval_every, checkpoint_every=checkpoint_every)
        if not isinstance(self.net, ActionValues):
            raise ValueError("algo.net: offline learners need a network of action values, as algo/net=values")
        if env.priced and not self.spend:
            raise ValueError("algo.spend: without a spend head nothing tells what pairs cost the customers of a log")
        self.batch = updates * batch_size
        self.iterations = max(1, total_steps // self.batch)
        self.baseline, self.updates, self.batch_size, self.gamma, self.huber = baseline, updates, batch_size, gamma, huber
        self.target_every, self.target_rate, self.relabel = target_every, target_rate, relabel and env.priced
        self.seed, self.count, self.log = seed, 0, None
        self.target = deepcopy(self.net).requires_grad_(False)
        self.keep = keep(env.obs_dim, env.nvec).to(env.device) if keep else None
        if self.keep and (parameters := list(self.keep.parameters())):
            self.optimizer.add_param_group({"params": parameters, "lr": self.lr})
        self.loss = fast(self.loss, mode)

    def learn_from(self, log: Logged) -> None:
        """Take a log of this environment to learn from. Raises ValueError where it doesn't say what came next."""
        env = self.env
        if log.next_obs is None and not log.terminated.all():
            raise ValueError("log: expected next_state_* and next_valid_*, what decisions led to")
        self.log = log
        generator = torch.Generator(env.device).manual_seed(2 * self.seed + 1)
        profit = log.profit if env.priced else log.profit - log.price * log.spend
        free = self.baseline(env, log, profit, self.gamma, generator) if self.baseline else plain(log, profit, self.gamma)
        self.reward, self.discount, self.weight = free
        self.rows = (self.weight > 0).nonzero()[:, 0]
        if self.iteration == 0:
            for some in torch.arange(len(log), device=env.device).split(CHUNK):
                self.net.rescale(log.obs[some])

    def train(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
              stop: Callable[[], bool]) -> None:
        """Run to the last iteration, or to the end of the one in which `stop` turns true."""
        if self.log is None:
            raise ValueError("log: expected the path of a log to learn from, as in log=log.parquet")
        for _, metrics in self.loop(logger, save, evaluate, stop):
            metrics |= self.update()

    # ── what pairs are worth ────────────────────────────────────────────────────────────────────────────────────────
    def allowed(self, obs: Tensor, mask: Tensor) -> Tensor:
        """Pairs [B, P] that may be chosen, of those valid."""
        return self.keep.allowed(obs, mask) if self.keep else mask

    @torch.no_grad()
    def worth(self, obs: Tensor, mask: Tensor) -> Tensor:
        """Values of pairs [B, P] before the price of their own spend, by observations [B, D] and masks [B, P]."""
        return self.net(obs).masked_fill(~self.allowed(obs, mask), UNHEARD_OF)

    def charge(self, obs: Tensor, price: Tensor) -> Tensor:
        """What pairs cost at prices [B], [B, P]."""
        if not self.env.priced:
            return torch.zeros_like(price)[:, None]
        return (price[:, None, None] * self.env.spend(self.spend.redeem(obs))).flatten(1)

    @torch.no_grad()
    def probs(self, obs: Tensor, mask: Tensor, price: Tensor) -> Tensor:
        """All on what is worth most at prices [B], as [B, P], of masks bool [B, P]."""
        return best(self.worth(obs, mask) - self.charge(obs, price), mask)

    @torch.no_grad()
    def preferences(self, obs: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """Softmax of what pairs are worth at the price that is observed, [B, P], for a policy to imitate."""
        price = self.env.price_seen(obs) if self.env.priced else obs.new_zeros(len(obs))
        worth = self.worth(obs, mask) - self.charge(obs, price)
        return (worth / temperature).masked_fill(~mask, -torch.inf).softmax(-1)

    def greedy(self, obs: Tensor, mask: Tensor) -> Tensor:
        """Actions [B, K] worth most where spend has no price, for observations [B, D] under masks [B, *nvec]."""
        mask = mask.flatten(1)
        return unflatten(self.worth(obs, mask).masked_fill(~mask, -torch.inf).argmax(-1), self.env.nvec)

    # ── learning ────────────────────────────────────────────────────────────────────────────────────────────────────
    @torch.no_grad()
    def prepare(self, rows: Tensor) -> Batch:
        """Turn decisions of the log into what their values are drawn towards."""
        log, env = self.log, self.env
        logged = obs = log.obs[rows]
        ends, price = log.terminated[rows], log.price[rows]
        cost = charge = self.charge(logged, price)
        next_obs, next_mask = (obs, log.mask[rows]) if log.next_obs is None else (log.next_obs[rows], log.next_mask[rows])
        if self.relabel:
            price, steer, next_price, next_steer = env.reprice(log.week[rows], self.generator)
            obs, next_obs = (torch.cat((x[:, :env.context_dim], y), 1) for x, y in ((obs, steer), (next_obs, next_steer)))
            charge = self.charge(obs, price)
        else:
            next_price = torch.where(ends, price, log.price[(rows + 1).clamp_max(len(log) - 1)])
        goal = double_target(self.reward[rows], self.discount[rows], self.net(next_obs), self.target(next_obs),
                             self.charge(next_obs, next_price), self.allowed(next_obs, next_mask))
        return Batch(obs, log.mask[rows], log.action[rows], charge, goal, self.weight[rows], logged, cost)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of the values of pairs taken, and what keeps a learner to its log."""
        table = self.net(batch.obs)
        error = td_loss(table.gather(1, batch.action[:, None])[:, 0], batch.goal, batch.weight, self.huber)
        kept = self.keep.loss(batch, self.net) if self.keep else torch.zeros_like(error)
        return error + kept, {"losses/td_loss": error.detach(), "losses/keep": kept.detach()}

    def update(self) -> dict[str, Tensor]:
        """Learn from minibatches; return metrics as device tensors."""
        sums: dict[str, Tensor] = {}
        for _ in range(self.updates):
            rows = torch.randint(len(self.rows), (self.batch_size,), generator=self.generator, device=self.lr.device)
            rows = self.rows[rows]
            batch = self.prepare(rows)
            loss, metrics = self.loss(batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.count += 1
            if self.count % self.target_every == 0:
                with torch.no_grad():
                    for old, new in zip(self.target.state_dict().values(), self.net.state_dict().values()):
                        old.lerp_(new, self.target_rate)
            if self.spend:
                metrics["losses/spend"] = self.spend.learn(batch.obs, unflatten(batch.action, self.env.nvec),
                                                           self.log.redeemed[rows] > 0)
            metrics["losses/value"] = batch.goal.mean()
            sums = {name: sums.get(name, 0) + x for name, x in metrics.items()}
        return {name: x / self.updates for name, x in sums.items()}

    def state_dict(self) -> dict:
        """Everything that training needs to go on as if it had not stopped, but for the log."""
        return super().state_dict() | {"target": self.target.state_dict(), "keep": self.keep and self.keep.state_dict(),
                                       "count": self.count}

    def load_weights(self, state: dict) -> None:
        """Restore what acting needs, on whatever device."""
        super().load_weights(state)
        if self.keep:
            self.keep.load_state_dict(state["keep"])

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave, to train on."""
        super().load_state_dict(state)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.target.load_state_dict(state["target"])
        self.count = state["count"]
