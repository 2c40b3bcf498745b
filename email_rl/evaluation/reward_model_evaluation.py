"""Evaluate a reward model on test mails, against the majority, a bag of words and the gold model."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from email_rl.data import metrics
from email_rl.data.dataset import MailDataset
from email_rl.evaluation.reward_model_report import RewardModelReport, reward_model_report
from email_rl.models.bag_of_words import BagOfWords


class RewardModelEvaluator:
    """Compares a reward model with simpler models and, on the corpus, with the gold model's probabilities."""

    headline = "validation/log_loss"

    def __init__(
        self,
        dataset: MailDataset,
        *,
        seed: int,
        bootstrap_samples: int,
        calibration_bins: int,
        compare_inputs: bool,
    ):
        self.dataset, self.seed = dataset, seed
        self.bootstrap_samples, self.calibration_bins = bootstrap_samples, calibration_bins
        self.compare_inputs = compare_inputs

    def validate(self, algorithm) -> dict[str, float]:
        """Evaluate an algorithm on validation mails during training."""
        return algorithm.validate()

    def evaluate(self, algorithm, name: str) -> RewardModelReport:
        """Compare all models on the test mails; in a refresh, also before and after on old and new test mails."""
        test, train = algorithm.new_splits()["test"], algorithm.train_mails
        started = time.perf_counter()
        bag = BagOfWords.fit(train, algorithm.valid_mails, self.seed, **self.dataset.bag_of_words)
        predictions = {
            "majority": ("nothing", metrics.majority_shares(train, len(test))),
            "bag_of_words": ("context_text", bag.probabilities(test.contexts, test.texts)),
        }
        if self.compare_inputs and algorithm.before_refresh is None:
            other = "text" if algorithm.input == "context_text" else "context_text"
            predictions[f"{name}_{other}"] = other, algorithm.train_with_input(other).probabilities(test)
        predictions[name] = algorithm.input, algorithm.probabilities(test)
        if self.dataset.gold:
            predictions["gold"] = "truth", self.dataset.gold.probabilities(test.contexts, test.texts)
        truth = predictions["gold"][1] @ self.dataset.outcome_values if self.dataset.gold else None
        groups = self.dataset.groups(test)
        rows = {
            row: {
                "reads": reads,
                **self.figures_of(p, test.outcome, truth),
                **self.behind(p, predictions[name][1], test.outcome, groups),
            }
            for row, (reads, p) in predictions.items()
        }
        rows[name]["temperature"] = algorithm.temperature
        data = {
            "source": self.dataset.name,
            "train": len(train),
            "valid": len(algorithm.valid_mails),
            "test": len(test),
            "outcomes": torch.bincount(train.outcome, minlength=3).tolist(),
            "warnings": self.dataset.warnings,
            "evaluation_seconds": time.perf_counter() - started,
        }
        p = predictions[name][1]
        return reward_model_report(
            name, rows, data, metrics.calibration_bins(p, test.outcome, self.calibration_bins), self.refresh(algorithm)
        )

    def figures_of(self, p: Tensor, y: Tensor, truth: Tensor | None) -> dict:
        """Return a row's figures; `truth` [N] is the gold model's expected reward, if there is a gold model."""
        row = metrics.classification_metrics(p, y, self.calibration_bins)
        return row | (
            {"reward_correlation": metrics.correlation(p.double() @ self.dataset.outcome_values, truth)}
            if truth is not None
            else {}
        )

    def behind(self, p: Tensor, model: Tensor, y: Tensor, groups: list[int]) -> dict:
        """Return a row's log-loss less the reward model's, with its paired 95 % interval over groups of mails."""
        difference = metrics.log_losses(p, y) - metrics.log_losses(model, y)
        return {
            "behind": difference.mean().item(),
            "behind_ci": metrics.bootstrap_interval(difference, self.bootstrap_samples, self.seed, groups),
        }

    def refresh(self, algorithm) -> list[dict]:
        """Judge a refreshed model on old and new test mails, before and after."""
        if algorithm.before_refresh is None:
            return []
        rows = []
        for age, test in (("old", algorithm.old_splits["test"]), ("new", algorithm.new_splits()["test"])):
            after, groups = algorithm.probabilities(test), self.dataset.groups(test)
            for when, p in (("before", algorithm.before_refresh[age]), ("after", after)):
                rows.append(
                    {
                        "split": age,
                        "when": when,
                        **metrics.classification_metrics(p, test.outcome, self.calibration_bins),
                        **self.behind(p, after, test.outcome, groups),
                    }
                )
        return rows
