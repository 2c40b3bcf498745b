"""The comparison of reward models as a table, as numbers and as plots."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure
from rich import box
from rich.console import Group
from rich.table import Table

from email_rl.data.mails import OUTCOMES
from rlcore.runs.plots import labelled, markdown
from rlcore.runs.report import RunResult


@dataclass(frozen=True)
class RewardModelReport:
    """Results by model on test mails; `name` is the row of the reward model."""

    name: str
    rows: dict[str, dict]
    data: dict
    calibration: list[dict]
    refresh: list[dict]

    def to_metrics(self) -> dict:
        """Lay everything out for metrics.json."""
        return {
            **self.rows,
            "data": self.data,
            "calibration": self.calibration,
            **({"refresh": self.refresh} if self.refresh else {}),
        }

    def result(self, name: str | None) -> RunResult:
        """Return the log-loss of the reward model, with its accuracy."""
        keys = ("log_loss", "accuracy", "macro_f1", "ece")
        return RunResult.from_rows(self.rows, self.name, keys, higher_is_better=False)

    _columns = ("model", "reads", "accuracy", "F1", "log-loss", "behind", "±", "ECE", "r")

    def _lines(self) -> list[list[str]]:
        lines = []
        for row, found in self.rows.items():
            low, high = found["behind_ci"]
            r = found.get("reward_correlation")
            behind = ["", ""] if row == self.name else [f"{found['behind']:+.3f}", f"{(high - low) / 2:.3f}"]
            label = self.name if row.startswith(self.name) else row  # the model's input is in the next column
            lines.append(
                [
                    label.replace("_", " "),
                    found["reads"].replace("context_text", "both"),
                    f"{found['accuracy']:.3f}",
                    f"{found['macro_f1']:.3f}",
                    f"{found['log_loss']:.3f}",
                    *behind,
                    f"{found['ece']:.3f}",
                    "" if r is None else f"{r:.3f}",
                ]
            )
        return lines

    _refresh_columns = ("test mails", "", "n", "accuracy", "F1", "log-loss", "gained", "±", "ECE")

    def _refresh_lines(self) -> list[list[str]]:
        return [
            [
                row["split"],
                row["when"],
                f"{row['mails']:,}",
                f"{row['accuracy']:.3f}",
                f"{row['macro_f1']:.3f}",
                f"{row['log_loss']:.3f}",
                *(
                    ["", ""]
                    if row["when"] == "before"
                    else [f"{was['behind']:+.3f}", f"{(was['behind_ci'][1] - was['behind_ci'][0]) / 2:.3f}"]
                ),
                f"{row['ece']:.3f}",
            ]
            for was, row in zip([self.refresh[0], *self.refresh], self.refresh)
        ]

    @property
    def sample(self) -> str:
        """What the results are of, and how much of it, for the titles of plots."""
        return f"{self.data['test']:,} test mails of {self.data['source']}"

    def parts(self) -> dict[str, RewardModelReport]:
        """Name the tables that are shown and logged."""
        return {"table": self}

    def to_table(self) -> Group:
        """Lay the comparison out for the console."""
        data = self.data
        tables = [
            _table(
                f"{data['test']:,} test mails of {data['source']}; learnt from {data['train']:,}",
                self._columns,
                self._lines(),
                2,
                "F1: macro-F1; behind: log-loss above the reward model's, ± its paired 95 % interval; ECE: expected "
                "calibration error; r: correlation of expected reward with the truth's",
            )
        ]
        if self.refresh:
            tables.append(
                _table(
                    "before and after the refresh",
                    self._refresh_columns,
                    self._refresh_lines(),
                    2,
                    "gained: log-loss saved, ± its paired 95 % interval",
                )
            )
        return Group(*tables)

    def to_markdown(self) -> str:
        """Lay the comparison out for TensorBoard and README."""
        text = markdown(self._columns, self._lines())
        return text + ("\n\n" + markdown(self._refresh_columns, self._refresh_lines()) if self.refresh else "")

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
        most = max(b["mails"] for b in self.calibration)
        axes.plot(
            [b["confidence"] for b in self.calibration], [b["accuracy"] for b in self.calibration], label="reward model"
        )
        axes.scatter(
            [b["confidence"] for b in self.calibration],
            [b["accuracy"] for b in self.calibration],
            s=[10 + 90 * b["mails"] / most for b in self.calibration],
        )
        axes.set_title(f"ECE {self.rows[self.name]['ece']:.3f}; a dot's area is its number of mails", fontsize=9)
        axes.legend(frameon=False)
        return figure

    def _training_figure(self, curve: list[tuple[int, float]]) -> Figure:
        figure, axes = labelled("mails seen, thousands", "log-loss on validation mails")
        axes.plot([seen / 1e3 for seen, _ in curve], [loss for _, loss in curve], marker="o", markersize=3)
        axes.set_xlim(left=0)
        return figure


def _table(title: str, columns: tuple, lines: list[list[str]], left: int, caption: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table
