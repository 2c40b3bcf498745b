"""What a log's rewards are freed of, so that what decisions did can be seen: a customer's value, and chance that no decision
made. All predictions for a customer are by fits on others (cross-fitting).
"""
from __future__ import annotations

from copy import deepcopy
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from rlcore.logged import Logged
from rlcore.outcomes import CHUNK, descend, folds, numbered
from rlcore.response import NONE, REDEEMED, TRIP, Likely

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
    γ·Φ(s') − Φ(s) is added to rewards (Ng, Harada & Russell 1999), so no action's rank changes. Of `steps` minibatches each
    has its goals by a copy of the network that moves every `target_every`.

    `model` fits, on at most `sample` decisions each, what takes chance out (null: it stays in):
    - size: what a trip of a customer brings, the unit of everything else, for money comes in proportion to it;
    - hazard: who is lost for good, where the environment tells, by the state and whether a trip was made. Those who stayed
      are then learned from alone, what follows them times their chance to stay: the same in expectation;
    - surrogate: how far the columns that the environment calls drawn move the value of the next state, by what else is
      known of it and by trip and redemption; its mean takes the place of the draw;
    - gain: what a decision brings in all by what came of it (no trip, a trip, a redemption). With `response`, the
      probabilities of these by state and pair, its mean takes the place of what came.
    A decision is taken to change whom it loses and what is drawn by trip and redemption alone.
    """

    def __init__(self, *, net: Callable, lr: float, decay: float, steps: int, batch_size: int, target_every: int,
                 model: Callable | None, likely: Likely | None, sample: int):
        self.net, self.lr, self.decay, self.steps = net, lr, decay, steps
        self.batch_size, self.target_every = batch_size, target_every
        self.model, self.likely, self.sample = model, likely, sample

    @torch.no_grad()
    def __call__(self, env, log: Logged, profit: Tensor, gamma: float, generator: torch.Generator) -> Controlled:
        """Free rewards of a log."""
        fold = folds(numbered(log.customer), 2, generator)
        columns = profit.new_empty(3, len(log))
        for k in range(2):
            half = Half(self, env, log, profit, gamma, (fold != k).nonzero()[:, 0], generator)
            for rows in (fold == k).nonzero()[:, 0].split(CHUNK):
                columns[:, rows] = torch.stack(half.freed(rows))
        return Controlled(*columns)

    def fit(self, batch: Callable, rows: Tensor, width: int, nvec: tuple[int, ...],
            generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Fit values of pairs to rows of a log, which `batch` turns into obs, action, following, now, discount, weight;
        return Φ [B] as a function of contexts [B, D]."""
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        some = batch(rows[torch.randint(len(rows), (CHUNK,), generator=generator, device=rows.device)])
        centre, scale = some[0].mean(0), some[0].std(0).clamp_min(1e-3)
        size = some[3].std().clamp_min(1e-6) / (1 - some[4].mean()).clamp_min(0.05)  # about that of a value
        net = self.net(width, nvec).to(some[0])
        frozen = deepcopy(net).requires_grad_(False)
        count = iter(range(self.steps))

        def values(network, x):
            return network((x - centre) / scale) * size

        def loss() -> Tensor:
            if next(count) % self.target_every == 0:
                frozen.load_state_dict(net.state_dict())
            at = rows[torch.randint(len(rows), (self.batch_size,), generator=generator, device=rows.device)]
            obs, action, following, now, discount, weight = batch(at)
            with torch.no_grad():
                goal = now + discount * values(frozen, following)[:, 0]
            got = values(net, obs).gather(1, action[:, None])[:, 0]
            return (weight * (got - goal).square()).mean() / size.square()
        descend(net, loss, self.lr, self.decay, self.steps)
        return lambda x: values(net, x)[:, 0]


class Half:
    """Models fitted on some `rows` of a log, and what they free others of. All but `freed` is in units of `size`."""

    def __init__(self, options: Baseline, env, log: Logged, profit: Tensor, gamma: float, rows: Tensor, generator):
        self.options, self.env, self.log, self.profit, self.gamma = options, env, log, profit, gamma
        self.generator, self.width = generator, env.context_dim
        if env.steered is not None:
            self.steered = torch.arange(env.context_dim, device=profit.device)[env.steered]
        self.next = log.obs if log.next_obs is None else log.next_obs
        self.kind = torch.where(log.redeemed > 0, REDEEMED, torch.where(log.trips > 0, TRIP, NONE))
        lost, gone = env.lost(self.next[rows]), env.lost(log.obs[rows])
        if not options.likely or lost is None:
            lost = gone = torch.zeros_like(rows, dtype=torch.bool)
        there, stayed = rows[~gone], rows[~lost]
        self.sizes = self.hazard = self.surrogate = self.end = self.probs = self.gain = None
        if options.model:
            self._fit_size(rows)
        if options.likely and lost.any():
            losing = torch.zeros_like(log.terminated).index_fill_(0, rows[lost], True)
            self.hazard = options.likely.hazard(lambda at: self._moved_by(self._obs(at), at), losing, there, generator)
        self.value = options.fit(self._batch, stayed, self.width, env.nvec, generator)
        if options.model and env.drawn is not None and log.next_obs is not None:
            self._fit_surrogate(stayed)
        if options.model and options.likely and env.priced:
            self.probs = options.likely.response(log.obs[:, :self.width], log.action, self.kind, there, env.nvec, generator)
            some = self._some(stayed)
            outcome = self._over(some, lambda at: self._reward(at)[0] + self.log.spend[at] / self.size(at))
            self.gain = self._model(self._obs(some), self.kind[some], outcome, REDEEMED + 1)

    # ── fits ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _some(self, rows: Tensor) -> Tensor:
        order = torch.randperm(len(rows), generator=self.generator, device=rows.device)
        return rows[order[:self.options.sample]]

    def _over(self, rows: Tensor, function: Callable) -> Tensor:
        return torch.cat([function(part) for part in rows.split(CHUNK)])

    def _model(self, x: Tensor, action: Tensor, outcome: Tensor, actions: int) -> Callable[[Tensor], Tensor]:
        predict = self.options.model(x, action, outcome[:, None], actions, self.generator)
        return lambda x: predict(x)[..., 0]

    def _fit_size(self, rows: Tensor) -> None:
        """Fit what a trip brings."""
        earned = self.profit[rows] + self.log.spend[rows]
        bought = self._some(rows[(self.log.trips[rows] > 0) & (earned > 0)])
        if len(bought):
            static, earned = self.log.obs[bought, :self.env.static], self.profit[bought] + self.log.spend[bought]
            self.sizes = self._model(static, torch.zeros_like(bought), earned.log(), 1)

    def _fit_surrogate(self, stayed: Tensor) -> None:
        """Fit what the end is worth, and how far chance moves the value of the next state."""
        ends = stayed[self.log.terminated[stayed]]
        if len(ends):
            some = self._some(ends)
            terminal = self.log.terminal[some] / self.size(some)
            self.end = self._model(self.next[some, :self.width], torch.zeros_like(some), terminal, 1)
        some = self._some(stayed)
        x = self._over(some, lambda at: self._swapped(at)[1])
        moved = self._over(some, lambda at: self._swapped(at)[0])
        self.surrogate = self._model(x, torch.zeros_like(some), moved, 1)

    def _own(self, x: Tensor) -> Tensor:
        """Leave out of contexts what decisions move by themselves: what that costs or brings is theirs, and the potential
        can't be trusted to tell it to a thousandth of a customer's value."""
        return x if self.env.steered is None else x.index_fill(1, self.steered, 0.0)

    # ── what they say of rows [B] ───────────────────────────────────────────────────────────────────────────────────
    def _obs(self, rows: Tensor) -> Tensor:
        return self.log.obs[rows, :self.width]

    def _moved_by(self, x: Tensor, rows: Tensor) -> Tensor:
        """Add trip and redemption, which move what a customer becomes, and whether the end has come."""
        columns = self.log.trips[rows] > 0, self.log.redeemed[rows] > 0, self.log.terminated[rows]
        return torch.cat((x, *(column[:, None].to(x) for column in columns)), 1)

    def size(self, rows: Tensor) -> Tensor:
        """What a trip brings, money."""
        if not self.sizes:
            return torch.ones_like(self.profit[rows])
        return self.sizes(self.log.obs[rows, :self.env.static])[:, 0].exp()

    def _stay(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The chance to stay, and the weight of who did."""
        chance = torch.ones_like(self.profit[rows])
        if not self.hazard:
            return chance, chance
        staying = 1 - self.hazard(self._moved_by(self._obs(rows), rows))
        chance = torch.where(self.env.lost(self.log.obs[rows]), chance, staying.clamp(FEWEST, 1.0))
        return chance, torch.where(self.env.lost(self.next[rows]), 0.0, 1 / chance)

    def _batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """What values are fitted to."""
        chance, weight = self._stay(rows)
        now = (self.profit[rows] + chance * self.log.terminal[rows]) / self.size(rows)
        discount = torch.where(self.log.terminated[rows], 0.0, self.gamma * chance)
        return self._own(self._obs(rows)), self.log.action[rows], self._own(self.next[rows, :self.width]), now, discount, weight

    def _follows(self, x: Tensor, rows: Tensor) -> Tensor:
        """Value of next states x by the models."""
        then = self.value(self._own(x))
        return torch.where(self.log.terminated[rows], self.end(x)[:, 0], then) if self.end else then

    def _swapped(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """How far the drawn columns moved the value of the next state, and what else is known of it."""
        x, drawn = self.next[rows, :self.width], self.env.drawn
        still = x.clone()
        still[:, drawn] = self.log.obs[rows, drawn]
        return self._follows(x, rows) - self._follows(still, rows), self._moved_by(still, rows)

    def _reward(self, rows: Tensor) -> Controlled:
        """Rewards freed of a customer's value, and of chance in who is lost and in what is drawn."""
        own, _, following, _, discount, weight = self._batch(rows)
        ends, size = self.log.terminated[rows], self.size(rows)
        then = torch.where(ends, self.log.terminal[rows] / size, self.gamma * self.value(following))
        if self.surrogate:
            moved, known = self._swapped(rows)
            then = then + torch.where(ends, 1.0, self.gamma) * (self.surrogate(known)[:, 0] - moved)
        return Controlled(self.profit[rows] / size + self._stay(rows)[0] * then - self.value(own), discount, weight)

    def freed(self, rows: Tensor) -> Controlled:
        """Rewards, in money, freed of all that the models can."""
        free, size = self._reward(rows), self.size(rows)
        reward = free.reward * size
        if self.gain:
            probs, gain = self.probs(self._obs(rows), self.log.action[rows]), self.gain(self._obs(rows))
            came = gain.gather(1, self.kind[rows, None])[:, 0]
            redeem = probs[:, REDEEMED, None, None].expand(-1, *self.env.nvec)
            spend = self.env.spend(redeem).flatten(1).gather(1, self.log.action[rows, None])[:, 0]
            reward = reward + self.log.spend[rows] - spend + ((probs * gain).sum(1) - came) * size
        return free._replace(reward=reward)
