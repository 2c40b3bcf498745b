"""Whether a decision brings a trip and a redemption: a model of few parameters, for effects are small beside chance."""
from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from envs.offers.world.catalogue import ActionCodec
from rlcore.networks import mlp
from rlcore.ope.outcome_models import CHUNK, descend

NONE, TRIP, REDEEMED = range(3)  # what comes of a decision
LEAST = 1e-6  # probability whose logarithm is taken


def seen(logits: Tensor, offer: Tensor, channel: Tensor, nvec: tuple[int, int]) -> Tensor:
    """Probabilities [B, 3] of no trip, a trip, a trip with a redemption, from logits [B, 2 + channels + offers].

    A message is seen with probability q of its channel. Who has not seen one, or was sent nothing, makes a trip with
    probability p0; who has, with p1 of the offer, and then redeems with probability μ.
    """
    offers, channels = nvec
    base, redeem, attention, lift = logits.split((1, 1, channels, offers), 1)
    q = torch.where(offer > 0, torch.sigmoid(attention.gather(1, channel[:, None])[:, 0]), 0.0)
    p0, mu = torch.sigmoid(base[:, 0]), torch.sigmoid(redeem[:, 0])
    p1 = torch.sigmoid(base[:, 0] + lift.gather(1, offer[:, None])[:, 0])
    redeemed = q * p1 * mu
    trip = q * p1 * (1 - mu) + (1 - q) * p0
    return torch.stack((1 - redeemed - trip, trip, redeemed), 1)


class Additive(nn.Module):
    """A network of all columns but `moves`, which add to its outputs linearly."""

    def __init__(self, net: nn.Sequential, moves: Tensor):
        super().__init__()
        self.net, self.moves = net, moves
        self.shift = nn.Parameter(torch.zeros(len(moves), net[-1].out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.index_fill(1, self.moves, 0.0)) + x[:, self.moves] @ self.shift


class Likely:
    """Probabilities of what comes of a decision, by cross-entropy on a network's logits of what was observed.

    Who stays (`hazard`) is so learned too: of rare ends, squared errors would tell little.
    """

    def __init__(self, *, hidden: list[int], activation: Callable, lr: float, decay: float, steps: int, batch_size: int):
        self.hidden, self.activation, self.lr, self.decay = hidden, activation, lr, decay
        self.steps, self.batch_size = steps, batch_size

    def response(self, obs: Callable[[Tensor], Tensor], action: Tensor, kind: Tensor, rows: Tensor, nvec: tuple[int, int],
                 moves: Tensor, generator: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
        """Fit `seen` to `rows` of observations, flat actions [N] and what came of them [N]; return probabilities [B, 3] of
        observations and actions. What decisions move, the columns `moves`, shifts logits alike for all: whom it shifts how
        much is lost in noise. Raises ValueError where actions are not offer and channel."""
        if len(nvec) != 2:
            raise ValueError(f"algo.variance_reduction.likely: expected actions of offer and channel, got {tuple(nvec)}")

        codec = ActionCodec(*nvec)

        def probs(logits: Tensor, pair: Tensor) -> Tensor:
            return seen(logits, *codec.decode(pair), nvec)
        return self._fit(obs, action, kind, rows, 2 + sum(nvec), moves, probs, generator)

    def hazard(self, obs: Callable[[Tensor], Tensor], lost: Tensor, rows: Tensor,
               generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Fit who is lost, bool [N], to `rows` of observations; return probabilities [B] of observations."""
        def probs(logits: Tensor, _) -> Tensor:
            p = torch.sigmoid(logits[:, 0] - 3.0)  # rare at the start
            return torch.stack((1 - p, p), 1)
        fitted = self._fit(obs, torch.zeros_like(lost, dtype=torch.long), lost.long(), rows, 1, rows[:0], probs, generator)
        return lambda x: fitted(x, None)[:, 1]

    def _fit(self, obs: Callable, action: Tensor, kind: Tensor, rows: Tensor, outputs: int, moves: Tensor,
             probs: Callable, generator: torch.Generator) -> Callable:
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        some = obs(rows[torch.randint(len(rows), (CHUNK,), generator=generator, device=rows.device)])
        centre, scale = some.mean(0), some.std(0).clamp_min(1e-3)
        net = Additive(mlp([some.shape[1], *self.hidden, outputs], self.activation, 0.01), moves).to(some)

        def loss() -> Tensor:
            at = torch.randint(len(rows), (self.batch_size,), generator=generator, device=rows.device)
            at = rows[at]
            p = probs(net((obs(at) - centre) / scale), action[at])
            return functional.nll_loss(p.clamp_min(LEAST).log(), kind[at])
        descend(net.parameters(), loss, self.lr, self.decay, self.steps)
        return torch.no_grad()(lambda x, pair: probs(net((x - centre) / scale), pair))
