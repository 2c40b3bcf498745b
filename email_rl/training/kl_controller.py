"""The coefficient of the KL penalty: fixed, or steered towards a target."""

from __future__ import annotations

import torch
from torch import Tensor


class FixedKLCoefficient:
    """Keep the coefficient at `coef`."""

    def __init__(self, device: torch.device, *, coef: float):
        self.coef = torch.tensor(float(coef), device=device)

    def update(self, kl: Tensor, mails: int) -> None:
        """Leave the coefficient unchanged."""


class AdaptiveKLCoefficient:
    """Raise the coefficient where the KL of a mail is above the target, lower it below (Ziegler et al. 2019, eq. 4).

    β ← β · (1 + n/horizon · clip(KL/target_kl − 1, ±error_clip)), KL in nats a mail, after n mails.
    """

    def __init__(self, device: torch.device, *, coef: float, target_kl: float, horizon: int, error_clip: float):
        self.coef = torch.tensor(float(coef), device=device)
        self.target_kl, self.horizon, self.error_clip = target_kl, horizon, error_clip

    def update(self, kl: Tensor, mails: int) -> None:
        """Update the coefficient by the KL to the reference of the last `mails` mails, nats a mail."""
        error = (kl / self.target_kl - 1).clamp(-self.error_clip, self.error_clip)
        self.coef.mul_(1 + error * mails / self.horizon)
