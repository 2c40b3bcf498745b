"""What a log's rewards are freed of, so that what decisions did can be seen: a customer's value, and chance that no decision
made. All predictions for a customer are by fits on others (cross-fitting).
"""
from __future__ import annotations

from copy import deepcopy
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from rlcore.logged import Logged
from rlcore.outcomes import CHUNK, folds, numbered

FEWEST = 0.1  # chance to stay: what is divided by it must not explode


class Controlled(NamedTuple):
    """Columns [N]: a value is learned from reward + discount·(value of what follows), by weight."""

    reward: Tensor
    discount: Tensor
    weight: Tensor


def plain(log: Logged, profit: Tensor, gamma: float) -> Controlled:
    """Rewards as they came: profit, and what the end is worth."""
    return Controlled(profit + log.terminal, torch.where(log.terminated, 0.0, gamma), torch.ones_like(profit))


class Baseline:
    """A potential Φ: what a customer brings who is left alone, by temporal differences on a network of all pairs' values.

    Each pair's goal goes on with the first pair, nothing; so those who were contacted tell of it too, and Φ is its column.
    γ·Φ(s') − Φ(s) is added to rewards (Ng, Harada & Russell 1999), so no action's rank changes. Where the environment tells
    who is lost for good, `hazard` fits the probability of that by the state and whether a trip was made; a decision is taken
    to change it by nothing else. Those who stayed are then learned from alone, what follows them times their chance to
    stay: the same in expectation, without the noise of who was lost. `surrogate` fits how far the columns that the
    environment calls drawn move the value of the next state, by what else is known of it and by trip and redemption, and
    its mean takes the place of the draw: a decision is taken to move them by nothing else. Of `steps` minibatches each has
    its goals by a copy of the network that moves every `target_every`.
    """

    def __init__(self, *, net: Callable, lr: float, decay: float, steps: int, batch_size: int, target_every: int,
                 hazard: Callable | None, surrogate: Callable | None):
        self.net, self.lr, self.decay, self.steps = net, lr, decay, steps
        self.batch_size, self.target_every, self.hazard, self.surrogate = batch_size, target_every, hazard, surrogate

    def __call__(self, env, log: Logged, profit: Tensor, gamma: float, generator: torch.Generator) -> Controlled:
        """Free rewards of a log."""
        fold, width = folds(numbered(log.customer), 2, generator), env.context_dim
        following = log.obs if log.next_obs is None else log.next_obs
        lost, gone = env.lost(following), env.lost(log.obs)
        chance, weight = torch.ones_like(profit), torch.ones_like(profit)
        if self.hazard and lost is not None:
            chance = self._chance(log, width, lost, gone, fold, generator)
            weight = torch.where(lost, 0.0, 1 / chance)
        now, discount = profit + chance * log.terminal, torch.where(log.terminated, 0.0, gamma * chance)
        reward, everyone = torch.empty_like(now), torch.arange(len(log), device=now.device).split(CHUNK)
        for k in range(2):
            others, own = (fold != k).nonzero()[:, 0], (fold == k).nonzero()[:, 0]
            others = others[weight[others] > 0]
            value = self._fit(log.obs[:, :width], log.action, following[:, :width], now, discount, weight, others, env.nvec,
                              generator)
            with torch.no_grad():
                alone, then = (torch.cat([value(x[rows, :width])[:, 0] for rows in everyone]) for x in (log.obs, following))
            then = then + self._drawn(log, env, value, then, others[discount[others] > 0], generator)
            then = torch.where(discount > 0, discount * then, 0.0)
            reward[own] = (now + then - alone)[own]
        return Controlled(reward, discount, weight)

    def _drawn(self, log: Logged, env, value: Callable, then: Tensor, rows: Tensor, generator) -> Tensor:
        """What is to be added to values of next states [N] so that what chance drew counts as expected."""
        if not self.surrogate or env.drawn is None or log.next_obs is None:
            return torch.zeros_like(then)
        swapped = log.next_obs[:, :env.context_dim].clone()
        swapped[:, env.drawn] = log.obs[:, env.drawn]
        with torch.no_grad():
            moved = then - torch.cat([value(x)[:, 0] for x in swapped.split(CHUNK)])
        seen = torch.cat((swapped, (log.trips > 0)[:, None], (log.redeemed > 0)[:, None]), 1)
        with torch.enable_grad():
            predict = self.surrogate(seen[rows], torch.zeros_like(rows), moved[rows, None], 1, generator)
        return torch.cat([predict(x)[:, 0, 0] for x in seen.split(CHUNK)]) - moved

    def _chance(self, log: Logged, width: int, lost: Tensor, gone: Tensor, fold: Tensor, generator) -> Tensor:
        """Probability to stay, [N], of those who are there."""
        seen = torch.cat((log.obs[:, :width], (log.trips > 0)[:, None]), 1)
        chance = torch.ones_like(log.profit)
        for k in range(2):
            others, own = ((fold != k) & ~gone).nonzero()[:, 0], ((fold == k) & ~gone).nonzero()[:, 0]
            with torch.enable_grad():
                predict = self.hazard(seen[others], torch.zeros_like(others), lost[others, None].float(), 1, generator)
            for rows in own.split(CHUNK):
                chance[rows] = (1 - predict(seen[rows])[:, 0, 0]).clamp(FEWEST, 1.0)
        return chance

    def _fit(self, obs: Tensor, action: Tensor, following: Tensor, now: Tensor, discount: Tensor, weight: Tensor,
             rows: Tensor, nvec: tuple[int, ...], generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Fit values of pairs to rows of a log; return them [B, Πn] as a function of contexts [B, D]."""
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        centre, scale = obs[rows].mean(0), obs[rows].std(0).clamp_min(1e-3)
        size = now.std().clamp_min(1e-6) / (1 - discount[rows].mean()).clamp_min(0.05)  # about that of a value
        net = self.net(obs.shape[1], nvec).to(obs)
        frozen = deepcopy(net).requires_grad_(False)
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=self.decay, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, self.steps)

        def values(network, x):
            return network((x - centre) / scale) * size

        with torch.enable_grad():
            for step in range(self.steps):
                at = rows[torch.randint(len(rows), (self.batch_size,), generator=generator, device=rows.device)]
                goal = now[at] + discount[at] * values(frozen, following[at])[:, 0]
                got = values(net, obs[at]).gather(1, action[at, None])[:, 0]
                loss = (weight[at] * (got - goal).square()).mean() / size.square()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                if (step + 1) % self.target_every == 0:
                    frozen.load_state_dict(net.state_dict())
        return lambda x: values(net, x)
