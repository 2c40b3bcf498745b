"""Fit a twin to a log: maximum likelihood of what the log's customers did, and an ensemble that knows how unsure that is."""
from __future__ import annotations

from dataclasses import replace
from typing import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from envs.offers.twin.structural_predictions import Answers
from envs.offers.twin.likelihood import Panel, log_likelihood, panel
from envs.offers.populations.base import theta_from_matrix, theta_to_matrix
from envs.offers.twin.structural_model import Parameters, places
from envs.offers.world.customers import CHURNED, UNSUBSCRIBED, World
from rlcore.algorithm import Evaluator, OfflineAlgorithm
from rlcore.offline.logged_dataset import LoggedDataset, named_rows

CUSTOMERS = 4096  # whose likelihood is taken at once
SILENT = {"churn": ("c0", "gamma_f", "gamma_h"), "opt_out": ("opt_out",)}  # what a log can't tell in which it never happens


def log_likelihoods(net: Parameters, world: World, log: Panel, weight: Tensor) -> Iterator[Tensor]:
    """Log-likelihood of a panel under weights [T, N], in parts that fit a cache, to be added up."""
    for rows in torch.arange(len(log), device=weight.device).split(CUSTOMERS):
        part = log[rows]
        terms = log_likelihood(world.inhabit(theta_from_matrix(net(part.features.T))), world, part)
        # In float64, for L-BFGS would stop where float32 rounds its gains off.
        yield sum((x * weight[:, rows]).sum(dtype=torch.float64) for x in terms.values())


class Structural:
    """Fit G by maximum likelihood: rounds of L-BFGS until held-out customers' likelihood no longer grows.

    hidden: of G's network; none: G is linear. penalty: Σ W²/2 counts so much against the likelihood of all decisions.
    assumed: parameters that are drawn from the population's priors, beside those of what never happens in the log.
    reference: customers drawn to know what is expected of θ.
    """

    unheard = "its parameters are drawn from the priors"  # of what never happens in the log

    def __init__(self, *, hidden: list[int], penalty: float, rounds: int, steps: int, patience: int, assumed: list,
                 reference: int):
        self.hidden, self.penalty, self.rounds, self.steps, self.patience = hidden, penalty, rounds, steps, patience
        self.assumed, self.reference = tuple(assumed), reference

    def build(self, env, seed: int, members: int) -> list[Parameters]:
        """Make unfitted G around what is expected of θ; raise ValueError on parameters that are none."""
        if env.codec.hides_state:
            raise ValueError("algo/twin=structural: learns from habit, fatigue and expectation, which this env/observation hides: "
                             "expected env/observation=state, or algo/twin=neural")
        expected = env.population.draw(self.reference, torch.Generator(env.device).manual_seed(2 * seed), "train").customers
        self.places, theta = places(expected), theta_to_matrix(expected)
        if unknown := set(self.assumed) - set(self.places):
            raise ValueError(f"algo.twin.assumed: no such parameter: {', '.join(sorted(unknown))}; there are "
                             f"{', '.join(self.places)}")
        torch.manual_seed(seed)
        return [Parameters(env.static_dim, theta.mean(0), theta.std(0), hidden=self.hidden) for _ in range(members)]

    def lay(self, log: LoggedDataset, env) -> Panel:
        """Lay a log out by customer and week."""
        return panel(log, env, "log")

    def silence(self, silent: tuple[str, ...], members: Iterable[Parameters]) -> None:
        """Leave to the priors what never happens."""
        self.assumed = tuple(dict.fromkeys((*self.assumed, *(x for name in silent for x in SILENT[name]))))
        for member in members:
            member.spread[[k for name in self.assumed for k in self.places[name]]] = 0.0

    def state_dict(self) -> dict:
        """What members can't be used without."""
        return {"hidden": self.hidden, "assumed": [k for name in self.assumed for k in self.places[name]]}

    def answers(self, member: Parameters, world: World, log: Panel) -> Answers:
        """Ask a member about a panel."""
        return Answers(world.inhabit(theta_from_matrix(member(log.features.T))), world, log)

    def shuffled(self, log: Panel, order: Tensor, env) -> Iterator[tuple[str, Panel]]:
        """Shuffle what is known of customers, a column at a time; what is known of the state, week by week."""
        for k, name in enumerate(getattr(env.population, "feature_names", [f"feature {k}" for k in range(len(log.features))])):
            features = log.features.clone()
            features[k] = features[k, order]
            yield name, replace(log, features=features)
        for name in ("habit", "fatigue", "expectation"):
            yield name, replace(log, state=log.state._replace(**{name: getattr(log.state, name)[:, order]}))

    def fit(self, net: Parameters, world: World, log: Panel, weight: Tensor, held: Panel, held_weight: Tensor,
            generator: torch.Generator) -> dict:
        """Fit to weights [T, N] of a panel; return how likely that and what was held out became, a decision."""
        net.rescale(log.features.T)
        optimizer = torch.optim.LBFGS(net.parameters(), max_iter=self.steps, history_size=20, line_search_fn="strong_wolfe")
        total, held_total = weight.sum(), held_weight.sum()

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = 0.5 * self.penalty / total * sum(p.square().sum() for p in net.parameters() if p.dim() > 1)
            loss.backward()
            for part in log_likelihoods(net, world, log, weight):
                (-part / total).backward()
                loss = loss.detach() - part.detach() / total
            return loss

        best, waited, kept, rounds = -torch.inf, 0, None, 0
        while rounds < self.rounds and waited < self.patience:
            optimizer.step(closure)
            rounds += 1
            with torch.no_grad():
                found = (sum(log_likelihoods(net, world, held, held_weight)) / held_total).item()
            waited = 0 if found > best + 1e-6 else waited + 1
            if found > best:
                best, kept = found, {name: x.clone() for name, x in net.state_dict().items()}
        if kept is None:
            raise ValueError("log: the likelihood is no number; expected outcomes that the world can bring")
        net.load_state_dict(kept)
        with torch.no_grad():
            return {"twin/fitted": sum(log_likelihoods(net, world, log, weight)) / total, "twin/held_out": best,
                    "twin/rounds": rounds}


