"""Metrics of predicted outcomes: pure functions of probabilities [N, K] and outcomes int64 [N]."""

from __future__ import annotations

import torch
from torch import Tensor

from email_rl.data.mails import OUTCOMES, Mails, words


def log_losses(p: Tensor, y: Tensor) -> Tensor:
    """Return −log p(y) of each mail, nats [N]."""
    return -p.double().clamp_min(1e-12).gather(1, y[:, None])[:, 0].log()


def majority_shares(train: Mails, n: int) -> Tensor:
    """Return the training mails' shares of outcomes for each of n mails [n, K]; one mail is added to each outcome's."""
    counts = torch.bincount(train.outcome, minlength=len(OUTCOMES)).double() + 1
    return (counts / counts.sum()).expand(n, len(OUTCOMES))


def confusion_matrix(p: Tensor, y: Tensor) -> Tensor:
    """Count mails by (outcome, most likely outcome), int64 [K, K]."""
    k = p.shape[1]
    return torch.bincount(y * k + p.argmax(1), minlength=k * k).view(k, k)


def macro_f1(counts: Tensor) -> float:
    """Average the F1 of the outcomes that occur or are predicted: 2·hits / (true + predicted)."""
    hits, total = counts.diagonal().double(), (counts.sum(0) + counts.sum(1)).double()
    return (2 * hits / total.clamp_min(1))[total > 0].mean().item()


def calibration_bins(p: Tensor, y: Tensor, bins: int) -> list[dict]:
    """Bin mails by their largest probability: confidence, accuracy and number of each bin that is not empty."""
    top, predicted = p.double().max(1)
    bin_of = (top * bins).long().clamp_max(bins - 1)
    right = (predicted == y).double()
    return [
        {"confidence": top[here].mean().item(), "accuracy": right[here].mean().item(), "mails": int(here.sum())}
        for b in range(bins)
        if (here := bin_of == b).any()
    ]


def ece(p: Tensor, y: Tensor, bins: int) -> float:
    """Expected calibration error of the most likely outcome (Guo et al. 2017), equal-width bins."""
    return sum(b["mails"] * abs(b["confidence"] - b["accuracy"]) for b in calibration_bins(p, y, bins)) / len(y)


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's correlation; None where one of them is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return (a @ b / scale).item() if scale > 1e-9 * len(a) else None


def bootstrap_interval(
    difference: Tensor, draws: int, seed: int, groups: list[int] | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of a mean of paired differences [N] by the bootstrap over groups of mails.

    `groups` [N] numbers the mails' groups; None: each mail is a group. Mails of one text share a model's error, so that
    they are drawn together: a mean of a draw is the sum over its mails by their number (Cameron, Gelbach and Miller
    2008).
    """
    generator = torch.Generator().manual_seed(seed)
    numbers: dict[int, int] = {}
    group_of = torch.tensor([numbers.setdefault(group, len(numbers)) for group in groups or range(len(difference))])
    sums = torch.zeros(len(numbers), dtype=difference.dtype).index_add(0, group_of, difference)
    sizes = torch.bincount(group_of).to(difference.dtype)
    n = len(numbers)
    drawn = (torch.randint(n, (n,), generator=generator) for _ in range(draws))
    means = torch.stack([sums[rows].sum() / sizes[rows].sum() for rows in drawn])
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def fit_temperature(logits: Tensor, y: Tensor, weight: Tensor) -> float:
    """Find T in [1/20, 20] that minimises the weighted log-loss of softmax(logits / T).

    Each of the n mails counts as n / (n + 1) of a mail with its outcome, and as 1 / (n + 1) of one whose outcome is
    unknown and has the shares of all: a prior worth one mail, in the manner of Platt 1999, section 2.2. Without it a
    few mails that are all told right would choose certainty. The log-loss is convex in 1/T, so its slope is bisected.
    """
    logits, weight = logits.double(), weight.double() / weight.double().sum()
    n = (weight > 0).sum()
    share = torch.zeros(logits.shape[1], dtype=torch.float64).index_add(0, y, weight)
    expected = (n * logits.gather(1, y[:, None])[:, 0] + logits @ share) / (n + 1)  # logit of the outcome
    low, high = torch.tensor(1 / 20).log().item(), torch.tensor(20.0).log().item()  # of log 1/T
    for _ in range(60):
        middle = (low + high) / 2
        inverse = torch.tensor(middle).exp().item()
        slope = (weight * (((inverse * logits).softmax(1) * logits).sum(1) - expected)).sum()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return torch.tensor(-(low + high) / 2).exp().item()


def classification_metrics(p: Tensor, y: Tensor, bins: int) -> dict:
    """Return the figures of metrics.json and the counts behind them."""
    counts = confusion_matrix(p, y)
    return {
        "accuracy": (counts.diagonal().sum() / counts.sum()).item(),
        "macro_f1": macro_f1(counts),
        "log_loss": log_losses(p, y).mean().item(),
        "ece": ece(p, y, bins),
        "mails": len(y),
        "confusion": counts.tolist(),
    }


def distinct_n(texts: list[str], n: int, first: int) -> float:
    """Share of different n-grams among all in the first `first` words of texts (distinct-n, Li et al. 2016)."""
    heads = [words(text)[:first] for text in texts]
    grams = [tuple(head[i : i + n]) for head in heads for i in range(len(head) - n + 1)]
    return len(set(grams)) / max(1, len(grams))
