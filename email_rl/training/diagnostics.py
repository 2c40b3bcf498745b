"""Metrics of PPO's mails and of its updates, under the names of Huang et al. 2024."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from email_rl.training.guards import length_correlation
from email_rl.training.rollout import MailRollout
from rlcore import losses
from rlcore.backends import distributed
from rlcore.runs.plots import labelled


def rollout_metrics(rollout: MailRollout, kl_coef: Tensor) -> dict[str, Tensor]:
    """Return means over a rollout's mails, of all processes; KL and entropy in nats a mail."""
    mask = rollout.mails.response_mask
    kl = rollout.kl_to_reference()
    score = rollout.score.mean()
    return distributed.mean_scalars(
        {
            "objective/kl": kl,
            "objective/kl_coef": kl_coef.clone(),
            "objective/entropy": torch.where(mask, rollout.entropy, 0.0).sum(1).mean(),
            "objective/scores": score,
            "objective/proxy_reward": rollout.proxy_reward.float().mean(),
            "objective/non_score_reward": -kl_coef * kl,
            "objective/score_total": score - kl_coef * kl,
            "objective/num_eos": distributed.num_processes() * rollout.has_ended.sum(),
            "objective/tokens": mask.sum(1).float().mean(),
            "objective/reward_length_correlation": length_correlation(rollout),
        }
    )


def update_metrics(loss: Tensor, metrics: dict[str, Tensor], log_ratio: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return means over a micro-batch's tokens: the loss, the metrics of losses.ppo, π / π_old and its square.

    log_ratio [B, R] = log π − log π_old.
    """
    ratio = torch.where(mask, log_ratio, 0.0).exp()
    return {
        "loss": loss,
        "policy_loss": metrics["policy_loss"],
        "value_loss": metrics["value_loss"],
        "approxkl": metrics["approx_kl"],
        "clipfrac": metrics["clipfrac"],
        "ratio": losses.masked_mean(ratio, mask),
        "ratio_square": losses.masked_mean(ratio.square(), mask),
        "ratio_max": ratio.max(),
    }


def value_metrics(value: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the fit of values [B, R] to their targets before the update, over the tokens of all processes."""
    total = distributed.all_reduce_sum
    return {
        "val/mean": losses.masked_mean(value, mask, total),
        "val/explained_variance": losses.explained_variance(value, target, mask, total),
    }


def length_figure(rollout: MailRollout) -> Figure:
    """Draw the proxy reward of a rollout's mails over their lengths."""
    figure, axes = labelled("tokens of a mail", "reward by the reward model")
    axes.scatter(rollout.mails.response_mask.sum(1).tolist(), rollout.proxy_reward.tolist(), s=8)
    return figure


def sample_table(rollout: MailRollout, most: int) -> str:
    """Show the first mails of a rollout with their scores, as Markdown."""
    kl = rollout.log_ratio.sum(1).tolist()
    lines = [
        f"| {context} | {text.replace('|', '/').replace(chr(10), '<br>')} | {score:.2f} | {nats:.1f} |"
        for context, text, score, nats in zip(rollout.contexts, rollout.texts, rollout.score.tolist(), kl)
    ]
    return "\n".join(["| context | mail | score | KL, nats |", "|---|---|---|---|", *lines[:most]])