class Twin(OfflineAlgorithm):
    """An ensemble of models of the world, each fitted to the customers of a log drawn again with replacement.

    twin: what is fitted. held: share of the customers, and the last weeks of the season, that none is fitted to.
    weighted: decisions count as if all valid pairs had been as likely (1/propensity, at most `clip` times the mean).
    report: how members are judged.
    """

    checkpoint_every = eval_every = 1

    def __init__(self, env, seed: int, *, twin, members: int, held: dict, weighted: bool, clip: float,
                 report: Callable):
        self.env, self.twin, self.held, self.weighted, self.clip = env, twin, held, weighted, clip
        self.report = report
        self.iterations, self.iteration, self.steps_per_iteration = members, 0, 0
        self.generator = torch.Generator(env.device).manual_seed(2 * seed + 1)
        if not 0 < held["customers"] < 1 or not 0 <= held["weeks"] < env.world.weeks:
            raise ValueError(f"algo.held: expected a share of customers in (0, 1) and less than {env.world.weeks} weeks, got "
                             f"{held}")
        self.members = nn.ModuleList(twin.build(env, seed, members)).to(env.device)
        self.log: Panel | None = None

    def make_evaluator(self) -> Evaluator:
        """Return what holds the members against decisions that they were not fitted to."""
        return self.report(self.env)

    def set_dataset(self, log: LoggedDataset) -> None:
        """Take a log; raise ValueError where it can't be fitted to."""
        if self.weighted and (missing := log.propensity.isnan()).any():
            raise ValueError(f"log: {named_rows(missing, 0)}, column 'propensity': expected one, as decisions are to be "
                             "weighted by it, or algo.weighted=false")
        self.log = self.twin.lay(log, self.env)
        happened = {"churn": self.log.following.status == CHURNED, "opt_out": self.log.following.status == UNSUBSCRIBED}
        self.silent = tuple(name for name, x in happened.items() if not (x & self.log.there).any())
        self.twin.silence(self.silent, self.members)
        self.aside = torch.rand(len(self.log), generator=self.generator, device=self.env.device) < self.held["customers"]
        if not 0 < self.aside.sum() < len(self.log):
            raise ValueError(f"log: {len(self.log)} seasons of customers are too few to hold some out")

    @property
    def fitted(self) -> list[nn.Module]:
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

    def setup(self, logger, should_stop: Callable[[], bool]) -> None:
        """Split the log's customers. Raises ValueError where there is no log."""
        if self.log is None:
            raise ValueError("log: expected the path of a log to learn from, as in log=log.parquet")
        weight, fitted_rows, held_rows = self.weights(), (~self.aside).nonzero()[:, 0], self.aside.nonzero()[:, 0]
        self.fitted_log, self.fitted_weight = self.log[fitted_rows], weight[:, fitted_rows]
        self.held_log, self.held_weight = self.log[held_rows], weight[:, held_rows]
        self.steps_per_iteration = int((self.fitted_weight > 0).sum())

    def iterate(self, progress: float) -> dict[str, Tensor | float]:
        """Fit a member to customers drawn with replacement; return how likely the log is under it."""
        customers = len(self.fitted_log)
        drawn = torch.randint(customers, (customers,), generator=self.generator, device=self.env.device)
        times_drawn = drawn.bincount(minlength=customers)
        return self.twin.fit(self.members[self.iteration], self.env.world, self.fitted_log, self.fitted_weight * times_drawn,
                             self.held_log, self.held_weight, self.generator)

    def state_dict(self) -> dict:
        """Everything that fitting needs to go on as if it had not stopped, but for the log."""
        return {"members": [x.state_dict() for x in self.members], "iteration": self.iteration,
                "generator": self.generator.get_state(), "env": self.env.state_dict(), **self.twin.state_dict()}

    def load_policy(self, state: dict) -> None:
        """Restore the members, on whatever device."""
        for member, held in zip(self.members, state["members"]):
            member.load_state_dict(held)

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave, to fit on."""
        self.load_policy(state)
        self.generator.set_state(state["generator"].cpu())
        self.env.load_state_dict(state["env"])
        self.iteration = state["iteration"]
