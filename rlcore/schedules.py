"""Learning-rate schedules that write into the optimiser's tensor without asking the host."""

from __future__ import annotations

import torch
from torch import Tensor


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict, lr: Tensor, fixed_lr: float | None) -> None:
    """Load what an optimiser has accumulated, such as moments.

    The optimiser's options stay those it was made with: a resumed run may change them. So the tensor `lr` takes the
    rate `fixed_lr` of a run without a schedule; with a schedule (None) it takes the saved rate, which a schedule may go
    on from.
    """
    lr.copy_(torch.as_tensor(state["param_groups"][0]["lr"] if fixed_lr is None else fixed_lr))
    options = [{name: x for name, x in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, own in zip(optimizer.param_groups, options):
        group.update(own)  # load_state_dict copies: schedules write into the tensor `lr` itself


class LinearDecay:
    """Anneal from the first rate to `final` times it over the run."""

    def __init__(self, *, final: float):
        self.final = final

    def __call__(self, lr: Tensor, first: float, progress: float, kl: Tensor) -> None:
        """Set lr for the iteration that starts after a share `progress` of the run; kl is the last iteration's."""
        share = 1 - (1 - self.final) * progress
        lr.fill_(first * share)


class AdaptiveKL:
    """Divide the rate by `factor` where the KL was above twice the target, multiply it where the KL was below half.

    The thresholds of rsl_rl's `schedule="adaptive"`, applied once an iteration; the rate stays between `low` and
    `high`. Raises ValueError where these are the wrong way round.
    """

    def __init__(self, *, target: float, factor: float, low: float, high: float):
        if low > high:
            raise ValueError(f"algo.lr_schedule.low: expected at most algo.lr_schedule.high, {high}, got {low}")
        self.target = target
        self.factor = factor
        self.low = low
        self.high = high

    def __call__(self, lr: Tensor, first: float, progress: float, kl: Tensor) -> None:
        """Set lr from the KL of the last iteration; nan (there was none) leaves it."""
        is_low = kl < self.target / 2
        is_high = kl > 2 * self.target
        increase = is_low * (self.factor - 1)
        decrease = is_high * (1 / self.factor - 1)
        lr.mul_(1 + increase + decrease)
        lr.clamp_(self.low, self.high)


def linear_with_warmup(step: int, total: int, warmup: float, final: float) -> float:
    """Return the share of the rate at a step of `total`: a linear rise to 1, then a linear decay to `final`.

    warmup: share of all steps in which the rate rises.
    """
    warmup_steps = max(1, round(warmup * total))
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    decay_steps = max(1, total - warmup_steps)
    return 1 - (1 - final) * (step - warmup_steps) / decay_steps
