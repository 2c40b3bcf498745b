"""What meta-learners fit: modules from observations [B, D] to the outcomes [B, A, K] of all actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlcore.ope.outcome_models import CHUNK

MIN_SHARE = 1e-3  # the least share of an action that the X-learner divides by


class PerArm(nn.Module):
    """A model of its own for each action's outcomes, [B, D] → [B, A, K]."""

    def __init__(self, arms: list[nn.Module]):
        super().__init__()
        self.arms = nn.ModuleList(arms)

    def forward(self, obs: Tensor) -> Tensor:
        outcomes = [arm(obs) for arm in self.arms]
        return torch.cat(outcomes, 1)


class XLearnerModel(nn.Module):
    """The control's outcomes, and effects g·τ₀ + (1 − g)·τ₁ from both imputations (Künzel et al. 2019).

    τ₀ is the effect on untreated units, τ₁ on treated units, g the probability of the action rather than the control.
    """

    def __init__(self, control: nn.Module, treated: nn.Module, untreated: nn.Module, share: nn.Module):
        super().__init__()
        self.control = control
        self.treated = treated
        self.untreated = untreated
        self.share = share

    def forward(self, obs: Tensor) -> Tensor:
        control = self.control(obs)
        treated = self.treated(obs)
        untreated = self.untreated(obs).view_as(treated)
        predicted_share = self.share(obs)[:, 0]
        share = predicted_share.clamp(MIN_SHARE, 1.0)
        action_share = share[:, 1:]
        control_share = share[:, :1]
        g = (action_share / (action_share + control_share))[:, :, None]
        outcomes = control + g * untreated + (1 - g) * treated
        return torch.cat((control, outcomes), 1)


class DRLearnerModel(nn.Module):
    """The control's outcomes, the mean of the folds' models, and the effects on top of them."""

    def __init__(self, models: list[nn.Module], effect: nn.Module):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.effect = effect

    def forward(self, obs: Tensor) -> Tensor:
        control_by_fold = [model(obs)[:, :1] for model in self.models]
        control = torch.stack(control_by_fold).mean(0)
        kinds = control.shape[2]
        effect = self.effect(obs).view(len(obs), -1, kinds)
        return torch.cat((control, control + effect), 1)


def predict_chunked(model: nn.Module, obs: Tensor) -> Tensor:
    """Return the outcomes [N, A, K] of many observations [N, D], CHUNK at a time."""
    chunks = [model(part) for part in obs.split(CHUNK)]
    return torch.cat(chunks)
