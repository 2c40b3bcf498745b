"""How writers of mails are judged: by the truth, or a judge that learnt from other mails; never by what they were trained on."""
from __future__ import annotations

import math
import time
from typing import Callable, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from email_rl.data import metrics
from email_rl.data.mails import OUTCOMES, words
from email_rl.data.dataset import EmailEnv
from email_rl.models.policy import Policy, Samples
from email_rl.models.outcome_classifier import worth
from rlcore.logger import Quiet
from rlcore.plots import labelled
from rlcore.report import Report


class Written(NamedTuple):
    """Mails for contexts, and their KL from the reference, nats [N] (None: not known)."""

    contexts: list[str]
    texts: list[str]
    kl: Tensor | None
    stopped: Tensor | None


class WritingReport(Report):
    """The comparison of writers, laid out in metrics.json as `reward_model`, `policy`, `reference` …"""

    def metrics(self) -> dict:
        """Lay everything out for metrics.json."""
        return {**self.rows, **self.extra}

    def figures(self, agent: str | None, headline: str, history: dict[str, list]) -> dict:
        """Draw what was believed and what was true over training and over KL, and the predicted outcomes."""
        proxy, truth, kl = (history.get(f"email/{name}", []) for name in ("proxy_reward", "true_reward", "kl"))
        if not kl:
            return self.plots
        figure, axes = labelled("mails written in training, thousands", "reward a mail")
        axes.plot([step / 1e3 for step, _ in proxy], [y for _, y in proxy], marker="o", markersize=3,
                  label="proxy: what the reward model believes")
        axes.plot([step / 1e3 for step, _ in truth], [y for _, y in truth], marker="o", markersize=3, label=self.extra["truth"])
        for (step, y), (_, nats) in list(zip(proxy, kl))[1::max(1, len(kl) // 5)]:
            axes.annotate(f"{nats:.1f} nats", (step / 1e3, y), textcoords="offset points", xytext=(0, 6), fontsize=7, ha="center")
        axes.legend(frameon=False)
        frontier, axes = labelled("KL from the reference, nats a mail", "share of mails that convert")
        course = history.get("email/conversion", [])
        axes.plot([nats for _, nats in kl], [y for _, y in course], marker="o", markersize=3, linewidth=0.8, label="over training")
        for name, row in self.rows.items():
            if row.get("kl") is not None:
                low, high = row["conversion_ci"]
                axes.errorbar(row["kl"], row["conversion"], [[row["conversion"] - low], [high - row["conversion"]]], fmt="s",
                              markersize=4, label=name.replace("_", " "))
        axes.legend(frameon=False, fontsize=8)
        return {**self.plots, "proxy_and_truth": figure, "frontier": frontier}


class Writing:
    """Compare a trained policy with the mails that were sent, its reference, best-of-n of that, and reward-weighted training."""

    def __init__(self, env: EmailEnv, *, seed: int, mails: int, course_mails: int, best_of: int, rival, sampling: dict,
                 distinct_words: int, draws: int):
        self.env, self.seed, self.mails, self.course_mails = env, seed, mails, course_mails
        self.best_of, self.rival, self.sampling = best_of, rival, sampling
        self.distinct_words, self.draws = distinct_words, draws
        self._judge = None

    # ── what is true ────────────────────────────────────────────────────────────────────────────────────────────────
    def truth(self, agent) -> Callable | None:
        """Return P(outcome) by contexts and texts: the corpus's own, a judge's, or nothing."""
        if self.env.gold:
            return self.env.gold.probabilities
        if self._judge is None and hasattr(agent, "judge"):
            self._judge = agent.judge()
        return self._judge and self._judge.probabilities

    # ── in the course of training ───────────────────────────────────────────────────────────────────────────────────
    def score(self, agent) -> dict[str, float]:
        """Value a policy on contexts of validation mails, the same each time."""
        written = self.write(agent.policy, agent.reference, self.env.valid.contexts[:self.course_mails], "course")
        row = self.judge(agent, written)
        return {f"email/{name}": row[name] for name in ("conversion", "true_reward", "proxy_reward", "kl")}

    def write(self, policy: Policy, reference: Policy | None, contexts: list[str], stream: str, samples: int = 1) -> Written:
        """Let a policy write; a stream always gives the same random numbers."""
        generator = torch.Generator(policy.device).manual_seed(self.seed + len(stream))
        samples_, texts = policy.write(contexts, samples, generator, **self.sampling)
        stopped = policy.ended(samples_)
        contexts = [context for context in contexts for _ in range(samples)]
        return Written(contexts, texts, None if reference is None else self.divergence(policy, reference, samples_), stopped)

    def divergence(self, policy: Policy, reference: Policy, samples: Samples) -> Tensor:
        """Return log π − log π_ref of each mail, nats [N]."""
        if policy is reference:
            return torch.zeros(len(samples.query))
        own, other = (p.read(samples, self.sampling["batch_size"]).log_prob for p in (policy, reference))
        return torch.where(samples.alive, own - other, 0.0).sum(1).cpu()

    # ── at the end ──────────────────────────────────────────────────────────────────────────────────────────────────
    def run(self, agent, name: str) -> WritingReport:
        """Compare all on contexts of test mails."""
        started = time.perf_counter()
        test = self.env.test.rows(list(range(min(self.mails, len(self.env.test)))))
        written = {"sent": Written(test.contexts, test.texts, None, None)}
        if agent.reference is not None:
            written["reference"] = self.write(agent.reference, agent.reference, test.contexts, "test")
            written[f"best_of_{self.best_of}"] = self.best(agent, test.contexts)
        written[name] = self.write(agent.policy, agent.reference, test.contexts, "test")
        if agent.reference is not None and self.rival:
            goal, rival = written[name].kl.mean().item(), agent.rival(self.rival)
            rival.train(Quiet(), lambda: None, None, lambda: rival.divergence.item() >= goal)
            written["reward_weighted"] = self.write(rival.policy, agent.reference, test.contexts, "test")
            written[name] = written.pop(name)  # the last row
        judged = {row: self.judge(agent, mails) for row, mails in written.items()}
        extra = {"truth": "truth: the gold model" if self.env.gold else "judge: a model that learnt from other mails",
                 "source": self.env.name}
        plots = {}
        if agent.reference is not None:
            reference = self.conversion(agent, written["reference"])
            for row, mails in written.items():
                judged[row] |= self.against(self.conversion(agent, mails), reference)
            p = agent.scorer.probabilities(self.env.test.contexts, self.env.test.texts)
            extra["reward_model"] = metrics.summary(p, self.env.test.outcome, 15)
            extra["policy"] = judged[name]
            plots["outcomes"] = self.outcomes(judged["reference"], judged[name])
        extra["evaluation_seconds"] = time.perf_counter() - started
        return WritingReport(
            title=f"{len(test):,} mails for contexts of {self.env.name}, which nothing was trained on",
            caption=f"converts, true: by {extra['truth'].split(': ')[1]}: share of conversions with its 95 % interval, expected "
                    "reward; ×ref: times the reference's share; proxy: the reward model's; KL: from the reference, nats a mail "
                    "(best of n: its upper bound); dist-2: distinct-2; ends: mails with a stop token",
            rows=judged, columns=self.columns(), last=None, extra=extra, plots=plots,
            judged="conversion")

    def best(self, agent, contexts: list[str]) -> Written:
        """Take, of n mails of the reference for each context, the one that the reward model likes best."""
        n = self.best_of
        found = self.write(agent.reference, None, contexts, "best", n)
        best = agent.rewards(found.contexts, found.texts).view(-1, n).argmax(1) + n * torch.arange(len(contexts))
        bound = math.log(n) - (n - 1) / n  # Beirami et al. 2024
        return Written(contexts, [found.texts[i] for i in best.tolist()], torch.full((len(contexts),), bound),
                       found.stopped[best.to(found.stopped.device)])

    def judge(self, agent, mails: Written) -> dict:
        """Return a row's figures."""
        contexts, texts, n = mails.contexts, mails.texts, len(mails.texts)
        row = {"proxy_reward": None, "true_reward": None, "conversion": None, "conversion_ci": None, "kl": None,
               "distinct_2": metrics.distinct(texts, 2, self.distinct_words),
               "mean_words": sum(len(words(text)) for text in texts) / n, "mails": n}
        if agent.scorer is not None:
            p = agent.scorer.probabilities(contexts, texts).double()
            row |= {"proxy_reward": worth(p, self.env.values, agent.reward_kind).mean().item(), "predicted": p.mean(0).tolist()}
        truth = self.truth(agent)
        if truth:
            p = truth(contexts, texts).double()
            converts = p[:, -1]
            half = 1.96 * converts.std().item() / n ** 0.5
            row |= {"true_reward": (p @ self.env.values).mean().item(), "conversion": converts.mean().item(),
                    "conversion_ci": [converts.mean().item() - half, converts.mean().item() + half], "outcomes": p.mean(0).tolist()}
            said = "gold" if self.env.gold else "judge"
            row |= {f"{said}_reward": row["true_reward"], f"{said}_conversion": row["conversion"]}
        if mails.kl is not None:
            row["kl"] = mails.kl.mean().item()
        if mails.stopped is not None:
            row["stopped"] = mails.stopped.float().mean().item()
        return row

    def conversion(self, agent, mails: Written) -> Tensor:
        """Return P(conversion) of each mail by the truth [N]."""
        return self.truth(agent)(mails.contexts, mails.texts).double()[:, -1]

    def against(self, converts: Tensor, reference: Tensor) -> dict:
        """Return how many times as often mails convert as the reference's for the same contexts, with its 95 % interval."""
        generator = torch.Generator().manual_seed(self.seed)
        n = len(converts)
        rows = torch.randint(n, (self.draws, n), generator=generator)
        ratio = converts[rows].mean(1) / reference[rows].mean(1)
        return {"times": (converts.mean() / reference.mean()).item(),
                "times_ci": ratio.quantile(torch.tensor([0.025, 0.975], dtype=ratio.dtype)).tolist()}

    @staticmethod
    def columns() -> dict[str, Callable[[dict], str]]:
        """What the table shows of a row."""
        def shown(key: str, form: str = ".3f") -> Callable[[dict], str]:
            return lambda row: "" if row.get(key) is None else format(row[key], form)

        def half(key: str) -> Callable[[dict], str]:
            return lambda row: "" if row.get(key) is None else f"{(row[key][1] - row[key][0]) / 2:.3f}"
        return {"converts": shown("conversion"), "±": half("conversion_ci"), "×ref": shown("times", ".2f"),
                "true": shown("true_reward", ".2f"), "proxy": shown("proxy_reward", ".2f"), "KL": shown("kl", ".1f"),
                "dist-2": shown("distinct_2"), "words": shown("mean_words", ".0f"), "ends": shown("stopped", ".0%")}

    @staticmethod
    def outcomes(before: dict, after: dict) -> Figure:
        """Draw the mean probabilities of outcomes before and after, as believed and as true."""
        figure, axes = labelled("outcome", "share of mails")
        bars = {}
        for when, row in (("reference", before), ("policy", after)):
            bars[f"{when}, predicted"], bars[f"{when}, true"] = row["predicted"], row["outcomes"]
        for k, (label, shares) in enumerate(bars.items()):
            axes.bar([i + 0.2 * (k - 1.5) for i in range(len(OUTCOMES))], shares, 0.19, label=label)
        axes.set_xticks(range(len(OUTCOMES)), OUTCOMES)
        axes.legend(frameon=False, fontsize=8)
        return figure
