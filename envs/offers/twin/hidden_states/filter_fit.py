"""Fit θ = G(x) to a log without states: the filter's likelihood of what was seen, by Adam and then Fisher scoring."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.populations.base import theta_from_matrix
from envs.offers.twin.hidden_states.fisher_scoring import (
    LEAST_VARIANCE,
    TOLERATED_GAIN,
    Climb,
    ScoreSums,
    climb,
    coefficients,
    in_order,
    scores,
    set_coefficients,
    with_margins,
)
from envs.offers.twin.hidden_states.mixture_filter import MixtureFilter, opted_out_before, panel_weeks, seen_weeks
from envs.offers.twin.hidden_states.random_effects import RandomEffects
from envs.offers.twin.structural_model import ParameterNetwork, parameter_bounds
from envs.offers.world.customers import World
from envs.offers.world.filtering import CHUNK
from envs.offers.world.life_likelihood import margin_log_likelihood

BETAS = (0.9, 0.99)  # of Adam
MAX_GRADIENT_NORM = 1.0
# of a random effect, in prior variances of its parameter: where a fit starts, and the mode of the variance's prior
EXPECTED_VARIANCE = 0.16


class FilterFit:
    """Maximum a posteriori of G and of the variances of random effects.

    Panels are of lives: the state filtered at the end of a season is the start of the next. Adam takes `steps` steps on
    batches of whole lives, which have about the decisions of `batch_size` whole seasons, at a learning rate `lr` that
    falls to 0 by a cosine. Then Fisher scoring climbs to the maximum, in at most `passes` passes over all customers.
    `random_effects` are the parameters that features leave open, each integrated over its number of Gauss–Hermite
    `nodes`. A log without states hardly identifies the parameters `pulled`: the mean over customers of each is drawn to
    the priors' by a penalty of weight `pull` on its square, in prior standard deviations, as `penalty` draws slopes
    to 0.
    """

    def __init__(
        self,
        *,
        steps: int,
        batch_size: int,
        lr: float,
        passes: int,
        random_effects: list[str],
        nodes: list[int],
        pulled: list[str],
        pull: float,
    ):
        self.steps, self.batch_size, self.lr, self.passes = steps, batch_size, lr, passes
        self.random_effects, self.nodes = tuple(random_effects), tuple(nodes)
        self.pulled, self.pull = tuple(pulled), pull
        self.columns: dict[str, list[int]] = {}  #: of each parameter in θ's matrix
        self.start = torch.empty(0)  #: marginals of the state at the start of a life, [14]
        self.bounds = torch.empty(2, 0)  #: of θ's columns, [2, K]
        self.effects: RandomEffects  #: set by `prepare`

    def prepare(self, columns: dict[str, list[int]], start: Tensor) -> None:
        """Take θ's columns and the marginals of a life's start.

        Raises ValueError on unknown parameters, and without as many `nodes` as `random_effects`.
        """
        possible = [name for name in columns if name != "margin"]  # of a margin the likelihood holds the mean alone
        for key, names, those in (("pulled", self.pulled, columns), ("random_effects", self.random_effects, possible)):
            if unknown := set(names) - set(those):
                raise ValueError(
                    f"algo.twin.hidden_states.{key}: no such parameter: {', '.join(sorted(unknown))}; there are "
                    f"{', '.join(those)}"
                )
        different = set(self.random_effects)
        if len(self.nodes) != len(different) or len(different) != len(self.random_effects):
            raise ValueError(
                "algo.twin.hidden_states.nodes: expected one for each of the random_effects, none of them twice; got "
                f"{list(self.nodes)} for {list(self.random_effects)}"
            )
        self.columns, self.start = columns, start
        self.bounds = parameter_bounds(columns).to(start.device)
        nodes = dict(zip(self.random_effects, self.nodes))
        self.effects = RandomEffects.of_parameters(nodes, columns, start)

    def pulled_columns(self) -> list[int]:
        """Return the columns of θ whose means are drawn to the priors'."""
        return [k for name in self.pulled for k in self.columns[name]]

    @property
    def chunk(self) -> int:
        """Number of customers whose nodes are filtered at once."""
        return max(CHUNK // len(self.effects.log_weight), 1)

    def sd_of_columns(self, member: ParameterNetwork, variance: Tensor) -> Tensor:
        """Return the random effects' sds by θ's columns [K], in θ's units; `variance` [E] are of prior variances."""
        sd = variance.sqrt()
        return member.spread * (sd @ self.effects.of_columns.to(sd))

    def mixture(self, world: World, theta: Tensor, effect_sd: Tensor, opted_out: Tensor) -> MixtureFilter:
        """Return the filter of customers θ [N, K] at the start of their lives.

        `effect_sd` [K] or [N, K] are the sds of the random effects by θ's columns, in θ's units.
        """
        at_nodes = self.effects.spread_over(theta, effect_sd, self.bounds)
        customers = world.inhabit(theta_from_matrix(at_nodes))
        return MixtureFilter(customers, world, self.start, opted_out, self.effects.log_weight)

    # ── likelihood ──────────────────────────────────────────────────────────────────────────────────────────────────
    def response_log_likelihoods(
        self, world: World, theta: Tensor, effect_sd: Tensor, panel: Panel, weight: Tensor
    ) -> Tensor:
        """Return the log-likelihood of the responses of customers θ [N, K] in a panel, without margins, [N].

        Weeks of weight 0 do not count, but later weeks are predicted from them too. `effect_sd` is that of `mixture`.
        """
        mixture = self.mixture(world, theta, effect_sd, opted_out_before(panel))
        total = torch.zeros_like(theta[:, 0])
        counted = weight > 0
        for t, week in enumerate(panel_weeks(panel)):
            if not counted[t:].any():
                break
            total = total + torch.where(counted[t], mixture.observe(week), 0.0)
        return total

    def life_log_likelihoods(
        self, world: World, theta: Tensor, effect_sd: Tensor, panel: Panel, weight: Tensor
    ) -> Tensor:
        """Return the log-likelihood of all that a panel shows of customers, margins included, [N]."""
        customers = world.inhabit(theta_from_matrix(theta))
        margins = [
            torch.where(counts > 0, margin_log_likelihood(customers, seen), 0.0)
            for counts, seen in zip(weight, seen_weeks(panel))
        ]
        return self.response_log_likelihoods(world, theta, effect_sd, panel, weight) + sum(margins)

    def scores(
        self, member: ParameterNetwork, effect_sd: Tensor, world: World, panel: Panel, weight: Tensor
    ) -> ScoreSums:
        """Return the customers' scores and their information (envs/offers/twin/hidden_states/fisher_scoring.py)."""
        chunk = max(1, min(self.chunk, self.chunk * world.weeks // len(panel.week)))  # gradients keep all weeks
        likelihood = partial(self.response_log_likelihoods, world)
        found = scores(likelihood, member, effect_sd, self.effects.of_columns, panel, weight, chunk)
        return with_margins(found, member, panel, weight, self.columns["margin"][0])

    @torch.no_grad()
    def log_likelihood(
        self, member: ParameterNetwork, effect_sd: Tensor, world: World, panel: Panel, weight: Tensor
    ) -> Tensor:
        """Return the log-likelihood a decision of a panel under a member, []."""
        total = weight.new_zeros((), dtype=torch.float64)
        for rows in torch.arange(len(panel), device=weight.device).split(self.chunk):
            part = panel[rows]
            total += self.life_log_likelihoods(world, member(part.features.T), effect_sd, part, weight[:, rows]).sum()
        return total / (weight > 0).sum()

    # ── prior ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def prior_precision(self, member: ParameterNetwork, penalty: float) -> Tensor:
        """Return the precision of each coefficient's prior (envs/offers/twin/hidden_states/fisher_scoring.py), [P]."""
        precision = torch.full_like(member.linear.weight, penalty, dtype=torch.float64)
        constant = torch.ones_like(precision[:, :1])  # of the mean: the prior's own
        constant[self.pulled_columns()] = self.pull
        precision = torch.cat((constant, precision), 1)
        precision[member.spread == 0] = 1.0  # left to the priors: no season depends on these
        of_effects = precision.new_ones(len(self.random_effects))  # weak: features leave at most the prior's variance
        return torch.cat((precision.flatten(), of_effects))

    def prior_center(self, member: ParameterNetwork) -> Tensor:
        """Return the middle of each coefficient's prior, [P]."""
        effects = len(self.random_effects)
        center = torch.zeros_like(coefficients(member, member.spread.new_zeros(effects)))
        center[len(center) - effects :] = EXPECTED_VARIANCE
        return center

    def first_variance(self, member: ParameterNetwork, known: bool) -> torch.nn.Parameter:
        """Return the effects' variances [E] at the start of a fit; `known`: the member's own, where it has any."""
        variance = member.spread.new_full((len(self.random_effects),), EXPECTED_VARIANCE)
        for effect, name in enumerate(self.random_effects):
            fitted = [k for k in self.columns[name] if member.effect_sd[k] > 0 and member.spread[k] > 0]
            if known and fitted:  # else the parameter is left to the priors, or had no effect so far
                variance[effect] = (member.effect_sd[fitted[0]] / member.spread[fitted[0]]).square()
        return torch.nn.Parameter(variance.clamp_min(LEAST_VARIANCE))

    # ── fit ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    def fit(
        self,
        member: ParameterNetwork,
        world: World,
        panel: Panel,
        weight: Tensor,
        held_out: Panel,
        held_out_weight: Tensor,
        generator: torch.Generator,
        penalty: float,
        near: ParameterNetwork | None,
    ) -> dict:
        """Fit a member under weights [T, N], one for all weeks of a customer; return metrics.

        `near` was fitted to the same log under other weights: where G is linear, Fisher scoring begins there.
        """
        if ((weight > 0) & (weight != weight.amax(0))).any():
            raise ValueError(
                "algo.weighted=true: a log without states has a likelihood of whole lives, whose weeks have no "
                "weights of their own: expected algo.weighted=false"
            )
        begins_near = near is not None and member.body is None
        if near is not None and begins_near:
            member.load_state_dict(near.state_dict())
        elif not member.starts_warm:
            member.fit_scale(panel.features.T)
        rows = (weight.amax(0) > 0).nonzero()[:, 0]
        panel, weight = panel[rows], weight[:, rows]
        variance = self.first_variance(member, begins_near or member.starts_warm)
        if not begins_near:
            self.come_near(member, variance, world, panel, weight, generator, penalty)

        def scores_at(at: Tensor) -> ScoreSums:
            set_coefficients(member, variance, at)
            return self.scores(member, self.sd_of_columns(member, variance.detach()), world, panel, weight)

        prior, center = self.prior_precision(member, penalty), self.prior_center(member)
        at = coefficients(member, variance)
        end = climb(scores_at, at, prior, center, num_effects=len(self.random_effects), passes=self.passes)
        warn_below_maximum(end)
        set_coefficients(member, variance, end.at)
        member.effect_sd.copy_(self.sd_of_columns(member, variance.detach()))
        held_out_likelihood = self.log_likelihood(member, member.effect_sd, world, held_out, held_out_weight)
        return {
            "twin/held_out": held_out_likelihood,
            **self.effect_metrics(member),
            "twin/passes": end.passes,
            "twin/gain": end.gain,
        }

    def effect_metrics(self, member: ParameterNetwork) -> dict[str, Tensor]:
        """Return the sd of each random effect in θ's units; of a parameter with several columns, of the first."""
        return {f"twin/{name}_sd": member.effect_sd[self.columns[name]][0].clone() for name in self.random_effects}

    def come_near(
        self,
        member: ParameterNetwork,
        variance: torch.nn.Parameter,
        world: World,
        panel: Panel,
        weight: Tensor,
        generator: torch.Generator,
        penalty: float,
    ) -> None:
        """Take Adam's steps, which come near the maximum."""
        prior, center = self.prior_precision(member, penalty), self.prior_center(member)
        times, total = weight.amax(0), weight.sum()
        optimizer = torch.optim.Adam([*member.parameters(), variance], lr=self.lr, betas=BETAS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        length = panel.logged.sum(0).float().mean().item()  # of a life
        rows = torch.arange(len(panel), device=weight.device)
        batches = shuffled_batches(rows, max(1, round(self.batch_size * world.weeks / length)), generator)
        for _ in range(self.steps):
            batch = next(batches)
            part, counts = panel[batch], weight[:, batch]
            optimizer.zero_grad(set_to_none=True)
            theta, effect_sd = member(part.features.T), self.sd_of_columns(member, variance)
            likelihood = self.life_log_likelihoods(world, theta, effect_sd, part, counts)
            squares = (prior * (in_order(member, variance) - center).square()).sum()
            if member.body is not None:
                squares = squares + penalty * sum(p.square().sum() for p in member.body.parameters())
            (0.5 * squares / total - (likelihood * times[batch]).sum() / counts.sum()).backward()
            torch.nn.utils.clip_grad_norm_([*member.parameters(), variance], MAX_GRADIENT_NORM)
            optimizer.step()
            with torch.no_grad():
                variance.clamp_(min=LEAST_VARIANCE)
            schedule.step()


def warn_below_maximum(end: Climb) -> None:
    """Print a warning where the passes ran out before the maximum."""
    if not end.gain < TOLERATED_GAIN:
        print(
            f"warning: algo.twin.hidden_states.passes={end.passes} ended a fit below its maximum: a whole step "
            f"promises a gain of {end.gain:.3g} in log-posterior density, expected less than {TOLERATED_GAIN:g}",
            file=sys.stderr,
        )


def shuffled_batches(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of rows without end, each row once a pass."""
    while True:
        yield from rows[torch.randperm(len(rows), generator=generator, device=rows.device)].split(size)
