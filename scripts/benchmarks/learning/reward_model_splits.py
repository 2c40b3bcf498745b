"""Reward models of a CSV of mails beside the majority and a bag of words, over random splits.

Usage:

    python scripts/bench.py learning/reward_model_splits benchmark.env.data=mails.csv
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from email_rl.data import metrics, splitting
from email_rl.data.dataset import SPLITS, MailDataset
from email_rl.models.bag_of_words import BagOfWords
from email_rl.reward_model.reward_model import RewardModel
from rlcore.runs.logger import NullLogger
from rlcore.runs.plots import text_table
from rlcore.training_loop import TrainingLoop
from scripts.benchmarks.common.display import progress, show

BAG = "bag of words"


class Predictions(NamedTuple):
    """What a model said of the test mails of all splits, n in all."""

    log_loss: Tensor  # nats [n]
    right: Tensor  # whether the likeliest outcome came about, 0 or 1 [n]


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable,
    training: dict[str, Any],
    encoders: dict[str, Any],
    splits: int,
    bootstrap_samples: int,
) -> dict:
    """Train every model on every split; compare them on the test mails.

    Splits keep near-duplicates on one side and have like shares of outcomes (email_rl/data/splitting.py).
    """
    dataset = env(device, seed)
    if dataset.gold:
        raise ValueError("benchmark.env.data: expected the path of a CSV context,email_text,outcome, got null")
    mails = sum((dataset.splits[side] for side in SPLITS[1:]), dataset.train)
    groups = dataset.groups(mails)
    shares = {side: len(dataset.splits[side]) / len(mails) for side in SPLITS}
    tested: list[int] = []
    found: dict[str, list[Predictions]] = {}
    for k in progress(range(seed, seed + splits), "splits"):
        rows = splitting.stratified_split(mails, groups, shares, k)
        part = dataset.with_splits({side: mails.rows(rows[side]) for side in SPLITS})
        tested += rows["test"]
        for name, p in probabilities(part, encoders, training, k).items():
            outcome = part.test.outcome
            right = (p.argmax(1) == outcome).double()
            found.setdefault(name, []).append(Predictions(metrics.log_losses(p, outcome), right))
    joined = {name: Predictions(*map(torch.cat, zip(*parts))) for name, parts in found.items()}
    results = compared(joined, torch.tensor(tested), bootstrap_samples, seed)
    show(results_table(results, dataset.name, splits, len(set(tested))))
    return {"results": results, "splits": splits, "mails": len(mails), "tested": len(set(tested))}


def probabilities(dataset: MailDataset, encoders: dict, training: dict, seed: int) -> dict[str, Tensor]:
    """Return P(outcome) of the test mails [N, K] by each model, trained on the dataset."""
    train, test = dataset.train, dataset.test
    bag = BagOfWords.fit(train, dataset.valid, seed, **dataset.bag_of_words)
    found = {"majority": metrics.majority_shares(train, len(test)), BAG: bag.probabilities(test.contexts, test.texts)}
    for name, encoder in encoders.items():
        algorithm = RewardModel(dataset, seed, encoder=encoder, **training)
        TrainingLoop(algorithm, NullLogger(), validate=algorithm.validate).run()
        found[name] = algorithm.probabilities(test)
    return found


def compared(found: dict[str, Predictions], tested: Tensor, draws: int, seed: int) -> dict[str, dict]:
    """Return each model's figures, with paired 95 % intervals by the bootstrap over mails.

    `tested` [n] numbers the mails. A mail that several splits tested counts once, with the mean of its figures, because
    these depend on each other.
    """

    def by_mail(x: Tensor) -> Tensor:
        mails, position = tested.unique(return_inverse=True)
        sums = torch.zeros(len(mails), dtype=x.dtype).index_add(0, position, x)
        return sums / torch.bincount(position)

    def with_interval(x: Tensor) -> dict:
        low, high = metrics.bootstrap_interval(by_mail(x), draws, seed)
        return {"mean": by_mail(x).mean().item(), "low": low, "high": high}

    majority, bag = found["majority"], found[BAG]
    return {
        name: {
            "accuracy": by_mail(model.right).mean().item(),
            "log_loss": by_mail(model.log_loss).mean().item(),
            "accuracy_above_majority": with_interval(model.right - majority.right),
            "accuracy_above_bag": with_interval(model.right - bag.right),
            "nats_ahead_of_majority": with_interval(majority.log_loss - model.log_loss),
            "nats_ahead_of_bag": with_interval(bag.log_loss - model.log_loss),
        }
        for name, model in found.items()
    }


def results_table(results: dict[str, dict], source: str, splits: int, tested: int) -> Table:
    """Lay the comparison out for the console."""

    def interval(x: dict) -> str:
        return f"{x['mean']:+.3f} ({x['low']:+.3f} to {x['high']:+.3f})"

    rows = [
        [
            name,
            f"{row['accuracy']:.3f}",
            interval(row["accuracy_above_majority"]),
            interval(row["accuracy_above_bag"]),
            f"{row['log_loss']:.3f}",
            interval(row["nats_ahead_of_bag"]),
        ]
        for name, row in results.items()
    ]
    return text_table(
        f"{splits} random splits of {source}",
        ["model", "accuracy", "above the majority", "above the bag", "log-loss", "nats ahead of the bag"],
        rows,
        f"on {tested:,} test mails, each counted once; in brackets 95 % intervals, paired, by the bootstrap over mails",
    )
