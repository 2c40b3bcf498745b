"""The weight of the KL penalty: fixed, or steered towards a target."""
from __future__ import annotations

import torch
from torch import Tensor


class Fixed:
    """Keep the weight at `coef`."""

    def __init__(self, device: torch.device, *, coef: float):
        self.coef = torch.tensor(float(coef), device=device)

    def update(self, kl: Tensor, mails: int) -> None:
        """Leave it as it is."""


class Adaptive:
    """Raise the weight where the KL of a mail is above the target, lower it below (Ziegler et al. 2019, eq. 4).

    β ← β · (1 + n/horizon · clip(KL/target − 1, ±bound)), KL in nats a mail, after n mails.
    """

    def __init__(self, device: torch.device, *, coef: float, target: float, horizon: int, bound: float):
        self.coef = torch.tensor(float(coef), device=device)
        self.target, self.horizon, self.bound = target, horizon, bound

    def update(self, kl: Tensor, mails: int) -> None:
        """Steer by the mean KL of `mails` mails."""
        error = (kl / self.target - 1).clamp(-self.bound, self.bound)
        self.coef.mul_(1 + error * mails / self.horizon)
