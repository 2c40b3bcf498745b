"""Fit the structural twin to a log: maximum likelihood of G by L-BFGS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel, to_panel
from envs.offers.populations.base import theta_from_matrix, theta_to_matrix
from envs.offers.twin.likelihood import log_likelihood
from envs.offers.twin.structural_model import KIND, ParameterNetwork, parameter_columns
from envs.offers.twin.structural_predictions import StructuralPredictions
from envs.offers.world.customers import World
from rlcore.offline.logged_dataset import LoggedDataset

CHUNK = 4096  # customers whose likelihood is computed at once, so that a chunk fits a cache
MIN_GAIN = 1e-6  # least gain of the held-out log-likelihood a decision
# parameters that a log in which the outcome never happens does not identify
UNIDENTIFIED = {"churn": ("c0", "gamma_f", "gamma_h"), "opt_out": ("opt_out",)}


def chunk_log_likelihoods(network: ParameterNetwork, world: World, panel: Panel, weight: Tensor) -> Iterator[Tensor]:
    """Yield the weighted log-likelihood of each chunk of customers of a panel; their sum counts. weight is [T, N]."""
    for rows in torch.arange(len(panel), device=weight.device).split(CHUNK):
        part = panel[rows]
        terms = log_likelihood(world.inhabit(theta_from_matrix(network(part.features.T))), world, part)
        # In float64, because L-BFGS would stop where float32 rounds its gains to 0.
        nothing = weight.new_zeros((), dtype=torch.float64)
        yield sum(((x * weight[:, rows]).sum(dtype=torch.float64) for x in terms.values()), start=nothing)


class StructuralTwin:
    """A TwinModel (envs/offers/twin/ensemble.py) with the world's equations: G gives each customer's parameters.

    Rounds of L-BFGS go on until the likelihood of held-out customers no longer grows. `hidden` are the sizes of G's
    hidden layers; without any, G is linear. `penalty` is the weight of Σ W²/2 against the log-likelihood of all
    decisions. `fixed_parameters` are left to the population's priors, together with those that a log without some
    outcome cannot identify. `reference_size` customers are drawn to compute mean and spread of θ.
    """

    unobserved_note = "its parameters are drawn from the priors"

    def __init__(
        self,
        *,
        hidden: list[int],
        penalty: float,
        rounds: int,
        steps: int,
        patience: int,
        fixed_parameters: list,
        reference_size: int,
    ):
        self.hidden, self.penalty = hidden, penalty
        self.rounds, self.steps, self.patience = rounds, steps, patience
        self.fixed_parameters = tuple(fixed_parameters)
        self.reference_size = reference_size
        self.columns: dict[str, list[int]] = {}  # of each parameter in θ's matrix

    def make_members(self, env, seed: int, members: int) -> list[ParameterNetwork]:
        """Make unfitted G around the mean of θ. Raises ValueError on unknown parameters and hidden states."""
        if env.codec.hides_state:
            raise ValueError(
                "algo/twin=structural: learns from habit, fatigue and expectation, which this env/observation hides: "
                "expected env/observation=state, or algo/twin=neural"
            )
        generator = torch.Generator(env.device).manual_seed(2 * seed)
        customers = env.population.draw(self.reference_size, generator, "train").customers
        theta = theta_to_matrix(customers)
        self.columns = parameter_columns(customers)
        if unknown := set(self.fixed_parameters) - set(self.columns):
            raise ValueError(
                f"algo.twin.fixed_parameters: no such parameter: {', '.join(sorted(unknown))}; there are "
                f"{', '.join(self.columns)}"
            )
        torch.manual_seed(seed)
        return [
            ParameterNetwork(env.static_dim, theta.mean(0), theta.std(0), hidden=self.hidden) for _ in range(members)
        ]

    def to_panel(self, log: LoggedDataset, env) -> Panel:
        """Lay a log out by customer and week."""
        return to_panel(log, env, "log")

    def fixed_columns(self) -> list[int]:
        """Return the columns of θ that are left to the priors."""
        return [k for name in self.fixed_parameters for k in self.columns[name]]

    def fix_unobserved(self, outcomes: tuple[str, ...], members: Iterable[ParameterNetwork]) -> None:
        """Leave to the priors the parameters that a log without these outcomes cannot identify."""
        unidentified = (name for outcome in outcomes for name in UNIDENTIFIED[outcome])
        self.fixed_parameters = tuple(dict.fromkeys((*self.fixed_parameters, *unidentified)))
        for member in members:
            member.spread[self.fixed_columns()] = 0.0

    def fit(
        self,
        member: ParameterNetwork,
        world: World,
        panel: Panel,
        weight: Tensor,
        held_out: Panel,
        held_out_weight: Tensor,
        generator: torch.Generator,
    ) -> dict:
        """Fit a member to a panel under weights [T, N]; return the log-likelihood a decision of both panels."""
        member.fit_scale(panel.features.T)
        optimizer = torch.optim.LBFGS(
            member.parameters(), max_iter=self.steps, history_size=20, line_search_fn="strong_wolfe"
        )
        total, held_out_total = weight.sum(), held_out_weight.sum()

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = 0.5 * self.penalty / total * sum(p.square().sum() for p in member.parameters() if p.dim() > 1)
            loss.backward()
            for part in chunk_log_likelihoods(member, world, panel, weight):
                (-part / total).backward()
                loss = loss.detach() - part.detach() / total
            return loss

        best, best_weights, rounds, rounds_without_gain = -torch.inf, None, 0, 0
        while rounds < self.rounds and rounds_without_gain < self.patience:
            optimizer.step(closure)
            rounds += 1
            with torch.no_grad():
                found = (sum(chunk_log_likelihoods(member, world, held_out, held_out_weight)) / held_out_total).item()
            rounds_without_gain = 0 if found > best + MIN_GAIN else rounds_without_gain + 1
            if found > best:
                best, best_weights = found, {name: x.clone() for name, x in member.state_dict().items()}
        if best_weights is None:
            raise ValueError("log: the likelihood is no number; expected outcomes that the world can bring")
        member.load_state_dict(best_weights)
        with torch.no_grad():
            fitted = sum(chunk_log_likelihoods(member, world, panel, weight)) / total
        return {"twin/fitted": fitted, "twin/held_out": best, "twin/rounds": rounds}

    def predict(self, member: ParameterNetwork, world: World, panel: Panel) -> StructuralPredictions:
        """Return a member's predictions of a panel."""
        customers = world.inhabit(theta_from_matrix(member(panel.features.T)))
        return StructuralPredictions(customers, world, panel)

    def shuffled_columns(self, panel: Panel, order: Tensor, env) -> Iterator[tuple[str, Panel]]:
        """Yield each input column by name, with a panel in which the column is that of customers `order` [N]."""
        for k, name in enumerate(env.population.feature_names):
            features = panel.features.clone()
            features[k] = features[k, order]
            yield name, replace(panel, features=features)
        for name in ("habit", "fatigue", "expectation"):
            column = getattr(panel.state, name)[:, order]
            yield name, replace(panel, state=panel.state._replace(**{name: column}))

    def state_dict(self) -> dict:
        """Return what members need beside their weights."""
        return {"kind": KIND, "hidden": self.hidden, "fixed_columns": self.fixed_columns()}
