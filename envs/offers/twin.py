"""The digital twin: θ = G(x) learned from a log by maximum likelihood, and a population whose customers respond by it."""
from __future__ import annotations

from dataclasses import fields
from typing import Callable

import torch
from torch import Tensor, nn

from envs.offers.likelihood import Panel, log_likelihood, panel
from envs.offers.population import Sample, columns, from_columns
from envs.offers.world import Customers, World
from rlcore import checkpoint
from rlcore.learner import Loop
from rlcore.logged import Logged, named_rows
from rlcore.networks import mlp

SHARES = ("mu", "chi", "pi_plus", "pi_minus", "delta_f", "delta_d")  # parameters from 0 to 1
POSITIVE = ("phi", "gamma_f", "gamma_h", "rho", "nu")  # and those that are not below 0
LOG_RANGE = 12.0  # logarithms are kept within it
CUSTOMERS = 4096  # whose likelihood is taken at once


def places(c: Customers) -> dict[str, list[int]]:
    """Where each parameter stands in `columns`."""
    found, at = {}, 0
    for f in fields(c):
        width = getattr(c, f.name).dim() == 2 and len(getattr(c, f.name)) or 1
        found[f.name], at = list(range(at, at + width)), at + width
    return found


class Parameters(nn.Module):
    """G: features [N, F] → θ as `columns` lays it out, [N, K]: around what the priors expect, a linear map and, with
    `hidden` layers, a network beside it. Columns in `assumed` stay at what the priors expect."""

    def __init__(self, num_features: int, theta: Tensor, assumed: list[int], bounds: Tensor, *, hidden: list[int]):
        super().__init__()
        self.register_buffer("middle", theta.mean(0).float())
        spread = theta.std(0).float()
        spread[assumed] = 0.0
        self.register_buffer("spread", spread)
        self.register_buffer("bounds", bounds)
        self.register_buffer("centre", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))
        self.linear = nn.Linear(num_features, theta.shape[1])
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.body = mlp([num_features, *hidden, theta.shape[1]], nn.Tanh, 0.01) if hidden else None

    def rescale(self, features: Tensor) -> None:
        """Take the scale of features [N, F]."""
        self.centre.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp_min(1e-3))

    def forward(self, features: Tensor) -> Tensor:
        x = (features - self.centre) / self.scale
        z = self.linear(x) if self.body is None else self.linear(x) + self.body(x)
        return (self.middle + self.spread * z).clamp(*self.bounds)


def bounds(at: dict[str, list[int]], num_columns: int) -> Tensor:
    """Least and greatest values of θ's columns that mean something, [2, K]."""
    low, high = torch.full((num_columns,), -LOG_RANGE), torch.full((num_columns,), LOG_RANGE)
    for name in (*SHARES, *POSITIVE):
        low[at[name]] = 0.0
    for name in SHARES:
        high[at[name]] = 1.0
    return torch.stack((low, high))


def mean_log_likelihood(net: Parameters, world: World, log: Panel, weight: Tensor) -> Tensor:
    """Mean log-likelihood a weighted decision of a panel under weights [T, N], in parts that fit a cache: [K kinds]."""
    parts = []
    for rows in torch.arange(len(log), device=weight.device).split(CUSTOMERS):
        part = log[rows]
        terms = log_likelihood(world.inhabit(from_columns(net(part.features.T))), world, part)
        parts.append(torch.stack([(x * weight[:, rows]).sum() for x in terms.values()]))
    return torch.stack(parts).sum(0) / weight.sum()


