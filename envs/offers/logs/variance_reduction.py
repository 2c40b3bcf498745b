"""What a log's rewards are freed of, so that what decisions did can be seen: a customer's value, and chance that no decision
made. All predictions for a customer are by fits on others (cross-fitting).
"""
from __future__ import annotations

from copy import deepcopy
from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional

from rlcore.offline.logged_dataset import Logged
from rlcore.ope.outcome_models import CHUNK, descend, folds, numbered
from envs.offers.logs.response_model import NONE, REDEEMED, TRIP, Likely
from envs.offers.world.catalogue import ActionCodec
from envs.offers.world.customers import CHURNED
from rlcore.offline.deduplicated import Table
from rlcore.offline.q_learning import AdjustedRewards

MOST = 64  # states of contacts that are counted
FEWEST = 0.1  # chance to stay: what is divided by it must not explode


class Baseline:
    """A potential Φ: what a customer brings who is left alone, by temporal differences on a network of all pairs' values.

    Each pair's goal goes on with the first pair, nothing; so those who were contacted tell of it too, and Φ is its column.
    γ·Φ(s') − Φ(s) is added to rewards (Ng, Harada & Russell 1999), so no action's rank changes. Of `steps` minibatches each
    has its goals by a copy of the network that moves every `target_every`.

    That leaves noise far above what a decision does. So where spend is priced and `likely` fits what comes of decisions
    (null: rewards count as they came), a reward is what they bring as expected (the direct method), less what nothing would
    have brought the same customer, by the same models: their errors in what a customer is worth then cancel, and only
    those in what a decision changes are left. A decision is taken to act on the reward by trip and redemption, by spend,
    and through the state that follows; those models are
    - size: what a trip of a customer brings, the unit of values, for money comes in proportion to it (`model`);
    - trip and redemption by state and pair (`likely`), and by state and trip who is lost for good (`hazard`). Those who
      stayed are learned from alone, what follows them times their chance to stay: the same in expectation;
    - growth: how far a week moves Φ, of customers as if rested, by what came of it (`model`);
    - wear: what of the state only contacts move (`ObservationCodec.without_contacts`) is counted, from where to where by what came and how it was
      sent, and where it goes when left alone. A state costs, until it has passed, what the models above say that a
      customer brings less in it. A value that was fitted could not tell: few in a log are ever rested late in a season.
      Where states can't be counted (a view of histories has too many), a reward is instead against nothing sent to the
      same customer rested, and all that follows is left to learn.

    `lookahead` is the share of what follows that is left for values to learn, the potential standing for the rest (Cheng,
    Kolobov & Swaminathan 2021): maxima over values of states that the log has little of would cost more than they bring.
    `model` is fitted on at most `sample` decisions.
    """

    def __init__(self, *, net: Callable, lr: float, decay: float, steps: int, batch_size: int, target_every: int,
                 model: Callable | None, likely: Likely | None, hazard: Likely | None, sample: int, lookahead: float):
        self.net, self.lr, self.decay, self.steps = net, lr, decay, steps
        self.batch_size, self.target_every = batch_size, target_every
        self.model, self.likely, self.hazard = model, likely, hazard
        self.sample, self.lookahead = sample, lookahead

    @torch.no_grad()
    def __call__(self, env, log: Logged, profit: Tensor, gamma: float, generator: torch.Generator) -> AdjustedRewards:
        """Free rewards of a log."""
        fold = folds(numbered(log.customer), 2, generator)
        columns = profit.new_empty(3, len(log))
        for k in range(2):
            half = Half(self, env, log, profit, gamma, (fold != k).nonzero()[:, 0], generator)
            for rows in (fold == k).nonzero()[:, 0].split(CHUNK):
                columns[:, rows] = torch.stack(half.freed(rows))
        return AdjustedRewards(*columns)

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
        descend(net.parameters(), loss, self.lr, self.decay, self.steps)
        return lambda x: values(net, x)[:, 0]


def share(count: Tensor) -> Tensor:
    """Divide counts by their sums over the last dimension, 0 where there are none."""
    return count / count.sum(-1, keepdim=True).clamp_min(1)


