"""Models of a week's outcomes given network inputs: P(trip), P(redeemed), churn, opt-out, margin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs.offers.twin.feature_network import FeatureNetwork, weight_decay_groups
from envs.offers.world.catalogue import Catalogue
from rlcore.ope.outcome_models import fit_sgd
from rlcore.uplift.fitted_models import Monotone
from rlcore.uplift.meta_learners import MetaLearner

TRIP, REDEEM = 0, 1
MIN_PROBABILITY = 1e-6


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for the initial weights of a network."""
    return int(torch.randint(2**31, (1,), generator=generator, device=generator.device))


# ── trips and redemptions ───────────────────────────────────────────────────────────────────────────────────────────
class ExposureResponse(nn.Module):
    """P(trip) and P(redeemed) of every treatment, inputs [B, D] → [B, A, 2], by an exposure model.

    A message is seen with a probability of its channel. A message that is not seen changes nothing. A message that is
    seen shifts the logit of a trip by the customer's own level and slope along a scale of the offers, and a share of
    the trips redeems.
    """

    def __init__(self, inputs: int, catalogue: Catalogue, hidden: list[int]):
        super().__init__()
        self.sizes = 1, len(catalogue.channels), 1, 1, 1  # trip, seen by channel, level, slope, redeem
        self.network = FeatureNetwork(inputs, sum(self.sizes), hidden)
        scale = torch.log1p(catalogue.value[1:].float())
        self.offers = nn.Parameter(
            (scale - scale.mean()) / scale.std().clamp_min(1e-3) if len(scale) > 1 else 0 * scale
        )

    def forward(self, inputs: Tensor) -> Tensor:
        base, seen, level, slope, redeem = self.network(inputs).split(self.sizes, 1)
        p0 = torch.sigmoid(base)  # P(trip | nothing seen), [B, 1]
        q = torch.sigmoid(seen)[:, None]  # P(seen), [B, 1, C]
        p1 = torch.sigmoid(base + level + slope * self.offers)[:, :, None]  # P(trip | offer seen), [B, O, 1]
        trip_seen = q * p1
        mu = torch.sigmoid(redeem)[:, :, None]  # P(redeem | trip, seen)
        # [B, O·C, 2]
        contacts = torch.stack((trip_seen + (1 - q) * p0[:, :, None], trip_seen * mu), -1).flatten(1, 2)
        nothing = torch.stack((p0, torch.zeros_like(p0)), -1)
        return torch.cat((nothing, contacts), 1)


class ExposureLikelihood:
    """Fits ExposureResponse by maximum likelihood of a decision's outcome: no trip, a trip, a trip with redemption."""

    def __init__(
        self, catalogue: Catalogue, *, hidden: list[int], lr: float, decay: float, steps: int, batch_size: int
    ):
        self.catalogue, self.hidden, self.lr, self.decay = catalogue, hidden, lr, decay
        self.steps, self.batch_size = steps, batch_size

    def empty(self, inputs: int) -> ExposureResponse:
        """Build an unfitted model, for a state to be loaded into."""
        return ExposureResponse(inputs, self.catalogue, self.hidden)

    def __call__(
        self,
        inputs: Tensor,
        treatment: Tensor,
        outcome: Tensor,
        generator: torch.Generator,
        propensity: Tensor | None,
        cluster: Tensor,
    ) -> ExposureResponse:
        """Fit to (trip, redeemed) [B, 2] of treatments [B]; propensities and clusters are not used."""
        torch.manual_seed(draw_seed(generator))
        model = self.empty(inputs.shape[1]).to(inputs)
        model.network.fit_scale(inputs)
        with torch.no_grad():
            model.network.linear.bias[0] = torch.logit(outcome[:, TRIP].mean().clamp(0.01, 0.99))

        def loss() -> Tensor:
            rows = torch.randint(len(inputs), (self.batch_size,), generator=generator, device=inputs.device)
            response = model(inputs[rows])
            taken = response[torch.arange(len(rows), device=rows.device), treatment[rows]]
            return -response_log_prob(taken, outcome[rows]).mean()

        fit_sgd(weight_decay_groups(model), loss, self.lr, self.decay, self.steps)
        return model


def response_log_prob(p: Tensor, outcome: Tensor) -> Tensor:
    """Return log P [B] of (trip, redeemed) [B, 2], 0 or 1, under P(trip), P(redeemed) [B, 2]."""
    trip, redeem = p.unbind(-1)
    p_outcome = torch.where(
        outcome[..., REDEEM] > 0, redeem, torch.where(outcome[..., TRIP] > 0, trip - redeem, 1 - trip)
    )
    return p_outcome.clamp_min(MIN_PROBABILITY).log()


class MetaLearnerResponse:
    """Fits P(trip), P(redeemed) of every treatment by a meta-learner of effects (rlcore/uplift/meta_learners.py)."""

    def __init__(self, catalogue: Catalogue, *, learner: MetaLearner):
        self.learner, self.treatments = learner, catalogue.action_codec.num_treatments

    def empty(self, inputs: int) -> nn.Module:
        """Build an unfitted model, for a state to be loaded into."""
        return self.learner.empty(inputs, self.treatments, 2)

    def __call__(
        self,
        inputs: Tensor,
        treatment: Tensor,
        outcome: Tensor,
        generator: torch.Generator,
        propensity: Tensor | None,
        cluster: Tensor,
    ) -> nn.Module:
        """Fit to (trip, redeemed) [B, 2] of treatments [B]."""
        return self.learner(
            inputs, treatment, outcome, self.treatments, generator, propensity=propensity, cluster=cluster
        )


