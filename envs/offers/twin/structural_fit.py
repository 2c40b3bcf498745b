"""Fit the structural twin to a log: by L-BFGS where the log has the states, by the filter where it lacks them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel, to_life_panel, to_panel
from envs.offers.populations.base import theta_from_matrix, theta_to_matrix
from envs.offers.twin.checks.filter_misfits import Decisions, Segments, misfits, trip_misfits, unexplained
from envs.offers.twin.hidden_states.filter_fit import FilterFit
from envs.offers.twin.hidden_states.filter_predictions import FilterPredictions
from envs.offers.twin.hidden_states.identification import (
    coefficient_covariance,
    parameter_names,
    parameter_report,
    parameter_rows,
)
from envs.offers.twin.likelihood import log_likelihood
from envs.offers.twin.predictions import PanelPredictions, mean_probabilities
from envs.offers.twin.structural_model import ParameterNetwork, mean_theta, parameter_columns
from envs.offers.twin.structural_predictions import StructuralPredictions
from envs.offers.twin.twin_checkpoint import KIND
from envs.offers.world.belief_observation import start_marginals
from envs.offers.world.customers import World
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.runs.report import Report

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
    """Makes and fits the members of a twin: the world's equations, in which G gives each customer's parameters.

    Where the log has the states, rounds of L-BFGS go on until the likelihood of held-out customers no longer grows;
    where the environment's view hides them, `hidden_states` fits G. `hidden` are the sizes of G's hidden layers;
    without any, G is linear. `penalty`, times the number of G's inputs, is the weight of Σ W²/2 against the
    log-likelihood of all decisions: with 1, E[θ | x] varies a priori about as much as θ does.
    `fixed_parameters` are left to the population's priors, together with those that a log without some outcome cannot
    identify. `reference_size` customers are drawn to compute mean and spread of θ, and the states at the start.
    `score_customers` are those whose scores tell what a log without states identifies.
    """

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
        score_customers: int,
        hidden_states: FilterFit,
    ):
        self.hidden, self.penalty_by_input = hidden, penalty
        self.penalty = 0.0  #: weight of Σ W²/2; set with the members
        self.rounds, self.steps, self.patience = rounds, steps, patience
        self.fixed_parameters = tuple(fixed_parameters)
        self.reference_size, self.score_customers = reference_size, score_customers
        self.hidden_states = hidden_states
        self.hides_state = False  #: whether the environment's view, and so the log, hides the states
        self.columns: dict[str, list[int]] = {}  # of each parameter in θ's matrix

    def make_members(self, env, seed: int, members: int) -> list[ParameterNetwork]:
        """Make unfitted G around the mean of θ. Raises ValueError on unknown parameters."""
        generator = torch.Generator(env.device).manual_seed(2 * seed)
        sample = env.population.draw(self.reference_size, generator, "train")
        theta = theta_to_matrix(sample.customers)
        self.columns = parameter_columns(sample.customers)
        self.hides_state = env.codec.hides_state
        self.penalty = self.penalty_by_input * env.static_dim
        self.hidden_states.prepare(self.columns, start_marginals(sample.state))
        if unknown := set(self.fixed_parameters) - set(self.columns):
            raise ValueError(
                f"algo.twin.fixed_parameters: no such parameter: {', '.join(sorted(unknown))}; there are "
                f"{', '.join(self.columns)}"
            )
        torch.manual_seed(seed)
        return [
            ParameterNetwork(env.static_dim, theta.mean(0), theta.std(0), hidden=self.hidden) for _ in range(members)
        ]

    def start_member(self, member: ParameterNetwork, weights: dict) -> None:
        """Give a member the weights of a fitted one, and the scale of its inputs, to start from.

        Raises ValueError where the fitted one has a random effect that this fit lacks.
        """
        lacking = weights["effect_sd"].bool() & ~self.hidden_states.effects.of_columns.any(0)
        if self.hides_state and lacking.any():
            names = [name for name, columns in self.columns.items() if lacking[columns].any()]
            raise ValueError(
                "algo.twin.hidden_states.random_effects: expected those of the twin that the fit starts from; "
                f"{', '.join(names)} is not among them"
            )
        spread = member.spread.clone()
        member.load_state_dict(weights)
        # what the other log could not identify, this one may
        member.spread.copy_(torch.where(member.spread == 0, spread, member.spread))
        member.starts_warm = True
        if not self.hides_state:
            member.effect_sd.zero_()  # of a log with the states no random effect is fitted

    def to_panel(self, log: LoggedDataset, env) -> Panel:
        """Lay a log out by customer and week: whole lives where states are hidden, seasons where they are known."""
        return to_life_panel(log, env, "log") if self.hides_state else to_panel(log, env, "log")

    def fixed_columns(self) -> list[int]:
        """Return the columns of θ that are left to the priors."""
        return [k for name in self.fixed_parameters for k in self.columns[name]]

    def fix_unobserved(self, outcomes: tuple[str, ...], members: Iterable[ParameterNetwork]) -> tuple[str, ...]:
        """Leave to the priors the parameters that a log without these outcomes cannot identify; return the outcomes.

        A view that hides the state never shows churn: there, customers who fall silent tell of it.
        """
        if self.hides_state:
            outcomes = tuple(name for name in outcomes if name != "churn")
        unidentified = (name for outcome in outcomes for name in UNIDENTIFIED[outcome])
        self.fixed_parameters = tuple(dict.fromkeys((*self.fixed_parameters, *unidentified)))
        for member in members:
            member.spread[self.fixed_columns()] = 0.0
        return outcomes

    def fit(
        self,
        member: ParameterNetwork,
        world: World,
        panel: Panel,
        weight: Tensor,
        held_out: Panel,
        held_out_weight: Tensor,
        generator: torch.Generator,
        near: ParameterNetwork | None = None,
    ) -> dict:
        """Fit a member to a panel under weights [T, N]; return the log-likelihood a decision.

        `near` is a member that was fitted to the panel under other weights.
        """
        if self.hides_state:
            return self.hidden_states.fit(
                member, world, panel, weight, held_out, held_out_weight, generator, self.penalty, near
            )
        if not member.starts_warm:
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

    def predict(self, member: ParameterNetwork, world: World, panel: Panel) -> PanelPredictions:
        """Return a member's predictions of a panel."""
        theta = member(panel.features.T)
        if not self.hides_state:
            return StructuralPredictions(world.inhabit(theta_from_matrix(theta)), world, panel)
        return FilterPredictions(theta, member.effect_sd, world, panel, self.hidden_states)

    def misfits(self, members: list[ParameterNetwork], panel: Panel, held_out: Tensor, env, level: float) -> list[str]:
        """Name the decisions of a panel whose outcomes the members can't explain.

        Without states the customers that members are fitted to are tested too, since a fit by maximum likelihood makes
        residuals smaller and not greater. Only the thirds by a feature have held-out customers alone: a penalty draws
        the slopes to 0, so that in large groups of fitted customers the equations seem wrong where they are right.
        Customers are also grouped by each two parameters that a fit estimates, the margin and those whose means are
        drawn to the priors' aside.
        """
        catalogue = env.world.catalogue
        predictions = [self.predict(member, env.world, panel) for member in members]
        if not self.hides_state:
            return trip_misfits(predictions, panel, held_out, catalogue, level)
        theta = mean_theta(members, panel.features.T)
        names = parameter_names(self.columns, catalogue.channels)
        left_out = {*self.fixed_columns(), *self.hidden_states.pulled_columns(), *self.columns["margin"]}
        estimated = [k for k in range(len(names)) if k not in left_out]
        segments = Segments(
            panel.features, env.population.feature_names, held_out, theta[:, estimated].T, [names[k] for k in estimated]
        )
        named = misfits(mean_probabilities(predictions), Decisions.of_panel(panel), catalogue, level, segments)
        return unexplained(named)

    def parameters(
        self, members: list[ParameterNetwork], world: World, panel: Panel, weight: Tensor, channels: list[str]
    ) -> Report | None:
        """Say what a log without states, a panel under weights [T, N], tells of each parameter; None of other logs."""
        if not self.hides_state:
            return None
        count = min(self.score_customers, len(panel))  # from all over the log: those who came late have shorter lives
        some = torch.arange(count, device=weight.device) * len(panel) // count
        covariance = coefficient_covariance(
            self.hidden_states, members[0], world, panel[some], weight[:, some], self.penalty, len(panel)
        )
        names = parameter_names(self.columns, channels)
        pulled = {names[k] for k in self.hidden_states.pulled_columns()}
        return parameter_report(names, parameter_rows(members, covariance, panel), pulled)

    def shuffled_columns(self, panel: Panel, order: Tensor, env) -> Iterator[tuple[str, Panel]]:
        """Yield each input column by name, with a panel in which the column is that of customers `order` [N]."""
        for k, name in enumerate(env.population.feature_names):
            features = panel.features.clone()
            features[k] = features[k, order]
            yield name, replace(panel, features=features)
        if self.hides_state:
            return
        for name in ("habit", "fatigue", "expectation"):
            column = getattr(panel.state, name)[:, order]
            yield name, replace(panel, state=panel.state._replace(**{name: column}))

    def state_dict(self) -> dict:
        """Return what members need beside their weights."""
        return {"kind": KIND, "hidden": self.hidden, "fixed_columns": self.fixed_columns()}
