"""Learning-rate schedules that write into the optimiser's tensor without asking the host."""
from __future__ import annotations

from torch import Tensor


class Linear:
    """Anneal from the first rate to `final` times it over the run."""

    def __init__(self, *, final: float):
        self.final = final

    def __call__(self, lr: Tensor, first: float, progress: float, kl: Tensor) -> None:
        """Set lr for the iteration that starts after a share `progress` of the run; kl is the last iteration's."""
        lr.fill_(first * (1 - (1 - self.final) * progress))


class AdaptiveKL:
    """Divide the rate by `factor` where the KL of an iteration was above twice the target, multiply below half of it."""

    def __init__(self, *, target: float, factor: float, low: float, high: float):
        self.target, self.factor, self.low, self.high = target, factor, low, high

    def __call__(self, lr: Tensor, first: float, progress: float, kl: Tensor) -> None:
        """Set lr from the KL of the last iteration; nan (there was none) leaves it."""
        change = 1 + (kl < self.target / 2) * (self.factor - 1) + (kl > 2 * self.target) * (1 / self.factor - 1)
        lr.mul_(change).clamp_(self.low, self.high)


def warmed(step: int, total: int, warmup: float, final: float) -> float:
    """Return the share of the rate at a step: rising linearly over the share `warmup` of all, then falling to `final`."""
    rise = max(1, round(warmup * total))
    return min(1.0, (step + 1) / rise) if step < rise else 1 - (1 - final) * (step - rise) / max(1, total - rise)
