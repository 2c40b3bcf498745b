"""Whether a decision brings a trip and a redemption: a model of few parameters, for effects are small beside chance."""
from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional

from rlcore.networks import mlp
from rlcore.outcomes import CHUNK, descend

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


class Likely:
    """Probabilities of what comes of a decision, by cross-entropy on a network's logits of what was observed.

    Who stays (`hazard`) is so learned too: of rare ends, squared errors would tell little.
    """

    def __init__(self, *, hidden: list[int], activation: Callable, lr: float, decay: float, steps: int, batch_size: int):
        self.hidden, self.activation, self.lr, self.decay = hidden, activation, lr, decay
        self.steps, self.batch_size = steps, batch_size

    def response(self, obs: Tensor, action: Tensor, kind: Tensor, rows: Tensor, nvec: tuple[int, int],
                 generator: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
        """Fit `seen` to `rows` of observations [N, D], flat actions [N] and what came of them [N]; return probabilities
        [B, 3] of observations and actions. Raises ValueError where actions are not offer and channel."""
        if len(nvec) != 2:
            raise ValueError(f"algo.baseline.likely: expected actions of offer and channel, got {tuple(nvec)}")

        def probs(logits: Tensor, pair: Tensor) -> Tensor:
            return seen(logits, pair // nvec[1], pair % nvec[1], nvec)
        return self._fit(lambda at: obs[at], action, kind, rows, 2 + sum(nvec), probs, generator)

    def hazard(self, obs: Callable[[Tensor], Tensor], lost: Tensor, rows: Tensor,
               generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Fit who is lost, bool [N], to `rows` of observations; return probabilities [B] of observations."""
        def probs(logits: Tensor, _) -> Tensor:
            p = torch.sigmoid(logits[:, 0] - 3.0)  # rare at the start
            return torch.stack((1 - p, p), 1)
        fitted = self._fit(obs, torch.zeros_like(lost, dtype=torch.long), lost.long(), rows, 1, probs, generator)
        return lambda x: fitted(x, None)[:, 1]

    def _fit(self, obs: Callable, action: Tensor, kind: Tensor, rows: Tensor, outputs: int, probs: Callable,
             generator: torch.Generator) -> Callable:
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        some = obs(rows[torch.randint(len(rows), (CHUNK,), generator=generator, device=rows.device)])
        centre, scale = some.mean(0), some.std(0).clamp_min(1e-3)
        net = mlp([some.shape[1], *self.hidden, outputs], self.activation, 0.01).to(some)

        def loss() -> Tensor:
            at = torch.randint(len(rows), (self.batch_size,), generator=generator, device=rows.device)
            at = rows[at]
            p = probs(net((obs(at) - centre) / scale), action[at])
            return functional.nll_loss(p.clamp_min(LEAST).log(), kind[at])
        descend(net.parameters(), loss, self.lr, self.decay, self.steps)
        return torch.no_grad()(lambda x, pair: probs(net((x - centre) / scale), pair))
