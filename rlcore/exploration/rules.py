"""Rules of exploration as pure functions of scores: the probabilities from which actions are drawn.

Scores and probabilities are [B, A], an action_mask is bool [B, A]. An invalid action has probability 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def greedy(score: Tensor, action_mask: Tensor) -> Tensor:
    """Put all probability on the valid action of the highest score."""
    valid_score = score.masked_fill(~action_mask, -torch.inf)
    best_action = valid_score.argmax(-1, keepdim=True)
    probs = torch.zeros_like(score)
    return probs.scatter_(-1, best_action, 1.0)


def floored(probs: Tensor, action_mask: Tensor, epsilon: float) -> Tensor:
    """Mix probabilities with a share ε of uniform ones over valid actions, so that each keeps a propensity."""
    num_valid = action_mask.sum(-1, keepdim=True)
    floor = epsilon * action_mask.to(probs) / num_valid
    return (1 - epsilon) * probs + floor


def inverse_gap(score: Tensor, action_mask: Tensor, gamma: float) -> Tensor:
    """Weight actions by their inverse gap to the best, as SquareCB does (Foster & Rakhlin 2020).

    Each of K valid actions has probability 1 / (K + γ·gap); the best action has the remaining probability.
    """
    valid_score = score.masked_fill(~action_mask, -torch.inf)
    gap = valid_score.amax(-1, keepdim=True) - valid_score
    num_valid = action_mask.sum(-1, keepdim=True)
    inverse_gap_weight = 1 / (num_valid + gamma * gap)
    is_best = greedy(score, action_mask)
    other_probs = torch.where(action_mask, inverse_gap_weight, 0.0) * (1 - is_best)
    best_prob = 1 - other_probs.sum(-1, keepdim=True)
    return other_probs + is_best * best_prob


def thompson(mean: Tensor, std: Tensor, action_mask: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Return the share of `samples` joint draws from N(mean, std²) in which an action is the best.

    Drawing an action from these shares is one posterior draw, whatever the number of samples; more samples make
    propensities less extreme. An estimate weighted by the shares is unbiased: the draws do not depend on the outcome.
    """
    shape = (samples, *mean.shape)
    noise = torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)
    draws = mean + std * noise
    valid_draws = draws.masked_fill(~action_mask, -torch.inf)
    best_actions = valid_draws.argmax(-1).T  # [B, samples]
    share = torch.full_like(best_actions, 1 / samples, dtype=mean.dtype)
    probs = torch.zeros_like(mean)
    return probs.scatter_add_(-1, best_actions, share)
