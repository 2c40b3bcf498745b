"""Models of the outcome of a decision (no trip, a trip, a trip with a redemption), by maximum likelihood.

The models have few parameters, because effects are small compared with chance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from envs.offers.world.catalogue import ActionCodec
from rlcore.networks import mlp
from rlcore.normalization import Standardizer
from rlcore.ope.outcome_models import CHUNK, fit_sgd

NONE, TRIP, REDEEMED = range(3)  # outcomes of a decision
MIN_PROBABILITY = 1e-6  # lower bound before a logarithm
MIN_STD = 1e-3
RARE_LOGIT = -3.0  # hazards start low


def exposure_response(logits: Tensor, offer: Tensor, channel: Tensor, nvec: tuple[int, int]) -> Tensor:
    """Probabilities [B, 3] of no trip, a trip, a trip with a redemption, from logits [B, 2 + channels + offers].

    This is an exposure model: a message is seen with probability q of its channel. A customer who saw no message makes
    a trip with probability p0. A customer who saw a message makes a trip with probability p1 of the offer, and then
    redeems with probability μ.
    """
    offers, channels = nvec
    base, redeem, attention, lift = logits.split((1, 1, channels, offers), 1)
    q = torch.where(offer > 0, torch.sigmoid(attention.gather(1, channel[:, None])[:, 0]), 0.0)
    p0, mu = torch.sigmoid(base[:, 0]), torch.sigmoid(redeem[:, 0])
    p1 = torch.sigmoid(base[:, 0] + lift.gather(1, offer[:, None])[:, 0])
    redeemed = q * p1 * mu
    trip = q * p1 * (1 - mu) + (1 - q) * p0
    return torch.stack((1 - redeemed - trip, trip, redeemed), 1)


class PartiallyLinear(nn.Module):
    """A network of all columns but `linear`; the columns `linear` shift the network's outputs linearly."""

    def __init__(self, net: nn.Module, outputs: int, linear: Tensor):
        super().__init__()
        self.net, self.linear = net, linear
        self.shift = nn.Parameter(torch.zeros(len(linear), outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.index_fill(1, self.linear, 0.0)) + x[:, self.linear] @ self.shift


class OutcomeLikelihood:
    """Fits probabilities of a decision's outcomes by cross-entropy on a network's logits of observations.

    Hazards (the probability that a customer is lost) are fitted in the same way, because squared errors say little
    about rare events.
    """

    def __init__(
        self, *, hidden: list[int], activation: Callable, lr: float, decay: float, steps: int, batch_size: int
    ):
        self.hidden, self.activation, self.lr, self.decay = hidden, activation, lr, decay
        self.steps, self.batch_size = steps, batch_size

    def fit_response(
        self,
        obs: Callable[[Tensor], Tensor],
        action: Tensor,
        kind: Tensor,
        rows: Tensor,
        nvec: tuple[int, int],
        contact_columns: Tensor,
        generator: torch.Generator,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Fit `exposure_response` to `rows` of observations, flat actions [N] and outcomes [N].

        Returns probabilities [B, 3] as a function of observations and actions.

        `contact_columns` of the observations shift the logits of all customers alike, because noise hides differences
        between customers. Raises ValueError where actions are not offer and channel.
        """
        if len(nvec) != 2:
            raise ValueError(
                f"algo.variance_reduction.likelihood: expected actions of offer and channel, got {tuple(nvec)}"
            )
        codec = ActionCodec(*nvec)

        def probs(logits: Tensor, pair: Tensor) -> Tensor:
            return exposure_response(logits, *codec.decode(pair), nvec)

        return self._fit(obs, action, kind, rows, 2 + sum(nvec), contact_columns, probs, generator)

    def fit_hazard(
        self, obs: Callable[[Tensor], Tensor], lost: Tensor, rows: Tensor, generator: torch.Generator
    ) -> Callable[[Tensor], Tensor]:
        """Fit who is lost, bool [N], to `rows` of observations; return a function from observations to P [B]."""

        def probs(logits: Tensor, _) -> Tensor:
            p = torch.sigmoid(logits[:, 0] + RARE_LOGIT)
            return torch.stack((1 - p, p), 1)

        fitted = self._fit(
            obs, torch.zeros_like(lost, dtype=torch.long), lost.long(), rows, 1, rows[:0], probs, generator
        )
        return lambda x: fitted(x, None)[:, 1]

    def _fit(
        self,
        obs: Callable,
        action: Tensor,
        kind: Tensor,
        rows: Tensor,
        outputs: int,
        linear: Tensor,
        probs: Callable,
        generator: torch.Generator,
    ) -> Callable:
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        sample = obs(rows[torch.randint(len(rows), (CHUNK,), generator=generator, device=rows.device)])
        standardize = Standardizer(sample.shape[1], MIN_STD).fit(sample)
        perceptron = mlp([sample.shape[1], *self.hidden, outputs], self.activation, 0.01)
        net = PartiallyLinear(perceptron, outputs, linear).to(sample)

        def loss() -> Tensor:
            at = torch.randint(len(rows), (self.batch_size,), generator=generator, device=rows.device)
            at = rows[at]
            p = probs(net(standardize(obs(at))), action[at])
            return functional.nll_loss(p.clamp_min(MIN_PROBABILITY).log(), kind[at])

        fit_sgd(net.parameters(), loss, self.lr, self.decay, self.steps)
        return torch.no_grad()(lambda x, pair: probs(net(standardize(x)), pair))
