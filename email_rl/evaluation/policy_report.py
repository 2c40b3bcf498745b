"""The comparison of policies that write mails as a table, as numbers and as plots."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from email_rl.data.mails import OUTCOMES
from rlcore.runs.plots import labelled
from rlcore.runs.report import Report


class MailPolicyReport(Report):
    """The comparison of policies, laid out in metrics.json as `reward_model`, `policy`, `reference` …"""

    def to_metrics(self) -> dict:
        """Lay everything out for metrics.json."""
        return {**self.rows, **self.extra}

    def to_figures(self, agent: str | None, headline: str, history: dict[str, list]) -> dict:
        """Draw proxy and true rewards over training and over KL, and the predicted outcomes."""
        if not history.get("validation/kl"):
            return self.plots
        figures = {"proxy_and_truth": rewards_figure(history, self.extra["truth"])}
        return {**self.plots, **figures, "frontier": frontier_figure(history, self.rows)}


def rewards_figure(history: dict[str, list], truth: str) -> Figure:
    """Draw the reward by the reward model and the true one over training, with the KL at some steps."""
    figure, axes = labelled("mails written in training, thousands", "reward a mail")
    proxy, kl = history["validation/proxy_reward"], history["validation/kl"]
    for course, label in ((proxy, "proxy: by the reward model"), (history["validation/true_reward"], truth)):
        axes.plot([step / 1e3 for step, _ in course], [y for _, y in course], marker="o", markersize=3, label=label)
    for (step, y), (_, nats) in list(zip(proxy, kl))[1 :: max(1, len(kl) // 5)]:
        axes.annotate(
            f"{nats:.1f} nats", (step / 1e3, y), textcoords="offset points", xytext=(0, 6), fontsize=7, ha="center"
        )
    axes.legend(frameon=False)
    return figure


def frontier_figure(history: dict[str, list], rows: dict[str, dict]) -> Figure:
    """Draw the conversion rate over the KL to the reference: of the policy over training, and of every row."""
    figure, axes = labelled("KL from the reference, nats a mail", "share of mails that convert")
    nats = [kl for _, kl in history["validation/kl"]]
    course = [y for _, y in history["validation/conversion"]]
    axes.plot(nats, course, marker="o", markersize=3, linewidth=0.8, label="over training")
    for name, row in rows.items():
        if row.get("kl") is not None:
            low, high = row["conversion_ci"]
            half_widths = [[row["conversion"] - low], [high - row["conversion"]]]
            label = name.replace("_", " ")
            axes.errorbar(row["kl"], row["conversion"], half_widths, fmt="s", markersize=4, label=label)
    axes.legend(frameon=False, fontsize=8)
    return figure


def mails_title(mails: int, contexts: list[str], trained: set[str], source: str) -> str:
    """Name the mails of a comparison, written for the contexts of test mails, and how many contexts training lacked."""
    distinct = set(contexts)
    return (
        f"{mails:,} mails for the contexts of {len(contexts):,} test mails of {source}: {len(distinct):,} contexts, "
        f"{len(distinct - trained):,} of them not in training mails"
    )


def policy_columns() -> dict[str, Callable[[dict], str]]:
    """The columns of the table."""

    def shown(key: str, form: str = ".3f") -> Callable[[dict], str]:
        return lambda row: "" if row.get(key) is None else format(row[key], form)

    def half(key: str, form: str = ".3f") -> Callable[[dict], str]:
        return lambda row: "" if row.get(key) is None else format((row[key][1] - row[key][0]) / 2, form)

    return {
        "converts": shown("conversion"),
        "±": half("conversion_ci"),
        "×ref": shown("times", ".2f"),
        "true": shown("true_reward", ".2f"),
        "gain": shown("true_gain", "+.2f"),
        "± ": half("true_gain_ci", ".2f"),
        "proxy": shown("proxy_reward", ".2f"),
        "KL": shown("kl", ".1f"),
        "dist-2": shown("distinct_2"),
        "words": shown("mean_words", ".0f"),
        "ends": shown("stopped", ".0%"),
    }


def outcomes_figure(before: dict, after: dict) -> Figure:
    """Draw the mean probabilities of outcomes before and after, by the reward model and by the truth."""
    figure, axes = labelled("outcome", "share of mails")
    bars = {}
    for when, row in (("reference", before), ("policy", after)):
        bars[f"{when}, predicted"], bars[f"{when}, true"] = row["predicted"], row["outcomes"]
    for k, (label, shares) in enumerate(bars.items()):
        axes.bar([i + 0.2 * (k - 1.5) for i in range(len(OUTCOMES))], shares, 0.19, label=label)
    axes.set_xticks(range(len(OUTCOMES)), OUTCOMES)
    axes.legend(frameon=False, fontsize=8)
    return figure
