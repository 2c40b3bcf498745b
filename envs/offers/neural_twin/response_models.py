"""What customers answer to every action: P(trip) and P(redeemed), from whatever learns them, made valid."""
from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn

from envs.offers.world.catalogue import Catalogue
from rlcore.uplift.meta_learners import Monotone
from rlcore.networks import mlp
from rlcore.normalization import Standardizer
from rlcore.ope.outcome_models import fit_sgd

TRIP, REDEEM = 0, 1
TINY = 1e-6  # the least probability
MIN_STD = 1e-3  # of an input


class Inputs(nn.Module):
    """A linear map of standardised inputs [B, D] and, with `hidden` layers, a network beside it, → [B, size]."""

    def __init__(self, inputs: int, size: int, hidden: list[int]):
        super().__init__()
        self.standardize = Standardizer(inputs, MIN_STD)
        self.linear = nn.Linear(inputs, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.body = mlp([inputs, *hidden, size], nn.Tanh, 0.01) if hidden else None

    def rescale(self, inputs: Tensor) -> None:
        """Take the scale of inputs [B, D]."""
        self.standardize.fit(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        z = self.standardize(inputs)
        return self.linear(z) if self.body is None else self.linear(z) + self.body(z)


def decayed(net: nn.Module) -> list[dict]:
    """Groups of parameters of which weights decay and constants do not: what is rare must not be drawn to a half."""
    return [{"params": [p for p in net.parameters() if p.dim() > 1]},
            {"params": [p for p in net.parameters() if p.dim() < 2], "weight_decay": 0.0}]


class Seen(nn.Module):
    """A message is seen or not: unseen it changes nothing, seen it shifts the logit of a trip, and of the trips a share
    redeems. A shift is a customer's own level and steepness along one scale of the offers."""

    def __init__(self, inputs: int, catalogue: Catalogue, hidden: list[int]):
        super().__init__()
        self.sizes = 1, len(catalogue.channels), 1, 1, 1  # trip, seen by channel, level, steepness, redeem
        self.inner = Inputs(inputs, sum(self.sizes), hidden)
        scale = torch.log1p(catalogue.value[1:].float())
        self.offers = nn.Parameter((scale - scale.mean()) / scale.std().clamp_min(1e-3) if len(scale) > 1 else 0 * scale)

    def forward(self, inputs: Tensor) -> Tensor:
        base, seen, level, steep, redeem = self.inner(inputs).split(self.sizes, 1)
        p0, q = torch.sigmoid(base), torch.sigmoid(seen)[:, None]
        p1 = torch.sigmoid(base + level + steep * self.offers)[:, :, None]
        came, share = q * p1, torch.sigmoid(redeem)[:, :, None]
        contacts = torch.stack((came + (1 - q) * p0[:, :, None], came * share), -1).flatten(1, 2)  # [B, O·C, 2]
        return torch.cat((torch.stack((p0, torch.zeros_like(p0)), -1), contacts), 1)


class Likelihood:
    """Fit `Seen` by maximum likelihood of what came of a decision: nothing, a trip, a trip with a redemption."""

    def __init__(self, catalogue: Catalogue, *, hidden: list[int], lr: float, decay: float, steps: int, batch_size: int):
        self.catalogue, self.hidden, self.lr, self.decay = catalogue, hidden, lr, decay
        self.steps, self.batch_size = steps, batch_size

    def empty(self, inputs: int) -> Seen:
        """Lay out what a fit returns, for a state to be loaded into."""
        return Seen(inputs, self.catalogue, self.hidden)

    def __call__(self, inputs: Tensor, action: Tensor, outcome: Tensor, generator: torch.Generator,
                 propensity: Tensor | None, cluster: Tensor) -> Seen:
        """Fit; propensities and clusters have no part in it."""
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        model = self.empty(inputs.shape[1]).to(inputs)
        model.inner.rescale(inputs)
        with torch.no_grad():
            model.inner.linear.bias[0] = torch.logit(outcome[:, TRIP].mean().clamp(0.01, 0.99))

        def loss() -> Tensor:
            rows = torch.randint(len(inputs), (self.batch_size,), generator=generator, device=inputs.device)
            table = model(inputs[rows])
            return -likelihood(table[torch.arange(len(rows), device=rows.device), action[rows]], outcome[rows]).mean()
        fit_sgd(decayed(model), loss, self.lr, self.decay, self.steps)
        return model


def likelihood(p: Tensor, outcome: Tensor) -> Tensor:
    """log P [B] of (trip, redeemed) [B, 2], 0 or 1, under P(trip), P(redeemed) [B, 2]."""
    trip, redeem = p.unbind(-1)
    came = torch.where(outcome[..., REDEEM] > 0, redeem, torch.where(outcome[..., TRIP] > 0, trip - redeem, 1 - trip))
    return came.clamp_min(TINY).log()


class Effects:
    """Let a learner of effects (rlcore/uplift/meta_learners.py) learn P(trip) and P(redeemed) of every action."""

    def __init__(self, catalogue: Catalogue, *, learner: Callable):
        self.learner, self.actions = learner, catalogue.action_codec.num_treatments

    def empty(self, inputs: int) -> nn.Module:
        """Lay out what a fit returns, for a state to be loaded into."""
        return self.learner.empty(inputs, self.actions, 2)

    def __call__(self, inputs: Tensor, action: Tensor, outcome: Tensor, generator: torch.Generator,
                 propensity: Tensor | None, cluster: Tensor) -> nn.Module:
        """Fit to (trip, redeemed) [B, 2] of actions [B]."""
        return self.learner(inputs, action, outcome, self.actions, generator, propensity=propensity, cluster=cluster)


class Valid(nn.Module):
    """Probabilities whatever was learned: in [0, 1], no redemption without a trip nor of nothing; and, where `chains` of
    actions are given, growing along them."""

    def __init__(self, inner: nn.Module, chains: list[list[int]]):
        super().__init__()
        self.inner = Monotone(inner, chains, [TRIP, REDEEM]) if chains else inner

    def forward(self, inputs: Tensor) -> Tensor:
        trip, redeem = self.inner(inputs).unbind(-1)
        trip = trip.clamp(TINY, 1 - TINY)
        redeem = torch.minimum(redeem.clamp_min(0.0), trip)
        return torch.stack((trip, torch.cat((torch.zeros_like(redeem[:, :1]), redeem[:, 1:]), 1)), -1)


class Rest(nn.Module):
    """What else a week brings: P(churn) without and with a trip, P(opt-out) by channel, and the margin of a trip."""

    def __init__(self, inputs: int, channels: int, hidden: list[int]):
        super().__init__()
        self.inner = Inputs(inputs, 3, hidden)  # churn and opt-out, logits; the margin's logarithm
        self.bought = nn.Parameter(torch.zeros(1))
        self.channels = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        churn, leave, margin = self.inner(inputs).split(1, 1)
        return (torch.sigmoid(torch.cat((churn, churn + self.bought), 1)), torch.sigmoid(leave + self.channels),
                margin[:, 0].exp())


class RestLikelihood:
    """Fit `Rest` by maximum likelihood; a margin y is scored as a Gamma of shape 1, −log g − y/g."""

    def __init__(self, channels: int, *, hidden: list[int], lr: float, decay: float, steps: int, batch_size: int):
        self.channels, self.hidden, self.lr, self.decay = channels, hidden, lr, decay
        self.steps, self.batch_size = steps, batch_size

    def empty(self, inputs: int) -> Rest:
        """Lay out what a fit returns, for a state to be loaded into."""
        return Rest(inputs, self.channels, self.hidden)

    def __call__(self, inputs: Tensor, weeks: dict[str, Tensor], generator: torch.Generator) -> Rest:
        """Fit to what rest_likelihood reads of weeks, [B] each."""
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        model = self.empty(inputs.shape[1]).to(inputs)
        model.inner.rescale(inputs)
        contacted, bought = weeks["contacted"] & ~weeks["churned"], weeks["bought"]
        start = [torch.logit(x.mean().clamp(1e-6, 0.5)) for x in
                 (weeks["churned"].float(), weeks["left"][contacted].float() if contacted.any() else inputs.new_zeros(1))]
        with torch.no_grad():
            model.inner.linear.bias.copy_(torch.stack((*start, weeks["margin"][bought].mean().clamp_min(TINY).log())))

        def loss() -> Tensor:
            rows = torch.randint(len(inputs), (self.batch_size,), generator=generator, device=inputs.device)
            return -sum(x.mean() for x in rest_likelihood(model(inputs[rows]), {k: x[rows] for k, x in weeks.items()}).values())
        fit_sgd(decayed(model), loss, self.lr, self.decay, self.steps)
        return model


def rest_likelihood(told: tuple[Tensor, Tensor, Tensor], weeks: dict[str, Tensor]) -> dict[str, Tensor]:
    """log-likelihood [B] by kind of outcome; weeks: channel, contacted, bought, churned, left, margin [B]."""
    churn, leave, margin = told
    lost = churn.gather(1, weeks["bought"].long()[:, None])[:, 0].clamp(TINY, 1 - TINY)
    out = leave.gather(1, weeks["channel"][:, None])[:, 0].clamp(TINY, 1 - TINY)
    stays = weeks["contacted"] & ~weeks["churned"]
    return {"churn": torch.where(weeks["churned"], lost, 1 - lost).log(),
            "opt_out": torch.where(stays, torch.where(weeks["left"], out, 1 - out).log(), 0.0),
            "margin": torch.where(weeks["bought"], -margin.log() - weeks["margin"] / margin, 0.0)}
