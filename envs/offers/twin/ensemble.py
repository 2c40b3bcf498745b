"""A twin as an algorithm: an ensemble of networks fitted to a log; the members' spread shows their uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.populations.base import hash_uniform
from envs.offers.twin.checks.fit_drift import FitDrift, fit_drift
from envs.offers.twin.predictions import PanelPredictions
from envs.offers.twin.structural_fit import StructuralTwin
from envs.offers.twin.structural_model import ParameterNetwork
from envs.offers.world.customers import CHURNED, UNSUBSCRIBED
from rlcore.algorithm import Evaluator, OfflineAlgorithm
from rlcore.offline.logged_dataset import LoggedDataset, named_rows


class TwinEnsemble(OfflineAlgorithm):
    """An ensemble of maps G from features to θ, each fitted to a bootstrap of a log's customers.

    The bootstrap is balanced (Davison, Hinkley & Schechtman 1986): all members together have each customer equally
    often, so that the noise of drawing nearly cancels in their mean. A single member has each customer once. `twin`
    makes and fits the members. No member is fitted to the customers and weeks of `holdout`: a share `customers`,
    whom the report is about, a share `stopping`, and the last `weeks` of each season. The likelihood of the customers
    `stopping` ends a fit to a log with states; of a log without states it is a metric. A customer's side depends on the
    customer's id and on `salt` alone, and stays when a log grows. An ensemble that starts from another holds out only
    what that one held out too. With `weighted`, decisions count as if all allowed
    actions had been equally likely (1 / propensity, at most `clip` times the mean). `evaluation` judges the members.
    """

    checkpoint_every = eval_every = 1
    held_out: Tensor  #: customers of the panel whom the report is about, bool [N]; set with the log
    validation: Tensor  #: customers of the panel of the share `stopping`, bool [N]; set with the log

    def __init__(
        self,
        env,
        seed: int,
        *,
        twin: StructuralTwin,
        members: int,
        holdout: dict,
        weighted: bool,
        clip: float,
        evaluation: Callable[..., Evaluator],
    ):
        if not holdout["customers"] + holdout["stopping"] < 1 or not 0 <= holdout["weeks"] < env.world.weeks:
            raise ValueError(
                "algo.holdout: expected shares of customers and stopping that leave customers to fit to, and less than "
                f"{env.world.weeks} weeks, got {holdout}"
            )
        self.env, self.seed, self.twin, self.holdout = env, seed, twin, holdout
        self.weighted, self.clip = weighted, clip
        self.evaluation = evaluation
        self.iterations, self.iteration, self.steps_per_iteration = members, 0, 0
        self.generator = torch.Generator(env.device).manual_seed(2 * seed + 1)
        self.members = [member.to(env.device) for member in twin.make_members(env, seed, members)]
        self._panel: Panel | None = None
        self._names: list[str] = []  # of its customers
        self.earlier: dict | None = None  # what is kept of the state of the ensemble that the fit starts from
        self.unobserved_outcomes: tuple[str, ...] = ()  # outcomes that never happen in the log

    def make_evaluator(self) -> Evaluator:
        """Return the evaluator, which compares the members with decisions that they were not fitted to."""
        return self.evaluation(self.env)

    def set_dataset(self, log: LoggedDataset) -> None:
        """Take a log. Raises ValueError where members can't be fitted to the log."""
        if self.weighted and (missing := log.propensity.isnan()).any():
            raise ValueError(
                f"log: {named_rows(missing, log.row)}, column 'propensity': expected one, as decisions are to be "
                "weighted by it, or algo.weighted=false"
            )
        panel = self.twin.to_panel(log, self.env)
        happened = {"churn": panel.next_state.status == CHURNED, "opt_out": panel.next_state.status == UNSUBSCRIBED}
        never = tuple(name for name, x in happened.items() if not (x & panel.logged).any())
        self.unobserved_outcomes = self.twin.fix_unobserved(never, self.members)
        self._panel, self._names = panel, log.names_of_units(panel.customer)
        self.split_customers(panel, self._names)

    @property
    def holdouts(self) -> list[dict]:
        """The rules by which this ensemble, and those that its fit goes back to, held customers and weeks out."""
        before = self.earlier["holdouts"] if self.earlier else []
        return [self.holdout, *(rule for rule in before if rule != self.holdout)]

    def split_customers(self, panel: Panel, names: list[str]) -> None:
        """Choose the customers who are held out, and count the others' decisions; `names` [N] are the panel's.

        All seasons of a customer are on one side. Whom an ensemble that the fit goes back to was fitted to is fitted to
        here too, and the report is about customers who stopped no fit: nobody else can judge. Raises ValueError where
        there are too few customers.
        """
        lots = [hash_uniform(names, x["salt"]).to(panel.features.device) for x in self.holdouts]
        kept_out = torch.stack([lot < x["customers"] + x["stopping"] for lot, x in zip(lots, self.holdouts)]).all(0)
        reported = torch.stack([lot < x["customers"] for lot, x in zip(lots, self.holdouts)]).all(0)
        self.held_out, self.validation = kept_out & reported, kept_out & ~reported
        if not all(side.any() for side in (self.held_out, self.validation, self.fitted)):
            raise ValueError(
                f"log: {len(set(names))} customers are too few to hold some out: expected some on each side of "
                "algo.holdout (which those of the twin in init= held out too), or larger shares"
            )
        self.steps_per_iteration = int((self.weights()[:, self.fitted] > 0).sum())

    @property
    def panel(self) -> Panel:
        """The log by customer and week. Raises ValueError where there is no log."""
        if self._panel is None:
            raise ValueError("log: expected the path of a log to learn from, as in log=log.parquet")
        return self._panel

    @property
    def weeks_of_log(self) -> int:
        """Number of weeks that the log has, through its seasons; 0 without a log."""
        if self._panel is None or self._panel.time is None:
            return 0
        return int(self._panel.time[self._panel.logged].amax()) + 1

    @property
    def fitted(self) -> Tensor:
        """The customers of the panel that members are fitted to, bool [N]."""
        return ~(self.held_out | self.validation)

    @property
    def fitted_members(self) -> list[ParameterNetwork]:
        """The members that are fitted already."""
        return self.members[: self.iteration]

    @property
    def held_out_panel(self) -> Panel:
        """The customers whom the report is about."""
        return self.panel[self.held_out]

    @property
    def first_held_out_week(self) -> int:
        """The first of the weeks that no member is fitted to."""
        weeks: int = self.env.world.weeks - min(x["weeks"] for x in self.holdouts)
        return weeks

    @property
    def fit_weeks(self) -> Tensor:
        """The logged weeks that members are fitted to, bool [T, N]."""
        return self.panel.logged & (self.panel.week < self.first_held_out_week)

    def predictions(self, panel: Panel) -> list[PanelPredictions]:
        """Return each fitted member's predictions of a panel."""
        return self._predict(self.fitted_members, panel)

    def _predict(self, members: list[ParameterNetwork], panel: Panel) -> list[PanelPredictions]:
        return [self.twin.predict(member, self.env.world, panel) for member in members]

    def weights(self) -> Tensor:
        """Return the weight of each decision of the panel in a fit, [T, N]."""
        panel = self.panel
        if not self.weighted:
            return self.fit_weeks.float()
        weight = torch.where(panel.logged, 1 / (panel.propensity * panel.num_allowed), 0.0)
        weight = weight / weight[panel.logged].mean()
        return (weight.clamp_max(self.clip) * self.fit_weeks).float()

    def setup(self, logger, should_stop: Callable[[], bool]) -> None:
        """Split the log's customers. Raises ValueError where there is no log."""
        weight = self.weights()
        fit_rows = self.fitted.nonzero()[:, 0]
        stopping_rows = self.validation.nonzero()[:, 0]
        self.fit_panel, self.fit_weight = self.panel[fit_rows], weight[:, fit_rows]
        self.validation_panel, self.validation_weight = self.panel[stopping_rows], weight[:, stopping_rows]

    def iterate(self, progress: float) -> dict[str, Tensor | float]:
        """Fit the next member; return the log-likelihood under it."""
        _, unit_of_season = self.fit_panel.customer.unique(return_inverse=True)
        times_drawn = self.draw_customers(int(unit_of_season.amax()) + 1)[unit_of_season]
        return self.twin.fit(
            self.members[self.iteration],
            self.env.world,
            self.fit_panel,
            self.fit_weight * times_drawn,  # a customer's seasons come together
            self.validation_panel,
            self.validation_weight,
            self.generator,
            self.members[0] if self.iteration else None,
        )

    def draw_customers(self, customers: int) -> Tensor:
        """Return how often the next member has each of so many customers, int64 [customers]."""
        generator = torch.Generator(self.env.device).manual_seed(2 * self.seed + 1)
        order = torch.randperm(self.iterations * customers, generator=generator, device=self.env.device)
        drawn = order.view(self.iterations, customers)[self.iteration] % customers
        return drawn.bincount(minlength=customers)

    def state_dict(self) -> dict:
        """Return everything that a resumed fit needs to continue exactly, except the log."""
        return {
            "members": [x.state_dict() for x in self.members],
            "iteration": self.iteration,
            "weeks": self.weeks_of_log,
            "holdouts": self.holdouts,
            "earlier": self.earlier,
            "generator": self.generator.get_state(),
            "env": self.env.state_dict(),
            **self.twin.state_dict(),
        }

    def load_policy(self, state: dict) -> None:
        """Restore the members, on any device."""
        for member, weights in zip(self.members, state["members"]):
            member.load_state_dict(weights)

    @property
    def input_names(self) -> list[str]:
        """Names of the customers' features."""
        return list(self.env.population.feature_names)

    def start_from(self, state: dict) -> None:
        """Begin the fit of each member with the weights of a fitted member of another ensemble.

        To a log without states, where G is linear, only the first member's fit begins there: the others begin where
        the first one ended.
        """
        if not state["iteration"]:
            raise ValueError("init: expected a twin with at least one fitted member, got none")
        weights = state["members"][: state["iteration"]]
        for number, member in enumerate(self.members):
            self.twin.start_member(member, weights[number % len(weights)])
        self.earlier = {key: state[key] for key in ("iteration", "weeks", "holdouts")} | {"members": weights}
        if self._panel is not None:
            self.split_customers(self._panel, self._names)

    @torch.no_grad()
    def fit_drift(self) -> FitDrift | None:
        """Say how well the earlier ensemble fits the weeks since its log, on customers whom neither fit has used."""
        if not self.earlier or not self.iteration:
            return None
        panel = self.held_out_panel
        assert panel.time is not None  # to_panel lays it out
        earlier_members = [deepcopy(self.members[0]) for _ in self.earlier["members"]]
        for member, weights in zip(earlier_members, self.earlier["members"]):
            member.load_state_dict(weights)
        earlier, now = (
            torch.stack([torch.stack([*x.log_likelihoods().values()]).sum(0) for x in self._predict(members, panel)])
            for members in (earlier_members, self.fitted_members)
        )
        since = self.earlier["weeks"]
        return fit_drift(earlier.mean(0), now.mean(0), panel.logged, panel.time, panel.customer, since)

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`, to fit on. Raises ValueError where its customers were drawn otherwise."""
        if (before := len(state["members"])) != len(self.members):
            raise ValueError(
                f"algo.members: expected {before}, among whom the fit that goes on has divided the customers, got "
                f"{len(self.members)}"
            )
        if state["earlier"]:
            self.start_from(state["earlier"])
        if state["holdouts"] != self.holdouts:
            raise ValueError(
                f"algo.holdout: expected {state['holdouts'][0]}, by which the fit that goes on held customers out, got "
                f"{self.holdout}"
            )
        self.load_policy(state)
        self.generator.set_state(state["generator"].cpu())
        self.env.load_state_dict(state["env"])
        self.iteration = state["iteration"]
