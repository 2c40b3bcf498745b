"""Figures of the mails of a policy: of their texts, by its reward model, and by the truth beside the reference's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from email_rl.data import metrics
from email_rl.data.mails import words
from rlcore.ope.intervals import LEVEL, mean_and_half_width, student_half_width


class PolicyMails(NamedTuple):
    """Mails that a policy wrote for contexts, or that were sent: N each; those of a context are consecutive."""

    contexts: list[str]
    texts: list[str]
    kl: Tensor | None  # log π − log π_ref of each mail, nats [N]; None: unknown
    has_ended: Tensor | None  # whether a mail has a stop token, bool [N]; None for mails that were sent
    samples: int = 1  # mails of each context

    def by_context(self, x: Tensor) -> Tensor:
        """Return the means over the mails of a context [P], of numbers of mails [N]."""
        return x.view(-1, self.samples).mean(1)


def text_figures(mails: PolicyMails, distinct_words: int) -> dict[str, Any]:
    """Return what is known of mails without a model of outcomes; the figures of models are None.

    Distinct-2 falls with the number of mails, so it is that of one mail a context, in every row.
    """
    n = len(mails.texts)
    row: dict[str, Any] = {
        "proxy_reward": None,
        "true_reward": None,
        "conversion": None,
        "conversion_ci": None,
        "kl": None,
        "distinct_2": metrics.distinct_n(mails.texts[:: mails.samples], 2, distinct_words),
        "mean_words": sum(len(words(text)) for text in mails.texts) / n,
        "mails": n,
    }
    if mails.kl is not None:
        row["kl"] = mails.kl.mean().item()
    if mails.has_ended is not None:
        row["stopped"] = mails.has_ended.float().mean().item()
    return row


def proxy_figures(p: Tensor, reward: Tensor) -> dict[str, Any]:
    """Return the figures by the reward model, of its P(outcome) [N, K] and its rewards [N]."""
    return {"proxy_reward": reward.mean().item(), "predicted": p.mean(0).tolist()}


def true_figures(p: Tensor, values: Tensor, mails: PolicyMails, source: str) -> dict[str, Any]:
    """Return the figures by the truth, of its P(outcome) [N, K] and the outcomes' values [K].

    `source` is `gold` or `judge`. The interval of the share of conversions is Student's over contexts, within [0, 1].
    """
    converts = p[:, -1]
    half = student_half_width(mails.by_context(converts), LEVEL).item()
    reward, conversion = (p @ values).mean().item(), converts.mean().item()
    return {
        "true_reward": reward,
        "conversion": conversion,
        "conversion_ci": [max(0.0, conversion - half), min(1.0, conversion + half)],
        "outcomes": p.mean(0).tolist(),
        f"{source}_reward": reward,
        f"{source}_conversion": conversion,
    }


def outcomes_by_context(probabilities: Callable[[list[str], list[str]], Tensor], mails: PolicyMails) -> Tensor:
    """Return the mean of the true P(outcome) over each context's mails [P, K]."""
    p = probabilities(mails.contexts, mails.texts).double()
    return torch.stack([mails.by_context(p[:, k]) for k in range(p.shape[1])], 1)


def gain_over_reference(outcomes: Tensor, reference: Tensor, values: Tensor) -> dict[str, Any]:
    """Return the gain in true reward over the reference on the same contexts, with Student's paired 95 % interval.

    `outcomes` and `reference` are true P(outcome) of contexts [P, K].
    """
    gain = (outcomes - reference) @ values
    mean, half = mean_and_half_width(gain)
    return {"true_gain": mean, "true_gain_ci": [mean - half, mean + half]}


def ratio_to_reference(converts: Tensor, reference: Tensor, draws: int, seed: int) -> dict[str, Any]:
    """Return the ratio of conversion to the reference's for the same contexts [P], with its 95 % interval."""
    generator = torch.Generator().manual_seed(seed)
    n = len(converts)
    rows = torch.randint(n, (draws, n), generator=generator)
    ratio = converts[rows].mean(1) / reference[rows].mean(1)
    return {
        "times": (converts.mean() / reference.mean()).item(),
        "times_ci": ratio.quantile(torch.tensor([0.025, 0.975], dtype=ratio.dtype)).tolist(),
    }
