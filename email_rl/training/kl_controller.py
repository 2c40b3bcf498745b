"""The coefficient of the KL penalty: fixed, or steered towards a target KL."""

from __future__ import annotations

import torch
from torch import Tensor


class FixedKLCoefficient:
    """Keep the coefficient at `coef`."""

    def __init__(self, device: torch.device, *, coef: float):
        self.coef = torch.tensor(float(coef), device=device)

    def update(self, kl: Tensor, mails: int) -> None:
        """Leave the coefficient unchanged."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing: a resumed run has the coefficient of its own settings."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore nothing."""


class AdaptiveKLCoefficient:
    """Steer the KL of a mail towards `target_kl`, with a coefficient of at least `coef`.

    After n mails with a mean KL in nats a mail:

        e = clip(KL / target_kl − 1, ±error_clip)
        β ← max(coef, β · (1 + e · n / horizon))           the integral part (Ziegler et al. 2019, eq. 4)
        coefficient = max(coef, β · exp(gain · e))         the proportional part (Stooke et al. 2020)

    The integral part alone sets how fast the KL changes, not the KL, and so swings around the target; the proportional
    part damps the swings. Without the lower bound, β would fall towards 0 while the policy is still on its way from the
    reference to the target, and would be too low on arrival.
    """

    def __init__(
        self, device: torch.device, *, coef: float, target_kl: float, horizon: int, gain: float, error_clip: float
    ):
        self.least = float(coef)
        self.integral = torch.tensor(self.least, device=device)  # β
        self.coef = self.integral.clone()
        self.target_kl, self.horizon, self.gain, self.error_clip = target_kl, horizon, gain, error_clip

    def update(self, kl: Tensor, mails: int) -> None:
        """Update the coefficient by the KL to the reference of the last `mails` mails, nats a mail."""
        error = (kl / self.target_kl - 1).clamp(-self.error_clip, self.error_clip)
        self.integral.mul_(1 + error * mails / self.horizon).clamp_(min=self.least)
        # in place: a captured CUDA graph reads the coefficient at its address
        self.coef.copy_(self.integral * (self.gain * error).exp()).clamp_(min=self.least)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run goes on with."""
        return {"coef": self.coef, "integral": self.integral}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state_dict`; after a fixed coefficient, which has none, begin at `coef`."""
        if state:
            self.coef.copy_(state["coef"])
            self.integral.copy_(state["integral"])