class Structural:
    """Fit G by maximum likelihood: rounds of L-BFGS until held-out customers' likelihood no longer grows.

    hidden: of G's network; none: G is linear. penalty: Σ W²/2 counts so much against the likelihood of all decisions.
    """

    def __init__(self, *, hidden: list[int], penalty: float, rounds: int, steps: int, patience: int):
        self.hidden, self.penalty, self.rounds, self.steps, self.patience = hidden, penalty, rounds, steps, patience

    def build(self, num_features: int, theta: Tensor, assumed: list[int], limits: Tensor) -> Parameters:
        """Make an unfitted G around what is expected, θ's columns [R, K] of customers drawn."""
        return Parameters(num_features, theta, assumed, limits, hidden=self.hidden)

    def fit(self, net: Parameters, world: World, log: Panel, weight: Tensor, held: Panel, held_weight: Tensor) -> dict:
        """Fit to weights [T, N] of a panel; return how likely that and what was held out became, a decision."""
        net.rescale(log.features.T)
        optimizer = torch.optim.LBFGS(net.parameters(), max_iter=self.steps, history_size=20, line_search_fn="strong_wolfe")
        total = weight.sum()

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            square = sum(p.square().sum() for name, p in net.named_parameters() if name.endswith("weight"))
            loss = 0.5 * self.penalty * square / total
            loss.backward()
            for rows in torch.arange(len(log), device=weight.device).split(CUSTOMERS):
                part = log[rows]
                terms = log_likelihood(world.inhabit(from_columns(net(part.features.T))), world, part)
                minus = -sum((x * weight[:, rows]).sum() for x in terms.values()) / total
                minus.backward()
                loss = loss.detach() + minus.detach()
            return loss

        best, waited, kept, rounds = -torch.inf, 0, None, 0
        while rounds < self.rounds and waited < self.patience:
            optimizer.step(closure)
            rounds += 1
            with torch.no_grad():
                found = mean_log_likelihood(net, world, held, held_weight).sum().item()
            waited = 0 if found > best + 1e-6 else waited + 1
            if found > best:
                best, kept = found, {name: x.clone() for name, x in net.state_dict().items()}
        if kept is None:
            raise ValueError("log: the likelihood is no number; expected outcomes that the world can bring")
        net.load_state_dict(kept)
        with torch.no_grad():
            return {"twin/fitted": mean_log_likelihood(net, world, log, weight).sum(), "twin/held_out": best,
                    "twin/rounds": rounds}


