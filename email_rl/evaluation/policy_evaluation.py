"""Judges policies that write mails: by the gold model or by a judge, never by their own reward model.

A judge is a reward model trained on other mails.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from email_rl.data import metrics
from email_rl.data.dataset import MailDataset
from email_rl.data.mails import Mails, words
from email_rl.evaluation.policy_report import MailPolicyReport, outcomes_figure, policy_columns
from email_rl.models.outcome_classifier import outcome_reward
from email_rl.models.outcome_model import OutcomeModel
from email_rl.models.policy import LanguageModelPolicy, TokenizedMails
from rlcore.ope.intervals import LEVEL, normal_half_width
from rlcore.runs.logger import NullLogger
from rlcore.training_loop import TrainingLoop

STREAMS = {"validation": 6, "test": 4, "best": 4}  # added to the seed


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


class MailPolicyEvaluator:
    """Compares a trained policy with the mails that were sent and with three baselines.

    The baselines are the policy's reference, best-of-n of the reference, and reward-weighted training.
    """

    headline = "email/conversion"

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
        self._judge: OutcomeModel | None = None

    # ── what is true ────────────────────────────────────────────────────────────────────────────────────────────────
    def true_probabilities(self, algorithm) -> Callable[[list[str], list[str]], Tensor] | None:
        """Return P(outcome) as a function of contexts and texts: the corpus's own, a judge's, or None."""
        if self.dataset.gold:
            return self.dataset.gold.probabilities
        self._judge = self._judge or algorithm.judge()
        return None if self._judge is None else self._judge.probabilities

    # ── during training ─────────────────────────────────────────────────────────────────────────────────────────────
    def validate(self, algorithm) -> dict[str, float]:
        """Evaluate a policy on contexts of validation mails, with the same random numbers each time."""
        contexts = self.dataset.valid.contexts[: self.validation_mails]
        figures = self.figures_of(
            algorithm, self.generate(algorithm.policy, algorithm.reference, contexts, "validation")
        )
        return {f"email/{name}": figures[name] for name in ("conversion", "true_reward", "proxy_reward", "kl")}

    def generate(
        self,
        policy: LanguageModelPolicy,
        reference: LanguageModelPolicy | None,
        contexts: list[str],
        stream: str,
        samples: int = 1,
    ) -> PolicyMails:
        """Let a policy write mails; a stream always gives the same random numbers."""
        generator = torch.Generator(policy.device).manual_seed(self.seed + STREAMS[stream])
        mails, texts = policy.generate(contexts, samples, generator, **self.sampling)
        kl = None if reference is None else self.kl_to_reference(policy, reference, mails)
        return PolicyMails(
            contexts=[context for context in contexts for _ in range(samples)],
            texts=texts,
            kl=kl,
            has_ended=policy.has_ended(mails),
            samples=samples,
        )

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
        test = self.dataset.test.rows(list(range(min(self.test_mails, len(self.dataset.test)))))
        mails = self.mails_by_policy(algorithm, name, test, max(1, self.test_mails // len(test)))
        rows = {row: self.figures_of(algorithm, written) for row, written in mails.items()}
        truth = "truth: the gold model" if self.dataset.gold else "judge: a model that learnt from other mails"
        extra: dict[str, Any] = {"truth": truth, "source": self.dataset.name}
        plots: dict[str, Figure] = {}
        if algorithm.reference is not None:
            reference = self.outcomes_by_context(algorithm, mails["reference"])
            for row, written in mails.items():
                own = self.outcomes_by_context(algorithm, written)
                rows[row] |= self.ratio_to_reference(own[:, -1], reference[:, -1])
                rows[row] |= self.gain_over_reference(own, reference)
            p = algorithm.reward_model.probabilities(self.dataset.test.contexts, self.dataset.test.texts)
            extra["reward_model"] = metrics.classification_metrics(p, self.dataset.test.outcome, 15)
            extra["policy"] = rows[name]
            plots["outcomes"] = outcomes_figure(rows["reference"], rows[name])
        extra["evaluation_seconds"] = time.perf_counter() - started
        return MailPolicyReport(
            title=f"{len(mails[name].texts):,} mails for {len(test):,} contexts of {self.dataset.name}, "
            "which nothing was trained on",
            caption=f"converts, true: by {truth.split(': ')[1]}: share of conversions with its 95 % interval, expected "
            "reward; gain: in true reward above the reference's, with its paired 95 % interval over contexts; "
            "×ref: times the reference's share; proxy: the reward model's; KL: from the reference, nats a mail "
            "(best of n: its upper bound); dist-2: distinct-2; ends: mails with a stop token",
            rows=rows,
            columns=policy_columns(),
            last=None,
            extra=extra,
            plots=plots,
            judged="conversion",
        )

    def mails_by_policy(self, algorithm, name: str, test: Mails, samples: int) -> dict[str, PolicyMails]:
        """Return the mails of every row of the comparison, for the contexts of `test`; the trained policy's last.

        Each policy writes `samples` mails for each context.
        """
        mails = {"sent": PolicyMails(test.contexts, test.texts, None, None)}
        if algorithm.reference is None:
            return mails | {name: self.generate(algorithm.policy, None, test.contexts, "test", samples)}
        mails["reference"] = self.generate(algorithm.reference, algorithm.reference, test.contexts, "test", samples)
        mails[f"best_of_{self.best_of}"] = self.best_of_n(algorithm, test.contexts)
        own = self.generate(algorithm.policy, algorithm.reference, test.contexts, "test", samples)
        if self.baseline_trainer:
            assert own.kl is not None  # it was generated beside its reference
            kl = own.kl.mean().item()
            baseline = algorithm.baseline_trainer(self.baseline_trainer)
            TrainingLoop(baseline, NullLogger(), should_stop=lambda: baseline.kl_to_reference.item() >= kl).run()
            mails["reward_weighted"] = self.generate(
                baseline.policy, algorithm.reference, test.contexts, "test", samples
            )
        return mails | {name: own}

    def best_of_n(self, algorithm, contexts: list[str]) -> PolicyMails:
        """For each context, take the one of n mails of the reference that the reward model scores highest."""
        n = self.best_of
        drawn = self.generate(algorithm.reference, None, contexts, "best", n)
        assert drawn.has_ended is not None  # it was generated
        best = algorithm.rewards(drawn.contexts, drawn.texts).view(-1, n).argmax(1) + n * torch.arange(len(contexts))
        kl_bound = math.log(n) - (n - 1) / n  # Beirami et al. 2024
        return PolicyMails(
            contexts=contexts,
            texts=[drawn.texts[i] for i in best.tolist()],
            kl=torch.full((len(contexts),), kl_bound),
            has_ended=drawn.has_ended[best.to(drawn.has_ended.device)],
        )

    def figures_of(self, algorithm, mails: PolicyMails) -> dict:
        """Return the figures of a row."""
        contexts, texts, n = mails.contexts, mails.texts, len(mails.texts)
        row: dict[str, Any] = {
            "proxy_reward": None,
            "true_reward": None,
            "conversion": None,
            "conversion_ci": None,
            "kl": None,
            "distinct_2": metrics.distinct_n(texts, 2, self.distinct_words),
            "mean_words": sum(len(words(text)) for text in texts) / n,
            "mails": n,
        }
        values = self.dataset.outcome_values
        if algorithm.reward_model is not None:
            p = algorithm.reward_model.probabilities(contexts, texts).double()
            row |= {
                "proxy_reward": outcome_reward(p, values, algorithm.reward_kind).mean().item(),
                "predicted": p.mean(0).tolist(),
            }
        true_probabilities = self.true_probabilities(algorithm)
        if true_probabilities:
            p = true_probabilities(contexts, texts).double()
            converts = p[:, -1]
            half = normal_half_width(mails.by_context(converts), LEVEL).item()
            row |= {
                "true_reward": (p @ values).mean().item(),
                "conversion": converts.mean().item(),
                "conversion_ci": [converts.mean().item() - half, converts.mean().item() + half],
                "outcomes": p.mean(0).tolist(),
            }
            source = "gold" if self.dataset.gold else "judge"
            row |= {f"{source}_reward": row["true_reward"], f"{source}_conversion": row["conversion"]}
        if mails.kl is not None:
            row["kl"] = mails.kl.mean().item()
        if mails.has_ended is not None:
            row["stopped"] = mails.has_ended.float().mean().item()
        return row

    def outcomes_by_context(self, algorithm, mails: PolicyMails) -> Tensor:
        """Return the mean of the true P(outcome) over each context's mails [P, K]."""
        true_probabilities = self.true_probabilities(algorithm)
        assert true_probabilities is not None  # where there is a reference, there is a judge
        p = true_probabilities(mails.contexts, mails.texts).double()
        return torch.stack([mails.by_context(p[:, k]) for k in range(p.shape[1])], 1)

    def gain_over_reference(self, outcomes: Tensor, reference: Tensor) -> dict:
        """Return the gain in true reward over the reference on the same contexts, with its paired 95 % interval."""
        gain = (outcomes - reference) @ self.dataset.outcome_values
        return {
            "true_gain": gain.mean().item(),
            "true_gain_ci": list(metrics.bootstrap_interval(gain, self.bootstrap_samples, self.seed)),
        }

    def ratio_to_reference(self, converts: Tensor, reference: Tensor) -> dict:
        """Return the ratio of conversion to the reference's for the same contexts, with its 95 % interval."""
        generator = torch.Generator().manual_seed(self.seed)
        n = len(converts)
        rows = torch.randint(n, (self.bootstrap_samples, n), generator=generator)
        ratio = converts[rows].mean(1) / reference[rows].mean(1)
        return {
            "times": (converts.mean() / reference.mean()).item(),
            "times_ci": ratio.quantile(torch.tensor([0.025, 0.975], dtype=ratio.dtype)).tolist(),
        }


class SFTEvaluator(MailPolicyEvaluator):
    """The evaluator of a policy that learns from mails alone; during training its loss on validation mails counts."""

    headline = "email/token_loss"

    def validate(self, algorithm) -> dict[str, float]:
        """Return the loss, nats a token."""
        return algorithm.validate()
