"""Fit θ = G(x) to a log without states: the filter's likelihood of what was seen, by Adam and then Fisher scoring."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.populations.base import theta_from_matrix
from envs.offers.twin.hidden_states.fisher_scoring import (
    Scores,
    coefficients,
    scores,
    scoring_step,
    set_coefficients,
    with_margins,
)
from envs.offers.twin.hidden_states.mixture_filter import MixtureFilter, opted_out_before, panel_weeks, seen_weeks
from envs.offers.twin.structural_model import ParameterNetwork
from envs.offers.world.customers import World
from envs.offers.world.filtering import CHUNK
from envs.offers.world.life_likelihood import margin_log_likelihood

BETAS = (0.9, 0.99)  # of Adam
MAX_GRADIENT_NORM = 1.0
FIRST_SD = 0.4  # of the random effect, in prior standard deviations of α
LEAST_SD = 0.01  # of the random effect where a fit goes on from another, in the same unit
STEP_LENGTHS = (1.0, 0.5, 0.25)  # tried in turn, until the likelihood of held-out customers grows


class FilterFit:
    """Maximum a posteriori of G and of α's random effect.

    Panels are of lives: the state filtered at the end of a season is the start of the next. Adam takes `steps` steps on
    batches of whole lives, which have about the decisions of `batch_size` whole seasons, at a learning rate `lr` that
    falls to 0 by a cosine. Then come steps of Fisher scoring, on the `shares` of customers. α is integrated over
    `nodes` Gauss–Hermite nodes (1: features determine α). A log without states hardly identifies the parameters
    `pulled`: the mean over customers of each is drawn to the priors' by a penalty of weight `pull` on its square, in
    prior standard deviations, as `penalty` draws slopes to 0.
    """

    def __init__(
        self,
        *,
        steps: int,
        batch_size: int,
        lr: float,
        shares: list[float],
        nodes: int,
        pulled: list[str],
        pull: float,
    ):
        self.steps, self.batch_size, self.lr, self.shares = steps, batch_size, lr, shares
        self.nodes, self.pulled, self.pull = nodes, tuple(pulled), pull
        self.columns: dict[str, list[int]] = {}  #: of each parameter in θ's matrix
        self.start = torch.empty(0)  #: marginals of the state at the start of a life, [14]

    def prepare(self, columns: dict[str, list[int]], start: Tensor) -> None:
        """Take θ's columns and the marginals of a life's start. Raises ValueError on unknown parameters."""
        if unknown := set(self.pulled) - set(columns):
            raise ValueError(
                f"algo.twin.hidden_states.pulled: no such parameter: {', '.join(sorted(unknown))}; there are "
                f"{', '.join(columns)}"
            )
        self.columns, self.start = columns, start

    def pulled_columns(self) -> list[int]:
        """Return the columns of θ whose means are drawn to the priors'."""
        return [k for name in self.pulled for k in self.columns[name]]

    @property
    def chunk(self) -> int:
        """Number of customers whose nodes are filtered at once."""
        return max(CHUNK // self.nodes, 1)

    # ── likelihood ──────────────────────────────────────────────────────────────────────────────────────────────────
    def response_log_likelihoods(
        self, world: World, theta: Tensor, alpha_sd: Tensor, panel: Panel, weight: Tensor
    ) -> Tensor:
        """Return the log-likelihood of the responses of customers θ [N, K] in a panel, without margins, [N].

        Weeks of weight 0 do not count, but later weeks are predicted from them too. `alpha_sd` [] or [N] is the sd of α
        about its place in θ.
        """
        customers = world.inhabit(theta_from_matrix(theta))
        mixture = MixtureFilter(customers, world, self.start, opted_out_before(panel), alpha_sd, self.nodes)
        total = torch.zeros_like(customers.alpha)
        counted = weight > 0
        for t, week in enumerate(panel_weeks(panel)):
            if not counted[t:].any():
                break
            total = total + torch.where(counted[t], mixture.observe(week), 0.0)
        return total

    def life_log_likelihoods(
        self, world: World, theta: Tensor, alpha_sd: Tensor, panel: Panel, weight: Tensor
    ) -> Tensor:
        """Return the log-likelihood of all that a panel shows of customers, margins included, [N]."""
        customers = world.inhabit(theta_from_matrix(theta))
        margins = [
            torch.where(counts > 0, margin_log_likelihood(customers, seen), 0.0)
            for counts, seen in zip(weight, seen_weeks(panel))
        ]
        return self.response_log_likelihoods(world, theta, alpha_sd, panel, weight) + sum(margins)

    def scores(self, member: ParameterNetwork, sd: Tensor, world: World, panel: Panel, weight: Tensor) -> Scores:
        """Return the customers' scores and their information (envs/offers/twin/hidden_states/fisher_scoring.py)."""
        chunk = max(1, min(self.chunk, self.chunk * world.weeks // len(panel.week)))  # gradients keep all weeks
        found = scores(partial(self.response_log_likelihoods, world), member, sd, panel, weight, chunk)
        return with_margins(found, member, panel, weight, self.columns["margin"][0])

    @torch.no_grad()
    def log_likelihood(
        self, member: ParameterNetwork, sd: Tensor, world: World, panel: Panel, weight: Tensor
    ) -> Tensor:
        """Return the log-likelihood a decision of a panel under a member, []."""
        total = weight.new_zeros((), dtype=torch.float64)
        for rows in torch.arange(len(panel), device=weight.device).split(self.chunk):
            part = panel[rows]
            total += self.life_log_likelihoods(world, member(part.features.T), sd, part, weight[:, rows]).sum()
        return total / (weight > 0).sum()

    # ── prior ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def prior_precision(self, member: ParameterNetwork, penalty: float) -> Tensor:
        """Return the precision of each coefficient's prior (envs/offers/twin/hidden_states/fisher_scoring.py), [P]."""
        precision = torch.full_like(member.linear.weight, penalty, dtype=torch.float64)
        constant = torch.ones_like(precision[:, :1])  # of the mean: the prior's own, which any log outweighs
        constant[self.pulled_columns()] = self.pull
        precision = torch.cat((constant, precision), 1)
        precision[member.spread == 0] = 1.0  # left to the priors: no season depends on these
        return torch.cat((precision.flatten(), precision.new_ones(1)))  # a weak one of the sd, which may be near 0

    def prior_center(self, member: ParameterNetwork) -> Tensor:
        """Return the middle of each coefficient's prior, [P]."""
        center = torch.zeros_like(coefficients(member, member.spread.new_zeros(())))
        center[-1] = math.log(FIRST_SD)
        return center

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
    ) -> dict:
        """Fit a member under weights [T, N], one for all weeks of a customer; return metrics."""
        times = weight.amax(0)
        if ((weight > 0) & (weight != times)).any():
            raise ValueError(
                "algo.weighted=true: a log without states has a likelihood of whole lives, whose weeks have no "
                "weights of their own: expected algo.weighted=false"
            )
        if not member.starts_warm:
            member.fit_scale(panel.features.T)
        alpha_spread = member.spread[self.columns["alpha"][0]]
        first_sd = member.spread.new_tensor(FIRST_SD)  # in prior standard deviations
        if member.starts_warm and alpha_spread > 0:  # 0: α is left to the priors
            first_sd = (member.alpha_sd / alpha_spread).clamp_min(LEAST_SD)
        log_sd = torch.nn.Parameter(first_sd.log())
        prior, center = self.prior_precision(member, penalty), self.prior_center(member)
        rows = (times > 0).nonzero()[:, 0]

        # 1. Adam comes near the maximum.
        optimizer = torch.optim.Adam([*member.parameters(), log_sd], lr=self.lr, betas=BETAS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        length = panel.logged[:, rows].sum(0).float().mean().item()  # of a life
        batches = shuffled_batches(rows, max(1, round(self.batch_size * world.weeks / length)), generator)
        total = weight.sum()
        for _ in range(self.steps):
            batch = next(batches)
            part, counts = panel[batch], weight[:, batch]
            optimizer.zero_grad(set_to_none=True)
            theta, sd = member(part.features.T), alpha_spread * log_sd.exp()
            likelihood = self.life_log_likelihoods(world, theta, sd, part, counts)
            linear = torch.cat((member.linear.bias[:, None], member.linear.weight), 1).flatten()
            far = torch.cat((linear, log_sd.view(1))) - center
            squares = (prior * far.square()).sum()
            if member.body is not None:
                squares = squares + penalty * sum(p.square().sum() for p in member.body.parameters())
            (0.5 * squares / total - (likelihood * times[batch]).sum() / counts.sum()).backward()
            torch.nn.utils.clip_grad_norm_([*member.parameters(), log_sd], MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()

        # 2. Fisher scoring reaches it.
        held_out_likelihood = partial(self.log_likelihood, world=world, panel=held_out, weight=held_out_weight)
        best = held_out_likelihood(member, alpha_spread * log_sd.exp())
        for share in self.shares:
            some = rows[torch.randperm(len(rows), generator=generator, device=rows.device)[: round(share * len(rows))]]
            sd, at = alpha_spread * log_sd.detach().exp(), coefficients(member, log_sd)
            found = self.scores(member, sd, world, panel[some], weight[:, some])
            found = Scores(*(x * (len(rows) / len(some)) for x in found))
            step = scoring_step(found, at, prior, center)
            for length in STEP_LENGTHS:
                set_coefficients(member, log_sd, at + length * step)
                likelihood = held_out_likelihood(member, alpha_spread * log_sd.exp())
                if likelihood >= best:
                    best = likelihood
                    break
            else:
                set_coefficients(member, log_sd, at)
        member.alpha_sd.copy_(alpha_spread * log_sd.detach().exp() * (self.nodes > 1))  # one node: features tell α
        return {"twin/held_out": best, "twin/alpha_sd": member.alpha_sd.clone()}


def shuffled_batches(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of rows without end, each row once a pass."""
    while True:
        yield from rows[torch.randperm(len(rows), generator=generator, device=rows.device)].split(size)
