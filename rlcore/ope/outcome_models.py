"""Models of what actions bring, for estimators that need one: regression of one decision, fitted Q evaluation of seasons.

Every prediction for a customer is of a model that saw none of the customer's decisions (cross-fitting).
"""
from __future__ import annotations

from typing import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.networks import mlp

CHUNK = 65536  # rows predicted at once
FLOOR = 0.01  # of the mean: the least outcome whose logarithm is taken
Predict = Callable[[Tensor], Tensor]  # observations [B, D] → outcomes of all actions [B, A, K]


@torch.enable_grad()
def descend(parameters: Iterable, loss: Callable[[], Tensor], lr: float, decay: float, steps: int) -> None:
    """Fit parameters, or groups of them, by AdamW on `steps` minibatches, whose losses `loss` gives, at a rate that falls to a
    fiftieth."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        schedule.step()


class Heads(nn.Module):
    """All actions' outcomes by one network on standardised observations, in the units it was fitted in."""

    def __init__(self, net: nn.Module, inputs: int, actions: int, kinds: int):
        super().__init__()
        self.net, self.actions, self.kinds = net, actions, kinds
        for name, size in (("centre", inputs), ("scale", inputs), ("middle", kinds), ("spread", kinds)):
            self.register_buffer(name, torch.ones(size))

    def standard(self, obs: Tensor) -> Tensor:
        """Standardised outcomes [B, A, K] of observations [B, D]."""
        return self.net((obs - self.centre) / self.scale).view(-1, self.actions, self.kinds)

    @torch.no_grad()
    def forward(self, obs: Tensor) -> Tensor:
        return self.standard(obs) * self.spread + self.middle


class Network:
    """One network of all actions' outcomes, on standardised observations and outcomes."""

    def __init__(self, *, hidden: list[int], activation: Callable, lr: float, decay: float, steps: int, batch_size: int):
        self.hidden, self.activation, self.lr, self.decay = hidden, activation, lr, decay
        self.steps, self.batch_size = steps, batch_size

    def empty(self, inputs: int, actions: int, kinds: int) -> Heads:
        """Lay out what a fit returns, for a state to be loaded into."""
        return Heads(mlp([inputs, *self.hidden, actions * kinds], self.activation, 0.01), inputs, actions, kinds)

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator) -> Heads:
        """Fit to outcomes [N, K] of actions [N] taken on observations [N, D]."""
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        model = self.empty(obs.shape[1], actions, outcome.shape[1]).to(obs)
        model.centre, model.scale = obs.mean(0), obs.std(0).clamp_min(1e-3)
        model.middle, model.spread = outcome.mean(0), outcome.std(0).clamp_min(1e-6)

        def loss() -> Tensor:
            rows = torch.randint(len(obs), (self.batch_size,), generator=generator, device=obs.device)
            got = model.standard(obs[rows])[torch.arange(len(rows), device=obs.device), action[rows]]
            return functional.mse_loss(got, (outcome[rows] - model.middle) / model.spread)
        descend(model.net.parameters(), loss, self.lr, self.decay, self.steps)
        return model


class Slopes(nn.Module):
    """All actions' outcomes, linear in standardised observations and, where `scaled`, in them times a customer's scale."""

    def __init__(self, inputs: int, actions: int, kinds: int, scaled: bool):
        super().__init__()
        columns, double = (inputs + 1) * (2 if scaled else 1), {"dtype": torch.float64}
        for name, x in (("centre", torch.ones(inputs)), ("scale", torch.ones(inputs)),
                        ("size", torch.zeros(inputs + 1, 1, **double) if scaled else None),
                        ("first", torch.zeros(columns, kinds, **double)), ("constants", torch.zeros(actions, kinds, **double)),
                        ("slopes", torch.zeros(actions, columns, kinds, **double))):
            self.register_buffer(name, x)

    def standard(self, obs: Tensor) -> Tensor:
        """Standardised observations [B, D] and a one, [B, D + 1]."""
        return functional.pad(((obs - self.centre) / self.scale).double(), (0, 1), value=1.0)

    def laid(self, obs: Tensor) -> Tensor:
        """What outcomes are linear in, [B, columns]."""
        x = self.standard(obs)
        if self.size is None:
            return x
        return torch.cat((x, x * (x @ self.size - self.size[-1]).exp()), 1)  # about 1: standardised columns have mean 0

    def forward(self, obs: Tensor) -> Tensor:
        x = self.laid(obs)
        return ((x @ self.first)[:, None] + self.constants + torch.einsum("bd,adk->bak", x, self.slopes)).to(obs.dtype)


