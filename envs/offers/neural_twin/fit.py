"""Fit the neural twin to a log: networks of customers' outcomes, given features, history and treatment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from envs.offers.logs.panel import Panel, to_panel
from envs.offers.neural_twin.customers import NeuralMember, network_inputs, treatments_by_value
from envs.offers.neural_twin.predictions import NeuralPredictions, outcome_rows
from envs.offers.neural_twin.response_models import ValidProbabilities
from envs.offers.twin.checks.filter_misfits import trip_misfits
from envs.offers.twin.predictions import PanelPredictions
from envs.offers.world.customers import World
from envs.offers.world.history import KINDS, History, column_names
from rlcore.offline.logged_dataset import LoggedDataset, named_rows
from rlcore.ope.cross_fitting import consecutive_ids

KIND = "neural"  # name of this kind of twin in a checkpoint


class NeuralTwin:
    """A TwinModel (envs/offers/twin/twin_model.py) of networks, without hidden states.

    `response` learns P(trip) and P(redeemed), by likelihood or by a meta-learner of effects. `other_outcomes` learns
    churn, opt-out and margin. `half_lives` are those of the history's columns, in weeks. With `monotone`, trips and
    redemptions are forced to grow with face value.
    """

    unobserved_note = "the twin's customers never do"

    def __init__(self, *, response: Callable, other_outcomes: Callable, half_lives: list[float], monotone: bool):
        if not half_lives or min(half_lives) <= 0:
            raise ValueError(f"algo.twin.half_lives: expected weeks above 0, got {half_lives}")
        self.response, self.other_outcomes = response, other_outcomes
        self.half_lives, self.monotone = half_lives, monotone

    def make_members(self, env, seed: int, members: int) -> list[NeuralMember]:
        """Make unfitted members."""
        catalogue = env.world.catalogue
        inputs = env.static_dim + len(column_names(self.half_lives)) + 1
        self.fit_response = self.response(catalogue)
        self.fit_other_outcomes = self.other_outcomes(len(catalogue.channels))
        self.monotone_order = treatments_by_value(catalogue) if self.monotone else []
        torch.manual_seed(seed)
        return [
            NeuralMember(self.fit_response.empty(inputs), self.fit_other_outcomes.empty(inputs), self.monotone_order)
            for _ in range(members)
        ]

    def start_member(self, member: nn.Module, weights: dict, kind: str) -> None:
        """Refuse: networks that start from others would remember customers of the other log's validation."""
        raise ValueError("init: a neural twin is fitted anew: expected algo/twin=structural, or init=null")

    def to_panel(self, log: LoggedDataset, env) -> Panel:
        """Lay a log out by customer and week, with the networks' inputs. Raises ValueError where weeks are missing."""
        panel = to_panel(log, env, "log")
        weeks = torch.arange(len(panel.week), device=panel.week.device)[:, None]
        skipped = ((panel.week != weeks) & panel.logged).any(0)
        if skipped.any():
            of_first = log.unit == panel.customer[skipped][0]
            raise ValueError(
                f"log: {named_rows(of_first, log.row)}, column 'week': expected all weeks of a season from the first: "
                "a neural twin learns from the history"
            )
        return replace(panel, inputs=self.inputs(panel, env.world))

    def inputs(self, panel: Panel, world: World) -> Tensor:
        """Return the networks' inputs before each decision of a panel, [D, T, N]."""
        history, inputs = History.start(panel.state.status[0], world.season.dtype), []
        for t in range(len(panel.week)):
            inputs.append(network_inputs(panel.features.T, history, self.half_lives, world.season[t]))
            history = history.after(
                panel.next_state.status[t],
                world.catalogue,
                panel.offer[t],
                panel.channel[t],
                panel.bought[t],
                panel.redeemed[t],
            )
        return torch.stack(inputs).permute(2, 0, 1)

    def fix_unobserved(self, outcomes: tuple[str, ...], members: Iterable[NeuralMember]) -> tuple[str, ...]:
        """Return the outcomes: the members learn that these never happen."""
        return outcomes

    def fit(
        self,
        member: NeuralMember,
        world: World,
        panel: Panel,
        weight: Tensor,
        held_out: Panel,
        held_out_weight: Tensor,
        generator: torch.Generator,
    ) -> dict:
        """Fit a member to a panel under weights [T, N]; return the log-likelihood a decision of both panels.

        A decision is repeated as often as its weight says; the fraction of a weight is drawn at random.
        """
        week, customer = torch.nonzero((weight > 0) & panel.active).unbind(1)
        times = (weight[week, customer] + torch.rand(len(week), generator=generator, device=week.device)).floor().long()
        week, customer = week.repeat_interleave(times), customer.repeat_interleave(times)
        rows = outcome_rows(panel, week, customer, world.catalogue.action_codec)
        assert panel.inputs is not None  # to_panel lays them out
        inputs = panel.inputs[:, week, customer].T.contiguous()
        propensity = panel.propensity[week, customer]
        response = self.fit_response(
            inputs,
            rows.treatment,
            torch.stack((rows.bought, rows.redeemed), 1).to(inputs),
            generator,
            None if propensity.isnan().any() else propensity,
            consecutive_ids(customer),
        )
        member.response = ValidProbabilities(response, self.monotone_order)
        member.other_outcomes = self.fit_other_outcomes(inputs, rows, generator)
        return {
            "twin/fitted": self.mean_log_likelihood(member, world, panel, weight),
            "twin/held_out": self.mean_log_likelihood(member, world, held_out, held_out_weight),
        }

    def mean_log_likelihood(self, member: NeuralMember, world: World, panel: Panel, weight: Tensor) -> float:
        """Return the log-likelihood a decision of a panel under weights [T, N]."""
        found = self.predict(member, world, panel).log_likelihoods()
        return (sum((x * weight).sum() for x in found.values()) / weight.sum()).item()

    def predict(self, member: NeuralMember, world: World, panel: Panel) -> NeuralPredictions:
        """Return a member's predictions of a panel."""
        return NeuralPredictions(member, world, panel, self.half_lives)

    def misfits(self, members: list[PanelPredictions], panel: Panel, held_out: Tensor, env, level: float) -> list[str]:
        """Warn of pairs of offer and channel whose trips the members can't explain."""
        return trip_misfits(members, panel, held_out, env.world.catalogue, level)

    def parameters(self, members: list, world: World, panel: Panel, weight: Tensor, channels: list[str]) -> None:
        """Return None: networks have no parameters with a meaning of their own."""

    def shuffled_columns(self, panel: Panel, order: Tensor, env) -> Iterator[tuple[str, Panel]]:
        """Yield each network input by name, with a panel in which the input is that of customers `order` [N].

        Features come one at a time; the columns of each kind of history come together.
        """
        groups = {name: [k] for k, name in enumerate(env.population.feature_names)}
        columns, first = column_names(self.half_lives), len(panel.features)
        for kind, prefix in (*((kind, kind) for kind in KINDS), ("recency", "last")):
            groups[kind] = [first + k for k, name in enumerate(columns) if name.startswith(prefix)]
        assert panel.inputs is not None  # to_panel lays them out
        for name, rows in groups.items():
            inputs = panel.inputs.clone()
            inputs[rows] = inputs[rows][..., order]
            yield name, replace(panel, inputs=inputs)

    def state_dict(self) -> dict:
        """Return what members need beside their weights; a checkpoint's configuration rebuilds the members."""
        return {"kind": KIND, "half_lives": self.half_lives}