class Half:
    """Models fitted on some `rows` of a log, and what they free others of. All but `freed` is in units of `size`."""

    def __init__(self, options: Baseline, env, log: Logged, profit: Tensor, gamma: float, rows: Tensor, generator):
        self.options, self.env, self.log, self.profit, self.gamma = options, env, log, profit, gamma
        self.generator, self.width = generator, env.context_dim
        self.next = log.obs if log.next_obs is None else log.next_obs
        self.expects = options.likely is not None and env.as_priced() is not None
        self.hazard = self.sizes = None
        self.sorts = 1 + env.nvec[-1]
        if not self.expects:
            self.value = options.fit(self._batch, rows, self.width, env.nvec, generator)
            return
        lost, gone = (torch.cat([self._churned(x[some]) for some in rows.split(CHUNK)]) for x in (self.next, log.obs))
        there, stayed = rows[~gone], rows[~lost]
        self._fit_size(there)
        losing = torch.zeros_like(log.terminated).index_fill_(0, rows[lost], True)
        self.hazard = options.hazard.hazard(lambda at: self._with_trip(at, log.trips[at] > 0), losing, there, generator)
        kind = torch.where(log.redeemed > 0, REDEEMED, torch.where(log.trips > 0, TRIP, NONE))
        x = self._obs(rows[:CHUNK])
        self.moves = (x != self._own(x)).any(0).nonzero()[:, 0]
        self.probs = options.likely.response(self._obs, log.action, kind, there, env.nvec, self.moves, generator)
        self.value = options.fit(self._batch, stayed, self.width, env.nvec, generator)
        some = self._some(stayed)
        moved = torch.cat([self._moved(at) for at in some.split(CHUNK)])
        self.growth = self._model(self._own(self._obs(some)), kind[some], moved, REDEEMED + 1)
        self._count(stayed, kind)

    # ── fits ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _some(self, rows: Tensor) -> Tensor:
        order = torch.randperm(len(rows), generator=self.generator, device=rows.device)
        return rows[order[:self.options.sample]]

    def _model(self, x: Tensor, action: Tensor, outcome: Tensor, actions: int) -> Callable[[Tensor], Tensor]:
        predict = self.options.model(x, action, outcome[:, None], actions, self.generator)
        return lambda x: predict(x)[..., 0]

    def _fit_size(self, rows: Tensor) -> None:
        """Fit what a trip brings."""
        earned = self.profit[rows] + self.log.spend[rows]
        bought = self._some(rows[(self.log.trips[rows] > 0) & (earned > 0)])
        if len(bought):
            static, earned = self.log.obs[bought, :self.env.static_dim], self.profit[bought] + self.log.spend[bought]
            self.sizes = self._model(static, torch.zeros_like(bought), earned.log(), 1)

    def _count(self, rows: Tensor, kind: Tensor) -> None:
        """Count where contacts lead: from each state that they move, by what came of a decision and how it was sent."""
        tables = [Table.of(x[some][:, self.moves], ()) for x in (self.log.obs, self.next) for some in rows.split(CHUNK)]
        found, place = Table.cat([Table.of(self._own(self._obs(rows[:1]))[:, self.moves], ()), *tables]).blocks[0]
        self.states, which = torch.unique(found, dim=0, return_inverse=True)
        self.counts = len(self.states) <= MOST
        if not self.counts:
            return
        self.rested, (now, then) = which[place[0]], which[place[1:]].chunk(2)
        n, m = len(self.states), (REDEEMED + 1) * self.sorts
        count = torch.bincount((now * m + self._traced(kind[rows], self.log.action[rows])) * n + then, minlength=n * n * m)
        count = count.view(n, REDEEMED + 1, self.sorts, n).to(self.profit)
        self.paths = share(count.flatten(1, 2))
        alone = share(count[:, :, 0].sum(1))
        power, self.stays = torch.eye(n).to(alone), torch.zeros_like(alone)  # expected weeks in each state, left alone
        for _ in range(self.env.episode_length):
            self.stays, power = self.stays + power, power @ alone

    def _worn(self, x: Tensor, after: Tensor, size: Tensor) -> Tensor:
        """What each of the states costs contexts [B, D] until they have rested, [B, states]."""
        nothing = torch.zeros(len(x), dtype=torch.long, device=x.device)
        now = torch.stack([self._brings(x.index_copy(1, self.moves, state.expand(len(x), -1)), nothing, after, size)
                           for state in self.states], 1)
        return (now - now[:, self.rested, None]) @ self.stays.T

    def _traced(self, kind: Tensor, action: Tensor) -> Tensor:
        """Number what came of a decision by how it was sent."""
        codec = ActionCodec(*self.env.nvec)
        return kind * self.sorts + torch.where(codec.is_contact(action), 1 + codec.channel_of(action), 0)

    def _moved(self, rows: Tensor) -> Tensor:
        """How far a week moved the potential, or to what the end is worth."""
        then = torch.where(self.log.terminated[rows], self.log.terminal[rows] / self.size(rows),
                           self.gamma * self.value(self._own(self.next[rows, :self.width])))
        return then - self.value(self._own(self._obs(rows)))

    # ── what they say of rows [B] ───────────────────────────────────────────────────────────────────────────────────
    def _obs(self, rows: Tensor) -> Tensor:
        return self.log.obs[rows, :self.width]

    def _churned(self, obs: Tensor) -> Tensor:
        return self.env.codec.decode_status(obs) == CHURNED

    def _own(self, x: Tensor) -> Tensor:
        """Leave out of contexts what decisions move: what that costs or brings is theirs, not the customer's."""
        return self.env.codec.without_contacts(x) if self.expects else x

    def _with_trip(self, rows: Tensor, trip: Tensor) -> Tensor:
        return torch.cat((self._obs(rows), trip[:, None].to(self.profit)), 1)

    def size(self, rows: Tensor) -> Tensor:
        """What a trip brings, money."""
        if not self.sizes:
            return torch.ones_like(self.profit[rows])
        return self.sizes(self.log.obs[rows, :self.env.static_dim])[:, 0].exp()

    def _stay(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The chance to stay, and the weight of who did."""
        chance = torch.ones_like(self.profit[rows])
        if not self.hazard:
            return chance, chance
        staying = 1 - self.hazard(self._with_trip(rows, self.log.trips[rows] > 0))
        chance = torch.where(self._churned(self.log.obs[rows]), chance, staying.clamp(FEWEST, 1.0))
        return chance, torch.where(self._churned(self.next[rows]), 0.0, 1 / chance)

    def _batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """What values are fitted to."""
        chance, weight = self._stay(rows)
        now = (self.profit[rows] + chance * self.log.terminal[rows]) / self.size(rows)
        discount = torch.where(self.log.terminated[rows], 0.0, self.gamma * chance)
        obs, following = (self._own(x) for x in (self._obs(rows), self.next[rows, :self.width]))
        return obs, self.log.action[rows], following, now, discount, weight

    def _brings(self, x: Tensor, action: Tensor, after: Tensor, size: Tensor) -> Tensor:
        """What actions are expected to bring in contexts x [B, D], if what follows is worth `after` by what comes, [B, 3]."""
        probs = self.probs(x, action)
        trip = torch.arange(REDEEMED + 1, device=x.device) != NONE
        lost = torch.stack([self.hazard(functional.pad(x, (0, 1), value=float(made))) for made in (False, True)], 1)
        came = trip + (1 - lost[:, trip.long()]) * after
        redeem = probs[:, REDEEMED, None, None].expand(-1, *self.env.nvec)
        spend = self.env.expected_cost(redeem).flatten(1).gather(1, action[:, None])[:, 0]
        return (probs * came).sum(1) - spend / size

    def _changes(self, rows: Tensor) -> Tensor:
        """What decisions are expected to change, against nothing."""
        x, action, size = self._obs(rows), self.log.action[rows], self.size(rows)
        own = self._own(x)
        after = self.value(own)[:, None] + self.growth(own)
        worn = self._worn(x, after, size)
        here, kinds = self._state(x)[:, None], torch.arange(REDEEMED + 1, device=x.device)
        total = [self._brings(x, done, after + (self.paths[here, self._traced(kinds, done[:, None])] * worn[:, None]).sum(-1), size)
                 for done in (action, torch.zeros_like(action))]
        return total[0] - total[1]

    def _state(self, x: Tensor) -> Tensor:
        return (x[:, None, self.moves] == self.states).all(-1).to(torch.uint8).argmax(1)

    def freed(self, rows: Tensor) -> AdjustedRewards:
        """Rewards, in money, freed of all that the models can."""
        obs, action, following, now, discount, weight = self._batch(rows)
        size, lookahead = self.size(rows), self.options.lookahead
        if not self.expects:
            reward = now + discount * self.value(following) - self.value(obs)
        elif self.counts:
            reward = torch.zeros_like(now)  # nothing changes nothing
            sent = ActionCodec(*self.env.nvec).is_contact(action).nonzero()[:, 0]
            reward[sent] = self._changes(rows[sent])
        else:
            after, lookahead = self.value(obs)[:, None] + self.growth(obs), 1.0
            reward = self._brings(self._obs(rows), action, after, size) - self._brings(obs, 0 * action, after, size)
        return AdjustedRewards(reward * size, lookahead * discount, weight)
