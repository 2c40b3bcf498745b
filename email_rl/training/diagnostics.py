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


def micro_batch_metrics(loss: Tensor, metrics: dict[str, Tensor], log_ratio: Tensor, mask: Tensor) -> dict[str, Tensor]:
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
    }


class UpdateMetrics:
    """Adds up `micro_batch_metrics` over an update, weighted by each micro-batch's share of its minibatch."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.ratio_totals: list[Tensor] = []  # the total of `ratio` at the end of each minibatch

    def add(self, metrics: dict[str, Tensor], share: Tensor) -> None:
        """Add a micro-batch with this share of its minibatch's tokens."""
        for name, x in metrics.items():
            self.totals[name] = self.totals.get(name, 0) + share * x

    def end_minibatch(self, grad_norm: Tensor) -> None:
        """Add the gradient's norm of a minibatch, whose micro-batches have been added."""
        self.totals["grad_norm"] = self.totals.get("grad_norm", 0) + grad_norm
        self.ratio_totals.append(self.totals["ratio"])

    def mean(self, steps: int) -> dict[str, Tensor]:
        """Return means over all minibatches, the ratio's variance, and the largest mean ratio of a minibatch."""
        metrics = distributed.mean_scalars({f"ppo/{name}": total / steps for name, total in self.totals.items()})
        ratio_totals = distributed.all_reduce_mean(torch.stack(self.ratio_totals))
        ratios = ratio_totals.diff(prepend=torch.zeros_like(ratio_totals[:1]))
        metrics["ppo/largest_mean_ratio"] = ratios.amax()
        metrics["ppo/ratio_var"] = metrics.pop("ppo/ratio_square") - metrics["ppo/ratio"].square()
        return metrics


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


def sample_table(rollout: MailRollout, most: int, samples_per_context: int = 1) -> str:
    """Show the first mails of a rollout with their scores, one of each sampled context, as Markdown."""
    kl = rollout.log_ratio.sum(1).tolist()
    lines = [
        f"| {context} | {text.replace('|', '/').replace(chr(10), '<br>')} | {score:.2f} | {nats:.1f} |"
        for context, text, score, nats in zip(rollout.contexts, rollout.texts, rollout.score.tolist(), kl)
    ]
    header = ["| context | mail | score | KL, nats |", "|---|---|---|---|"]
    return "\n".join([*header, *lines[::samples_per_context][:most]])
