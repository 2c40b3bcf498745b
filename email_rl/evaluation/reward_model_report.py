"""The comparison of reward models as a table, as numbers and as plots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from email_rl.data.mails import OUTCOMES
from rlcore.runs.plots import labelled
from rlcore.runs.report import Report, half_width

BESIDE = ("accuracy", "macro_f1", "ece")


@dataclass(frozen=True, kw_only=True)
class RewardModelReport(Report):
    """Results by model on test mails, laid out in metrics.json as `reward_model`, `majority` …"""

    name: str  #: the row of the reward model
    refresh: list[dict]  #: the reward model before and after, on old and on new test mails; empty without a refresh

    def to_metrics(self) -> dict:
        """Lay everything out for metrics.json."""
        return {**self.rows, **self.extra, **({"refresh": self.refresh} if self.refresh else {})}

    def parts(self) -> dict[str, Report]:
        """Name the tables that are shown and logged."""
        return {"table": self, **({"refresh": refresh_report(self.refresh)} if self.refresh else {})}

    @property
    def sample(self) -> str:
        """What the results are of, and how much of it, for the titles of plots."""
        return f"{self.extra['data']['test']:,} test mails of {self.extra['data']['source']}"

    def _lines(self) -> dict[str, list[str]]:
        """Name all rows of the reward model alike: the model's input is in the next column."""
        lines = {}
        for row, line in super()._lines().items():
            label = self.name if row.startswith(self.name) else row
            lines[row] = [label.replace("_", " "), *line[1:]]
        return lines

    def to_figures(self, agent: str | None, headline: str, history: dict[str, list]) -> dict[str, Figure]:
        """Draw the confusion matrix, the calibration curve and the course of the validation log-loss."""
        curve = history.get(headline, [])
        figures = {"confusion": self._confusion_figure(), "calibration": self._calibration_figure()}
        if curve:
            figures["training"] = self._training_figure(curve)
        return figures

    def _confusion_figure(self) -> Figure:
        figure, axes = labelled("most likely outcome", "outcome")
        counts = self.rows[self.name]["confusion"]
        shares = [[n / max(1, sum(row)) for n in row] for row in counts]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(counts):
            for j, n in enumerate(row):
                axes.text(
                    j,
                    i,
                    f"{n:,}\n{shares[i][j]:.0%}",
                    ha="center",
                    va="center",
                    color="white" if shares[i][j] > 0.5 else "black",
                )
        axes.set_xticks(range(len(OUTCOMES)), OUTCOMES)
        axes.set_yticks(range(len(OUTCOMES)), OUTCOMES)
        return figure

    def _calibration_figure(self) -> Figure:
        figure, axes = labelled("probability of the most likely outcome", "share that was right")
        axes.plot([0, 1], [0, 1], "k--", linewidth=0.8, label="perfect")
        bins = self.extra["calibration"]
        confidence, accuracy = ([b[key] for b in bins] for key in ("confidence", "accuracy"))
        axes.plot(confidence, accuracy, label="reward model")
        most = max(b["mails"] for b in bins)
        axes.scatter(confidence, accuracy, s=[10 + 90 * b["mails"] / most for b in bins])
        axes.set_title(f"ECE {self.rows[self.name]['ece']:.3f}; a dot's area is its number of mails", fontsize=9)
        axes.legend(frameon=False)
        return figure

    def _training_figure(self, curve: list[tuple[int, float]]) -> Figure:
        figure, axes = labelled("mails seen, thousands", "log-loss on validation mails")
        axes.plot([seen / 1e3 for seen, _ in curve], [loss for _, loss in curve], marker="o", markersize=3)
        axes.set_xlim(left=0)
        return figure


def reward_model_report(
    name: str, rows: dict[str, dict], data: dict[str, Any], calibration: list[dict], refresh: list[dict]
) -> RewardModelReport:
    """Lay out the results by model; `data` says of how many mails they are."""
    columns = {
        "reads": lambda row: row["reads"].replace("context_text", "both"),
        "accuracy": number("accuracy"),
        "F1": number("macro_f1"),
        "log-loss": number("log_loss"),
        "behind": lambda row: "" if row is rows[name] else f"{row['behind']:+.3f}",
        "±": lambda row: "" if row is rows[name] else f"{half_width(row['behind_ci']):.3f}",
        "ECE": number("ece"),
        "r": number("reward_correlation"),
    }
    return RewardModelReport(
        title=f"{data['test']:,} test mails of {data['source']}; learnt from {data['train']:,}",
        caption="F1: macro-F1; behind: log-loss above the reward model's, ± its paired 95 % interval; ECE: expected "
        "calibration error; r: correlation of expected reward with the truth's",
        rows=rows,
        columns=columns,
        last=None,
        extra={"data": data, "calibration": calibration},
        plots={},
        judged="log_loss",
        beside=BESIDE,
        what="model",
        higher_is_better=False,
        texts=1,
        name=name,
        refresh=refresh,
    )


def refresh_report(refresh: list[dict]) -> Report:
    """Lay out what a refresh gained on old and on new test mails."""
    rows: dict[str, dict[str, Any]] = {}
    for before, after in zip(refresh[::2], refresh[1::2]):
        rows[f"{before['split']}, before"] = {**before, "behind": None}
        rows[f"{after['split']}, after"] = {**after, "behind": before["behind"], "behind_ci": before["behind_ci"]}
    columns = {
        "n": lambda row: f"{row['mails']:,}",
        "accuracy": number("accuracy"),
        "F1": number("macro_f1"),
        "log-loss": number("log_loss"),
        "gained": lambda row: "" if row["behind"] is None else f"{row['behind']:+.3f}",
        "±": lambda row: "" if row["behind"] is None else f"{half_width(row['behind_ci']):.3f}",
        "ECE": number("ece"),
    }
    return Report(
        title="before and after the refresh",
        caption="gained: log-loss saved, ± its paired 95 % interval",
        rows=rows,
        columns=columns,
        last=None,
        extra={},
        plots={},
        judged="log_loss",
        beside=BESIDE,
        what="test mails",
        higher_is_better=False,
    )


def number(key: str) -> Callable[[dict[str, Any]], str]:
    """Return a column of a row's number, empty where the row has none."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:.3f}"
