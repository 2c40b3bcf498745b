"""What is logged of the mails that PPO generates, under the names of Huang et al. 2024."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlcore.backends import distributed

if TYPE_CHECKING:
    from email_rl.training.ppo import MailRollout


def rollout_metrics(rollout: MailRollout, kl_coef: Tensor) -> dict[str, Tensor]:
    """Return means over a rollout's mails, of all processes; KL and entropy in nats a mail."""
    mask = rollout.mails.response_mask
    kl = distributed.all_reduce_mean(rollout.log_ratio.sum(1).mean())
    score = rollout.score.mean()
    return distributed.mean_scalars({
        "objective/kl": kl,
        "objective/kl_coef": kl_coef.clone(),
        "objective/entropy": torch.where(mask, rollout.entropy, 0.0).sum(1).mean(),
        "objective/scores": score,
        "objective/proxy_reward": rollout.proxy_reward.float().mean(),
        "objective/non_score_reward": -kl_coef * kl,
        "objective/score_total": score - kl_coef * kl,
        "objective/num_eos": distributed.num_processes() * rollout.has_ended.sum(),
        "objective/tokens": mask.sum(1).float().mean()})


def sample_table(rollout: MailRollout, most: int) -> str:
    """Show the first mails of a rollout with their scores, as Markdown."""
    kl = rollout.log_ratio.sum(1).tolist()
    lines = [f"| {context} | {text.replace('|', '/').replace(chr(10), '<br>')} | {score:.2f} | {nats:.1f} |"
             for context, text, score, nats in zip(rollout.contexts, rollout.texts, rollout.score.tolist(), kl)]
    return "\n".join(["| context | mail | score | KL, nats |", "|---|---|---|---|", *lines[:most]])