class ValidProbabilities(nn.Module):
    """Makes any model's outputs [B, A, 2] probabilities: in [0, 1], no redemption without a trip, none of treatment 0.

    Where `monotone_order` lists treatments, the probabilities grow along each list.
    """

    def __init__(self, inner: nn.Module, monotone_order: list[list[int]]):
        super().__init__()
        self.inner = Monotone(inner, monotone_order, [TRIP, REDEEM]) if monotone_order else inner

    def forward(self, inputs: Tensor) -> Tensor:
        trip, redeem = self.inner(inputs).unbind(-1)
        trip = trip.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        redeem = torch.minimum(redeem.clamp_min(0.0), trip)
        redeem = torch.cat((torch.zeros_like(redeem[:, :1]), redeem[:, 1:]), 1)
        return torch.stack((trip, redeem), -1)


# ── churn, opt-out and margin ───────────────────────────────────────────────────────────────────────────────────────
class OutcomeRows(NamedTuple):
    """Decisions and outcomes of B customers in a week each, [B] each."""

    treatment: Tensor  # int64
    channel: Tensor  # int64
    contacted: Tensor  # bool
    bought: Tensor  # bool
    redeemed: Tensor  # bool
    churned: Tensor  # bool
    opted_out: Tensor  # bool
    margin: Tensor  # money, 0 without a trip

    def take(self, rows: Tensor) -> OutcomeRows:
        """Take some of the rows."""
        return OutcomeRows(*(x[rows] for x in self))


class OtherOutcomes(nn.Module):
    """P(churn) without and with a trip [B, 2], P(opt-out) by channel [B, C], margin of a trip [B], of inputs [B, D]."""

    def __init__(self, inputs: int, channels: int, hidden: list[int]):
        super().__init__()
        self.network = FeatureNetwork(inputs, 3, hidden)  # logits of churn and opt-out, logarithm of the margin
        self.bought = nn.Parameter(torch.zeros(1))  # shifts the logit of churn
        self.channels = nn.Parameter(torch.zeros(channels))  # shift the logit of opt-out

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        churn, opt_out, log_margin = self.network(inputs).split(1, 1)
        p_churn = torch.sigmoid(torch.cat((churn, churn + self.bought), 1))
        return p_churn, torch.sigmoid(opt_out + self.channels), log_margin[:, 0].exp()


class OtherOutcomesLikelihood:
    """Fits OtherOutcomes by maximum likelihood; a margin y is scored as a Gamma of shape 1, −log g − y/g."""

    def __init__(self, channels: int, *, hidden: list[int], lr: float, decay: float, steps: int, batch_size: int):
        self.channels, self.hidden, self.lr, self.decay = channels, hidden, lr, decay
        self.steps, self.batch_size = steps, batch_size

    def empty(self, inputs: int) -> OtherOutcomes:
        """Build an unfitted model, for a state to be loaded into."""
        return OtherOutcomes(inputs, self.channels, self.hidden)

    def __call__(self, inputs: Tensor, rows: OutcomeRows, generator: torch.Generator) -> OtherOutcomes:
        """Fit to the outcomes of B weeks."""
        torch.manual_seed(draw_seed(generator))
        model = self.empty(inputs.shape[1]).to(inputs)
        model.network.fit_scale(inputs)
        contacted = rows.contacted & ~rows.churned
        opted_out = rows.opted_out[contacted].float() if contacted.any() else inputs.new_zeros(1)
        churn_logit, opt_out_logit = (torch.logit(x.mean().clamp(1e-6, 0.5)) for x in (rows.churned.float(), opted_out))
        log_margin = rows.margin[rows.bought].mean().clamp_min(MIN_PROBABILITY).log()
        with torch.no_grad():
            model.network.linear.bias.copy_(torch.stack((churn_logit, opt_out_logit, log_margin)))

        def loss() -> Tensor:
            batch = torch.randint(len(inputs), (self.batch_size,), generator=generator, device=inputs.device)
            found = other_outcomes_log_prob(model(inputs[batch]), rows.take(batch))
            churn, opt_out, margin = (x.mean() for x in found.values())
            return -(churn + opt_out + margin)

        fit_sgd(weight_decay_groups(model), loss, self.lr, self.decay, self.steps)
        return model


def other_outcomes_log_prob(predicted: tuple[Tensor, Tensor, Tensor], rows: OutcomeRows) -> dict[str, Tensor]:
    """Return the log-likelihood [B] by kind of outcome, under the predictions of OtherOutcomes."""
    churn, opt_out, margin = predicted
    p_churn = churn.gather(1, rows.bought.long()[:, None])[:, 0].clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    p_opt_out = opt_out.gather(1, rows.channel[:, None])[:, 0].clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    can_opt_out = rows.contacted & ~rows.churned
    return {
        "churn": torch.where(rows.churned, p_churn, 1 - p_churn).log(),
        "opt_out": torch.where(can_opt_out, torch.where(rows.opted_out, p_opt_out, 1 - p_opt_out).log(), 0.0),
        "margin": torch.where(rows.bought, -margin.log() - rows.margin / margin, 0.0),
    }
