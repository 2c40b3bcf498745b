"""How a reward model is judged: on mails nobody learnt from, beside the majority, a bag of words and the truth."""
from __future__ import annotations

import time

import torch
from torch import Tensor

from email_rl.data import metrics
from email_rl.models.bag_of_words import BagOfWords
from email_rl.data.dataset import EmailEnv
from email_rl.evaluation.report import Report


class Evaluation:
    """Compare a reward model with what is simpler and, on the corpus, with the gold model's own probabilities."""

    def __init__(self, env: EmailEnv, *, seed: int, draws: int, bins: int, bag: dict, other_input: bool):
        self.env, self.seed, self.draws, self.bins, self.bag, self.other_input = env, seed, draws, bins, bag, other_input

    def score(self, agent) -> dict[str, float]:
        """Value an agent on validation mails in the course of training."""
        return agent.validate()

    def run(self, agent, name: str) -> Report:
        """Compare all on the test mails; in a refresh, also before and after on the old test mails and the new."""
        test, train = agent.new()["test"], agent.train_mails
        started = time.perf_counter()
        share = torch.bincount(train.outcome, minlength=3).double() / len(train)
        said = {"majority": ("nothing", share.expand(len(test), 3)),
                "bag_of_words": ("context_text", BagOfWords(train, agent.valid_mails, self.seed, **self.bag).probabilities(test))}
        if self.other_input and agent.before is None:
            other = "text" if agent.input == "context_text" else "context_text"
            said[f"{name}_{other}"] = other, agent.fit_other(other).probabilities(test)
        said[name] = agent.input, agent.probabilities(test)
        if self.env.gold:
            said["gold"] = "truth", self.env.gold.probabilities(test.contexts, test.texts)
        truth = said["gold"][1] @ self.env.values if self.env.gold else None
        rows = {row: {"reads": reads, **self.judge(p, test.outcome, truth), **self.behind(p, said[name][1], test.outcome)}
                for row, (reads, p) in said.items()}
        rows[name]["temperature"] = agent.temperature
        data = {"source": self.env.name, "train": len(train), "valid": len(agent.valid_mails), "test": len(test),
                "outcomes": torch.bincount(train.outcome, minlength=3).tolist(), "warnings": self.env.warnings,
                "evaluation_seconds": time.perf_counter() - started}
        p = said[name][1]
        return Report(name, rows, data, metrics.calibration(p, test.outcome, self.bins), self.refresh(agent))

    def judge(self, p: Tensor, y: Tensor, truth: Tensor | None) -> dict:
        """Return a row's figures; truth [N] is the gold expected reward where it is known."""
        row = metrics.summary(p, y, self.bins)
        return row | ({"reward_correlation": metrics.correlation(p.double() @ self.env.values, truth)}
                      if truth is not None else {})

    def behind(self, p: Tensor, model: Tensor, y: Tensor) -> dict:
        """Return a row's log-loss less the reward model's, with its paired 95 % interval."""
        difference = metrics.log_losses(p, y) - metrics.log_losses(model, y)
        return {"behind": difference.mean().item(), "behind_ci": metrics.bootstrap(difference, self.draws, self.seed)}

    def refresh(self, agent) -> list[dict]:
        """Judge a refreshed model on old and new test mails, before and after."""
        if agent.before is None:
            return []
        rows = []
        for age, test in (("old", agent.old["test"]), ("new", agent.new()["test"])):
            after = agent.probabilities(test)
            for when, p in (("before", agent.before[age]), ("after", after)):
                rows.append({"split": age, "when": when, **metrics.summary(p, test.outcome, self.bins), **self.behind(p, after, test.outcome)})
        return rows