class Twin(Loop):
    """An ensemble of models of the world, each fitted to the customers of a log drawn again with replacement.

    twin: what is fitted. held: share of the customers, and the last weeks of the season, that none is fitted to.
    weighted: decisions count as if all valid pairs had been as likely (1/propensity, at most `clip` times the mean).
    assumed: parameters that the log says nothing of, drawn from the population's priors. reference: customers drawn to
    know what is expected of θ. report: how members are judged.
    """

    checkpoint_every = eval_every = 1

    def __init__(self, env, seed: int, mode: str, *, twin, members: int, held: dict, weighted: bool, clip: float,
                 assumed: list, reference: int, report: Callable):
        self.env, self.twin, self.held, self.weighted, self.clip = env, twin, held, weighted, clip
        self.evaluation = report
        self.iterations, self.iteration, self.batch = members, 0, 0
        self.schedule, self.lr, self.kl = None, torch.tensor(torch.nan), torch.tensor(torch.nan)
        self.generator = torch.Generator(env.device).manual_seed(2 * seed + 1)
        if not 0 < held["customers"] < 1 or not 0 <= held["weeks"] < env.world.weeks:
            raise ValueError(f"algo.held: expected a share of customers in (0, 1) and less than {env.world.weeks} weeks, got "
                             f"{held}")
        expected = env.population.draw(reference, torch.Generator(env.device).manual_seed(2 * seed), "train").customers
        at, theta = places(expected), columns(expected)
        if unknown := set(assumed) - set(at):
            raise ValueError(f"algo.assumed: no such parameter: {', '.join(sorted(unknown))}; there are {', '.join(at)}")
        self.assumed = [k for name in assumed for k in at[name]]
        torch.manual_seed(seed)
        self.members = nn.ModuleList(twin.build(env.static, theta, self.assumed, bounds(at, theta.shape[1])).to(env.device)
                                     for _ in range(members))
        self.log: Panel | None = None

    def learn_from(self, log: Logged) -> None:
        """Take a log; raise ValueError where it can't be fitted to."""
        if self.weighted and (missing := log.propensity.isnan()).any():
            raise ValueError(f"log: {named_rows(missing, 0)}, column 'propensity': expected one, as decisions are to be "
                             "weighted by it, or algo.weighted=false")
        self.log = panel(log, self.env, "log")
        aside = torch.rand(len(self.log), generator=self.generator, device=self.env.device) < self.held["customers"]
        aside[0], aside[-1] = True, False
        self.aside = aside

    @property
    def fitted(self) -> list[Parameters]:
        """The members that are."""
        return list(self.members[:self.iteration])

    @property
    def early(self) -> Tensor:
        """Weeks that members are fitted to, bool [T, N]."""
        return self.log.there & (self.log.week < self.env.world.weeks - self.held["weeks"])

    def weights(self) -> Tensor:
        """What each decision counts, [T, N]."""
        log = self.log
        if not self.weighted:
            return self.early.float()
        w = torch.where(log.there, 1 / (log.propensity * log.valid), 0.0)
        w = w / w[log.there].mean()
        return (w.clamp_max(self.clip) * self.early).float()

    def train(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
              stop: Callable[[], bool]) -> None:
        """Fit members to the last, or to the end of the one in which `stop` turns true."""
        if self.log is None:
            raise ValueError("log: expected the path of a log to learn from, as in log=log.parquet")
        weight, rows, aside = self.weights(), (~self.aside).nonzero()[:, 0], self.aside.nonzero()[:, 0]
        fitted, held = self.log[rows], self.log[aside]
        self.batch = int((weight[:, rows] > 0).sum())
        for _, metrics in self.loop(logger, save, evaluate, stop):
            drawn = torch.randint(len(rows), (len(rows),), generator=self.generator, device=rows.device)
            again = drawn.bincount(minlength=len(rows))
            metrics |= self.twin.fit(self.members[self.iteration], self.env.world, fitted, weight[:, rows] * again, held,
                                      weight[:, aside])

    def state_dict(self) -> dict:
        """Everything that fitting needs to go on as if it had not stopped, but for the log."""
        return {"members": [x.state_dict() for x in self.members], "iteration": self.iteration,
                "hidden": self.twin.hidden, "assumed": self.assumed, "generator": self.generator.get_state(),
                "env": self.env.state_dict()}

    def load_weights(self, state: dict) -> None:
        """Restore the members, on whatever device."""
        for member, held in zip(self.members, state["members"]):
            member.load_state_dict(held)

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave, to fit on."""
        self.load_weights(state)
        self.generator.set_state(state["generator"].cpu())
        self.env.load_state_dict(state["env"])
        self.iteration = state["iteration"]


class Twins:
    """A population whose customers are those of another, but respond as a twin says: each as one member of the ensemble,
    drawn for the season, so that no policy can live off one member's errors. `only` is the one that all are then."""

    def __init__(self, base, path: str, only: int | None = None):
        state = checkpoint.load(path)
        if state.get("name") != "twin":
            raise ValueError(f"env.twin={path}: expected a checkpoint of algo=twin, got {state.get('name')}")
        agent, self.path = state["agent"], path
        self.base, self.only, self.num_features = base, only, base.num_features
        self.columns, self.ids = getattr(base, "columns", None), getattr(base, "ids", None)
        seen, width = len(agent["members"][0]["centre"]), len(agent["members"][0]["middle"])
        if seen != base.num_features:
            raise ValueError(f"env.twin={path}: fitted to customers of {seen} features, here they have {base.num_features}")
        self.assumed = agent["assumed"]
        self.members = [Parameters(seen, torch.zeros(2, width), self.assumed, torch.zeros(2, width), hidden=agent["hidden"])
                        for _ in range(agent["iteration"])]
        for member, held in zip(self.members, agent["members"]):
            member.load_state_dict(held)

    def under(self, member: int) -> Twins:
        """The same population, all customers as one member says."""
        return Twins(self.base, self.path, member)

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator, split: str) -> Sample:
        """Return n customers of `split`."""
        sample = self.base.draw(n, generator, split)
        x, own = sample.features.float(), columns(sample.customers)
        theta = torch.stack([member.to(x.device)(x) for member in self.members]).to(own)
        drawn = torch.randint(len(self.members), (n,), generator=generator, device=x.device)
        drawn = drawn if self.only is None else torch.full_like(drawn, self.only)
        theta = theta[drawn, torch.arange(n, device=x.device)]
        theta[:, self.assumed] = own[:, self.assumed]
        return sample._replace(customers=from_columns(theta))

    def state_dict(self) -> dict:
        """What the other population fitted."""
        return self.base.state_dict() if hasattr(self.base, "state_dict") else {}

    def load_state_dict(self, state: dict) -> None:
        """See customers by the features that a policy was trained on."""
        if state:
            self.base.load_state_dict(state)