class Linear:
    """Ridge regression: the first action (nothing) brings what is linear in observations; each other one adds a constant
    of its own, and slopes `own` to it or shared by all the others.

    `scaled`: observations count again times a customer's scale, exp of a regression of the first outcome's logarithm,
    for money comes in proportion to how much a customer spends.
    """

    def __init__(self, *, ridge: float, own: bool, scaled: bool):
        self.ridge, self.own, self.scaled = ridge, own, scaled

    def empty(self, inputs: int, actions: int, kinds: int) -> Slopes:
        """Lay out what a fit returns, for a state to be loaded into."""
        return Slopes(inputs, actions, kinds, self.scaled)

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator) -> Slopes:
        """Fit to outcomes [N, K] of actions [N] taken on observations [N, D]."""
        kinds = outcome.shape[1]
        model = self.empty(obs.shape[1], actions, kinds).to(obs.device)
        model.centre, model.scale = obs.mean(0), obs.std(0).clamp_min(1e-3)
        each = torch.eye(actions, device=obs.device, dtype=torch.float64)
        group = each[:, 1:] if self.own else each[:, 1:].sum(1, keepdim=True)  # [A, G]: whose slopes an action has
        if self.scaled:
            size = outcome[:, :1].double()
            model.size = solve(model.standard(obs), size.clamp_min(FLOOR * size.abs().mean()).log(), self.ridge)
        x = model.laid(obs)
        design = torch.cat((x, each[action], (group[action][:, :, None] * x[:, None]).flatten(1)), 1)
        model.first, model.constants, slopes = solve(design, outcome.double(), self.ridge).split(
            (x.shape[1], actions, group.shape[1] * x.shape[1]))
        model.slopes = torch.einsum("ag,gdk->adk", group, slopes.view(group.shape[1], x.shape[1], kinds))
        return model


def solve(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Ridge regression of y [..., N, K] on x [..., N, F], penalty ridge·|weight|²: weights [..., F, K]."""
    gram = x.mT @ x
    return torch.linalg.solve(gram + ridge * torch.eye(x.shape[-1], device=x.device, dtype=x.dtype), x.mT @ y)


def folds(cluster: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Deal clusters int64 [N], numbered from 0, into folds evenly, [N]: rows of one stay together."""
    deal = torch.randperm(int(cluster.amax()) + 1, generator=generator, device=cluster.device)
    return deal[cluster] % count


def look(predict: Predict, obs: Tensor, action: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Outcomes predicted of what a target [N, A] does and of actions [N] taken, [N, K] each."""
    v, q = [], []
    for rows in torch.arange(len(obs), device=obs.device).split(CHUNK):
        table = predict(obs[rows])
        v.append((target[rows, :, None] * table).sum(1))
        q.append(table[torch.arange(len(rows), device=obs.device), action[rows]])
    return torch.cat(v), torch.cat(q)


def cross_fit(fit: Callable, obs: Tensor, action: Tensor, outcome: Tensor, target: Tensor, place: Tensor, fold: Tensor,
              gamma: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fitted Q evaluation: v̂ and q̂ of N decisions, [N, K] each, by models of other folds' decisions.

    place [M, T] has the row of each season's decisions in order, −1 after its end. A model for each t, from the last
    backwards, is fitted to r + γ·v̂ of the next (Voloshin et al. 2019, of a finite horizon); T = 1 is plain regression.
    """
    v, q = torch.zeros_like(outcome), torch.zeros_like(outcome)
    for k in range(int(fold.amax()) + 1):
        later = torch.zeros_like(outcome)  # v̂ at rows of any fold, by this fold's models
        for t in reversed(range(place.shape[1])):
            rows = place[:, t][place[:, t] >= 0]
            goal = outcome[rows]
            if t + 1 < place.shape[1]:
                then = place[:, t + 1][place[:, t] >= 0]
                goal = goal + gamma * torch.where((then >= 0)[:, None], later[then.clamp_min(0)], 0.0)
            seen = fold[rows] != k
            predict = fit(obs[rows[seen]], action[rows[seen]], goal[seen], target.shape[1], generator)
            later[rows], taken = look(predict, obs[rows], action[rows], target[rows])
            own = rows[~seen]
            v[own], q[own] = later[own], taken[~seen]
    return v, q


def seasons(customer: Tensor, season: Tensor, week: Tensor) -> Tensor:
    """Rows [M, T] of each customer's seasons in the order of weeks, −1 after the end.

    Raises ValueError where a customer decides twice in a week.
    """
    _, unit = torch.unique(torch.stack((customer, season), 1), dim=0, return_inverse=True)
    order = week.argsort(stable=True)
    order = order[unit[order].argsort(stable=True)]
    unit, week = unit[order], week[order]
    twice = (unit[1:] == unit[:-1]) & (week[1:] == week[:-1])
    if twice.any():
        a, b = (order[k + twice.nonzero()[0, 0]].item() + 2 for k in (0, 1))
        raise ValueError(f"rows {a}, {b}: expected one decision of a customer, season and week, got two")
    count = unit.bincount()
    start = count.cumsum(0) - count
    place = torch.full((len(count), int(count.amax())), -1, dtype=torch.long, device=order.device)
    place[unit, torch.arange(len(order), device=order.device) - start[unit]] = order
    return place


def numbered(x: Tensor) -> Tensor:
    """Number the values of x [N] from 0 without a gap."""
    return torch.unique(x, return_inverse=True)[1]
