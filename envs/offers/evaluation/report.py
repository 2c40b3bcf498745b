"""The comparison as a table, as numbers and as plots."""
from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from envs.offers.planning.lagrangian_bound import Bound
from rlcore import report as reports
from rlcore.plots import labelled, levels, markdown


@dataclass(frozen=True)
class Report:
    """Results by policy, from worst to best, under one bound and one rule of money; `hard` has them under a hard one."""

    rows: dict[str, dict]
    bound: Bound
    customers: int
    seasons: int
    frontier: list[dict]
    rule: str
    hard: Report | None
    masked: dict[str, float]  # share of the customers that each lasting rule forbids something to
    members: reports.Report | None  # the learned policy under each member of a twin

    def to_metrics(self) -> dict:
        """Lay everything out for metrics.json."""
        bound = {"value": self.bound.value, "none": self.bound.none, "prices": self.bound.prices.tolist(),
                 "gap": self.bound.gap, "certificate": self.bound.certificate, "budget": self.bound.budget.tolist(), "evaluations": self.bound.evaluations}
        if self.bound.stock.isfinite().any():
            bound |= {"scarcity": self.bound.scarcity.tolist()}
        return {"policies": self.rows, "rule": self.rule, "bound": bound, "customers": self.customers, "seasons": self.seasons,
                **({"hard": {"rule": self.hard.rule, "policies": self.hard.rows}} if self.hard else {}),
                **({"rules": self.masked} if self.masked else {}),
                **({"members": self.members.rows} if self.members else {}),
                **({"frontier": self.frontier} if self.frontier else {})}

    def headline_metrics(self) -> dict[str, float]:
        """The numbers by which runs are compared."""
        return {f"score/{name}": row["score"] for name, row in self.rows.items()}

    def parts(self) -> dict[str, Report]:
        """Name the comparison under each rule of money, and that under each member."""
        return {"table": self, **({"table_hard": self.hard} if self.hard else {}),
                **({"members": self.members} if self.members else {})}

    def _lines(self) -> list[list[str]]:
        lines = []
        for name, row in self.rows.items():
            low, high = row["score_ci"]
            lines.append([name, row["information"], f"{row['score']:.3f}", f"{(high - low) / 2:.3f}",
                          f"{row['incremental_profit']:,.0f}", f"{row['spend_ratio']:.3f}",
                          f"{row['weeks_breached']:.0%}", f"{row['contact_rate']:.1%}"])
        lines.append(["upper bound", "true θ", "1.000", "", f"{self.bound.gap:,.0f}", "", "", ""])
        return lines

    _columns = ("policy", "knows", "score", "±", "profit", "spend", "breach", "contacts")

    def to_table(self) -> Table:
        """Lay the comparison out for the console."""
        table = Table(title=f"{self.customers:,} new customers, {self.seasons} seasons of {len(self.bound.budget)} "
                            f"weeks, budget {self.bound.budget.mean():,.2f} a week\nmoney {self.rule}",
                      box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
                      caption="score: share of the provably attainable incremental profit, ± its 95 % interval; profit: "
                              "over never contacting, a season; spend: expected, of the budget; breach: weeks whose "
                              "realised spend passed the budget" + self._rules(), caption_justify="left")
        if self.hard:  # whose table says what the columns mean, once for both
            table.caption = None
        for i, column in enumerate(self._columns):
            table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
        for line in self._lines():
            table.add_row(*line)
        return table

    def _rules(self) -> str:
        return "".join(f"\nmasked for {share:.1%}: {reason}" for reason, share in self.masked.items())

    def to_markdown(self) -> str:
        """Lay the comparison out for TensorBoard and README."""
        return markdown(self._columns, self._lines())

    def to_figures(self, agent: str | None, headline: str, history: dict[str, list]) -> dict[str, Figure]:
        """Draw prices against the dual's, lost profit by cause, the training curve, and the frontier where there is one."""
        curve = history.get(headline, [])
        figures = {"lost_profit": self._lost_figure()}
        if agent:
            figures["prices"] = self._price_figure(agent)
        if curve:
            figures["training"] = self._training_figure(curve)
        if self.frontier:
            figures["frontier"] = self._frontier_figure(agent)
        return figures

    def _price_figure(self, agent: str) -> Figure:
        figure, axes = labelled("week", "marginal price of a unit of budget")
        weeks = range(1, len(self.bound.prices) + 1)
        axes.plot(weeks, self.bound.prices.tolist(), "k--", label="dual optimum")
        for name in ("planning", agent):
            axes.plot(weeks, self.rows[name]["prices"], marker="o", markersize=3, label=name)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        return figure

    def _lost_figure(self) -> Figure:
        figure, axes = labelled("share of the attainable incremental profit that is lost", "")
        names = [name for name in self.rows if name != "none"]
        left = [0.0] * len(names)
        for cause in self.rows[names[0]]["lost"]["cause"]:
            width = [max(self.rows[name]["lost"]["cause"][cause], 0.0) for name in names]
            axes.barh(names, width, left=left, label=cause, height=0.7)
            left = [a + b for a, b in zip(left, width)]
        axes.legend(frameon=False, fontsize=8)
        return figure

    def _training_figure(self, curve: list[tuple[int, float]]) -> Figure:
        figure, axes = labelled("agent-steps, millions", "score on validation customers")
        axes.plot([step / 1e6 for step, _ in curve], [score for _, score in curve], marker="o", markersize=3)
        axes.set_ylim(min(0.0, *(score for _, score in curve)), 1.02)
        axes.set_xlim(left=0)
        levels(axes, {name: row["score"] for name, row in self.rows.items() if name.startswith(("myopic", "planning"))})
        return figure

    def _frontier_figure(self, agent: str) -> Figure:
        figure, axes = labelled("weekly budget", "incremental profit of a season")
        budgets = [point["weekly_budget"] for point in self.frontier]
        axes.plot(budgets, [point["bound"] for point in self.frontier], "k--", label="upper bound")
        for name in (agent, "myopic knapsack"):
            axes.plot(budgets, [point[name]["incremental_profit"] for point in self.frontier], marker="o", markersize=3,
                      label=name)
        axes.legend(frameon=False)
        return figure


def under_members(name: str, points: list[dict], customers: int) -> reports.Report:
    """Lay out what a policy earns under each member of a twin; each has its own budget, and its own bound."""
    rows = {f"member {k + 1}": {**point[name], "bound": point["bound"], "weekly_budget": point["weekly_budget"]}
            for k, point in enumerate(points)}
    return reports.Report(
        f"{name} under each member of the twin, {customers:,} customers", "profit: over never contacting, a season", rows,
        {"score": lambda row: f"{row['score']:.3f}", "±": lambda row: f"{(row['score_ci'][1] - row['score_ci'][0]) / 2:.3f}",
         "profit": lambda row: f"{row['incremental_profit']:,.0f}", "of at most": lambda row: f"{row['bound']:,.0f}",
         "spend": lambda row: f"{row['spend_ratio']:.3f}"}, None, {}, {}, "score", "world")
