"""Judges policies that write mails: by the gold model or by a judge, never by their own reward model.

A judge is a reward model trained on other mails.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from email_rl.data import metrics
from email_rl.data.dataset import MailDataset
from email_rl.data.mails import Mails
from email_rl.evaluation.policy_figures import (
    PolicyMails,
    gain_over_reference,
    outcomes_by_context,
    proxy_figures,
    ratio_to_reference,
    text_figures,
    true_figures,
)
from email_rl.evaluation.policy_report import MailPolicyReport, mails_title, outcomes_figure, policy_columns
from email_rl.models.outcome_classifier import outcome_reward
from email_rl.models.outcome_model import OutcomePredictor, cut_mails
from email_rl.models.policy import LanguageModelPolicy
from email_rl.models.tokenized_mails import TokenizedMails
from rlcore.runs.logger import NullLogger
from rlcore.runs.progress import tracked
from rlcore.training_loop import TrainingLoop

Probabilities = Callable[[list[str], list[str]], Tensor]
STREAMS = {"validation": 6, "test": 4, "best": 5}  # added to the seed


class MailPolicyEvaluator:
    """Compares a trained policy with the mails that were sent and with three baselines.

    The baselines are the policy's reference, best-of-n of the reference, and reward-weighted training.
    """

    headline = "validation/conversion"

    def __init__(
        self,
        dataset: MailDataset,
        *,
        seed: int,
        test_mails: int,
        validation_mails: int,
        best_of: int,
        baseline_trainer,
        sampling: dict,
        distinct_words: int,
        bootstrap_samples: int,
    ):
        self.dataset, self.seed = dataset, seed
        self.test_mails, self.validation_mails, self.best_of = test_mails, validation_mails, best_of
        self.baseline_trainer, self.sampling = baseline_trainer, sampling
        self.distinct_words, self.bootstrap_samples = distinct_words, bootstrap_samples
        self._judge: OutcomePredictor | None = None

    # ── what is true ────────────────────────────────────────────────────────────────────────────────────────────────
    def true_probabilities(self, algorithm) -> Probabilities:
        """Return P(outcome) as a function of contexts and texts: the corpus's own, or a judge's."""
        if self.dataset.gold:
            return self.dataset.gold.probabilities
        self._judge = self._judge or algorithm.judge()
        return self._judge.probabilities

    # ── during training ─────────────────────────────────────────────────────────────────────────────────────────────
    def validate(self, algorithm) -> dict[str, float]:
        """Evaluate a policy on contexts of validation mails, with the same random numbers each time."""
        contexts = self.dataset.sample(self.dataset.valid, self.validation_mails).contexts
        figures = self.figures_of(
            algorithm, self.generate(algorithm.policy, algorithm.reference, contexts, "validation")
        )
        names = ("conversion", "true_reward", "proxy_reward", "kl")
        return {f"validation/{name}": figures[name] for name in names if figures[name] is not None}

    def generate(
        self,
        policy: LanguageModelPolicy,
        reference: LanguageModelPolicy | None,
        contexts: list[str],
        stream: str,
        samples: int = 1,
    ) -> PolicyMails:
        """Let a policy write mails; a stream always gives the same random numbers.

        The KL is known only where mails are drawn from the policy's own distribution: at its temperature, without top-k
        and top-p.
        """
        generator = torch.Generator(policy.device).manual_seed(self.seed + STREAMS[stream])
        mails, texts = policy.generate(contexts, samples, generator, **self.sampling)
        kl = (
            None
            if reference is None or not self.samples_as_trained(policy)
            else self.kl_to_reference(policy, reference, mails)
        )
        return PolicyMails(
            contexts=[context for context in contexts for _ in range(samples)],
            texts=texts,
            kl=kl,
            has_ended=policy.has_ended(mails),
            samples=samples,
        )

    def samples_as_trained(self, policy: LanguageModelPolicy) -> bool:
        """Tell whether mails are drawn from the policy's own distribution, which training is about."""
        sampling = (self.sampling["temperature"], self.sampling["top_k"], self.sampling["top_p"])
        return sampling == (policy.temperature, 0, 1.0)

    def kl_to_reference(
        self, policy: LanguageModelPolicy, reference: LanguageModelPolicy, mails: TokenizedMails
    ) -> Tensor:
        """Return log π − log π_ref of each mail, nats [N]."""
        if policy is reference:
            return torch.zeros(len(mails.prompt))
        own, other = (p.token_statistics(mails, self.sampling["batch_size"]).log_prob for p in (policy, reference))
        return torch.where(mails.response_mask, own - other, 0.0).sum(1).cpu()

    # ── at the end ──────────────────────────────────────────────────────────────────────────────────────────────────
    def evaluate(self, algorithm, name: str) -> MailPolicyReport:
        """Compare all policies on contexts of test mails."""
        started = time.perf_counter()
        test, samples = self.asked_mails()
        if not self.samples_as_trained(algorithm.policy):
            print(
                "env.evaluation.sampling: mails are drawn from another distribution than the trained one (temperature "
                f"{algorithm.policy.temperature}, all tokens): KL and the row reward_weighted are left out",
                file=sys.stderr,
            )
        mails = self.mails_by_policy(algorithm, name, test, samples)
        cut = cut_mails(algorithm.reward_model, mails[name].contexts, mails[name].texts)
        if cut:
            print(
                f"warning: {cut:,} of {len(mails[name].texts):,} mails of {name} are longer than the input of the "
                "reward model, which does not read their ends",
                file=sys.stderr,
            )
        rows = {row: self.figures_of(algorithm, written) for row, written in tracked(mails.items(), "policies")}
        true_probabilities = self.true_probabilities(algorithm)
        reference = outcomes_by_context(true_probabilities, mails["reference"])
        for row, written in mails.items():
            own = outcomes_by_context(true_probabilities, written)
            rows[row] |= ratio_to_reference(own[:, -1], reference[:, -1], self.bootstrap_samples, self.seed)
            rows[row] |= gain_over_reference(own, reference, self.dataset.outcome_values)
        unread = self.dataset.unread("test", algorithm.reward_model.learnt)
        p = algorithm.reward_model.probabilities(unread.contexts, unread.texts)
        classified = metrics.classification_metrics(p, unread.outcome, 15)
        report = self.report(rows, test, len(mails[name].texts), reward_model=classified, policy=rows[name])
        report.plots["outcomes"] = outcomes_figure(rows["reference"], rows[name])
        report.extra["evaluation_seconds"] = time.perf_counter() - started
        return report

    def asked_mails(self) -> tuple[Mails, int]:
        """Return the test mails for whose contexts policies write, and how many mails they write for each."""
        test = self.dataset.sample(self.dataset.test, self.test_mails)
        return test, max(1, self.test_mails // len(test))

    def report(self, rows: dict[str, dict], test: Mails, written: int, **extra: Any) -> MailPolicyReport:
        """Lay out the rows; `written` is the number of mails of a policy, and `extra` further keys of metrics.json."""
        truth = "truth: the gold model" if self.dataset.gold else "judge: a model that learnt from other mails"
        return MailPolicyReport(
            title=mails_title(written, test.contexts, set(self.dataset.train.contexts), self.dataset.name),
            caption=f"converts, true: by {truth.split(': ')[1]}: share of conversions with its 95 % interval, expected "
            "reward; gain: in true reward above the reference's, with its paired 95 % interval over contexts; "
            "×ref: times the reference's share; proxy: the reward model's; KL: from the reference, nats a mail "
            "(best of n: its upper bound); dist-2: distinct-2; ends: mails with a stop token",
            rows=rows,
            columns=policy_columns(),
            last=None,
            extra={"truth": truth, "source": self.dataset.name, **extra},
            plots={},
            judged="conversion",
            beside=("true_reward", "proxy_reward", "kl", "distinct_2", "mean_words"),
        )

    def mails_by_policy(self, algorithm, name: str, test: Mails, samples: int) -> dict[str, PolicyMails]:
        """Return the mails of every row of the comparison, for the contexts of `test`; the trained policy's last.

        Each policy writes `samples` mails for each context.
        """
        mails = {"sent": PolicyMails(test.contexts, test.texts, None, None)}
        mails["reference"] = self.generate(algorithm.reference, algorithm.reference, test.contexts, "test", samples)
        mails[f"best_of_{self.best_of}"] = self.best_of_n(algorithm, test.contexts)
        own = self.generate(algorithm.policy, algorithm.reference, test.contexts, "test", samples)
        if self.baseline_trainer and own.kl is not None:
            baseline = algorithm.baseline_trainer(self.baseline_trainer)
            train_to_kl(baseline, own.kl.mean().item())
            mails["reward_weighted"] = self.generate(
                baseline.policy, algorithm.reference, test.contexts, "test", samples
            )
        return mails | {name: own}

    def best_of_n(self, algorithm, contexts: list[str]) -> PolicyMails:
        """For each context, take the one of n mails of the reference with the highest score, the one of training."""
        n = self.best_of
        drawn = self.generate(algorithm.reference, None, contexts, "best", n)
        assert drawn.has_ended is not None  # it was generated
        rewards = algorithm.rewards(drawn.contexts, drawn.texts)
        score = algorithm.scores(rewards, drawn.has_ended.cpu())
        best = score.view(-1, n).argmax(1) + n * torch.arange(len(contexts))
        kl_bound = math.log(n) - (n - 1) / n  # Beirami et al. 2024
        return PolicyMails(
            contexts=contexts,
            texts=[drawn.texts[i] for i in best.tolist()],
            kl=torch.full((len(contexts),), kl_bound),
            has_ended=drawn.has_ended[best.to(drawn.has_ended.device)],
        )

    def figures_of(self, algorithm, mails: PolicyMails) -> dict:
        """Return the figures of a row."""
        p = algorithm.reward_model.probabilities(mails.contexts, mails.texts).double()
        proxy = proxy_figures(p, outcome_reward(p, self.dataset.outcome_values, algorithm.reward_kind))
        true = self.figures_of_truth(self.true_probabilities(algorithm), mails)
        return text_figures(mails, self.distinct_words) | proxy | true

    def figures_of_truth(self, true_probabilities: Probabilities, mails: PolicyMails) -> dict:
        """Return the figures of a row by the corpus's own probabilities, or by a judge's."""
        p = true_probabilities(mails.contexts, mails.texts).double()
        return true_figures(p, self.dataset.outcome_values, mails, "gold" if self.dataset.gold else "judge")


def train_to_kl(algorithm, kl: float) -> None:
    """Train a policy until its KL to its reference reaches `kl`, nats a mail; keep the weights that came nearest.

    An iteration measures the KL of the weights before its update. The last weights of all are therefore not compared.
    """
    weights = _copied(algorithm.policy)  # whose KL the next iteration measures
    nearest, gap = weights, math.inf

    def should_stop() -> bool:
        nonlocal weights, nearest, gap
        measured = algorithm.kl_to_reference.item()
        if abs(measured - kl) < gap:
            nearest, gap = weights, abs(measured - kl)
        weights = _copied(algorithm.policy)
        return measured >= kl

    TrainingLoop(algorithm, NullLogger(), should_stop=should_stop).run()
    algorithm.policy.load_state_dict(nearest)


def _copied(policy: LanguageModelPolicy) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in policy.state_dict().items()}


class SFTEvaluator(MailPolicyEvaluator):
    """The evaluator of a policy that learns from mails alone; during training its loss on validation mails counts.

    There is no reference, no reward model and, without a gold model, no judge.
    """

    headline = "validation/token_loss"

    def validate(self, algorithm) -> dict[str, float]:
        """Return the loss, nats a token."""
        return algorithm.validate()

    def evaluate(self, algorithm, name: str) -> MailPolicyReport:
        """Compare the policy's mails, for contexts of test mails, with those that were sent."""
        started = time.perf_counter()
        test, samples = self.asked_mails()
        own = self.generate(algorithm.policy, None, test.contexts, "test", samples)
        rows = {}
        for row, mails in (("sent", PolicyMails(test.contexts, test.texts, None, None)), (name, own)):
            rows[row] = text_figures(mails, self.distinct_words)
            if self.dataset.gold:
                rows[row] |= self.figures_of_truth(self.dataset.gold.probabilities, mails)
        report = self.report(rows, test, len(own.texts))
        report.extra["evaluation_seconds"] = time.perf_counter() - started
        return report
