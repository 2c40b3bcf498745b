"""The comparison as a table, as numbers and as plots."""

from __future__ import annotations

from dataclasses import dataclass, field

from matplotlib.figure import Figure
from rich.table import Table

from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.policies.information import ORACLE
from rlcore.runs.plots import COLORS, labelled, markdown, text_table, training_figure
from rlcore.runs.report import Report, RunResult, add_lines

FEE_TUNED = "myopic + fee on θ̂"  # the best of the trade's rules that a shop can follow


@dataclass(frozen=True)
class OffersReport:
    """Results by policy, grouped by what the policies were given, under one bound and one budget rule.

    `agent` is the row of the trained policy, or None; `least_lead` is the score that it should be above the fee-tuned
    rule on θ̂.
    """

    rows: dict[str, dict]
    bound: Bound
    customers: int
    seasons: int
    budget_rule: str
    agent: str | None
    excluded_shares: dict[str, float]  # share of the customers that each lasting contact rule excludes
    least_lead: float
    under_hard_rule: OffersReport | None = None  # the same under a rule that never exceeds a week's budget
    members: Report | None = None  # the learned policy under each member of a twin
    frontier: list[dict] = field(default_factory=list)  # the learned policy and the myopic knapsack at other budgets

    def to_metrics(self) -> dict:
        """Lay everything out for metrics.json."""
        bound = {
            "value": self.bound.value,
            "none": self.bound.none,
            "prices": self.bound.prices.tolist(),
            "gap": self.bound.gap,
            "certificate": self.bound.certificate,
            "budget": self.bound.budget.tolist(),
            "evaluations": self.bound.evaluations,
        }
        if self.bound.stock.isfinite().any():
            bound["scarcity"] = self.bound.scarcity.tolist()
        metrics = {
            "policies": self.rows,
            "rule": self.budget_rule,
            "bound": bound,
            "customers": self.customers,
            "seasons": self.seasons,
        }
        if self.under_hard_rule:
            metrics["hard"] = {"rule": self.under_hard_rule.budget_rule, "policies": self.under_hard_rule.rows}
        if self.excluded_shares:
            metrics["rules"] = self.excluded_shares
        if self.members:
            metrics["members"] = self.members.rows
        if self.frontier:
            metrics["frontier"] = self.frontier
        return metrics

    def result(self, name: str | None) -> RunResult:
        """Return the score of the trained policy, `name`, or of the best one, with its money and contacts."""
        keys = ("score", "incremental_profit", "spend_ratio", "weeks_breached", "contact_rate")
        return RunResult.from_rows(self.rows, name, keys, higher_is_better=True)

    def parts(self) -> dict[str, OffersReport | Report]:
        """Name the comparisons under each budget rule and under each member."""
        parts: dict[str, OffersReport | Report] = {"table": self}
        if self.under_hard_rule:
            parts["table_hard"] = self.under_hard_rule
        if self.members:
            parts["members"] = self.members
        return parts

    def _lines(self) -> dict[str, list[str]]:
        lines = {"upper bound": ["upper bound", ORACLE.knows, "1.000", "", f"{self.bound.gap:,.0f}", "", "", ""]}
        for name, row in self.rows.items():
            low, high = row["score_ci"]
            lines[name] = [
                name,
                row["information"],
                f"{row['score']:.3f}",
                f"{(high - low) / 2:.3f}",
                f"{row['incremental_profit']:,.0f}",
                f"{row['spend_ratio']:.3f}",
                f"{row['weeks_breached']:.0%}",
                f"{row['contact_rate']:.1%}",
            ]
        return lines

    @property
    def sample(self) -> str:
        """What the results are of, and how much of it, for the titles of plots."""
        return f"{self.customers:,} new customers, {self.seasons} seasons of {len(self.bound.budget)} weeks"

    def _verdict(self) -> tuple[str, str]:
        """Return lines on the trained policy beside the best rival of equal information, where there are both.

        The first part, for the top of the table, is empty where the policy is ahead and the interval of its lead above
        0, and where it scores `least_lead` more than the fee-tuned rule on θ̂.
        """
        row = self.rows[self.agent] if self.agent else {}
        rival = row.get("best_rival")
        if rival is None:
            return "", ""
        ahead, low, high = row["ahead_of"][rival]
        given = f"; training was given {row['training']}" if "training" in row else ""
        below = (
            f"\n{self.agent} less {rival}, the best of equal information: {ahead:+.3f}, 95 % interval {low:+.3f} to "
            f"{high:+.3f}, paired{given}"
        )
        above = ""
        if ahead <= 0:
            above += f"\n{rival}, of equal information, scores above {self.agent}"
        elif low <= 0:
            above += f"\nthe interval of {self.agent} less {rival}, of equal information, contains 0"
        lead, *_ = row["ahead_of"].get(FEE_TUNED, [self.least_lead])
        if lead < self.least_lead:
            above += f"\n{self.agent} is less than {self.least_lead:g} above {FEE_TUNED}: {lead:+.3f}"
        return above, below

    _columns = ("policy", "knows", "score", "±", "profit", "spend", "breach", "contacts")

    def to_table(self) -> Table:
        """Lay the comparison out for the console."""
        above, below = self._verdict()
        explanation = (
            "score: share of the provably attainable incremental profit, ± its 95 % interval; profit: "
            "over never contacting anyone, a season; spend: expected spend / budget; breach: weeks whose "
            "realised spend exceeded the budget" + self._exclusions()
        )
        if self.under_hard_rule:  # the table under the hard rule explains the columns of both
            explanation = ""
        table = text_table(
            f"{self.sample}, budget {self.bound.budget.mean():,.2f} a week\nmoney {self.budget_rule}" + above,
            self._columns,
            left=2,
            caption=(below + "\n" + explanation).strip() or None,
        )
        groups = {name: row["group"] for name, row in self.rows.items()}
        add_lines(table, self._lines(), {"upper bound": ORACLE.group, **groups})
        return table

    def _exclusions(self) -> str:
        return "".join(f"\nmasked for {share:.1%}: {reason}" for reason, share in self.excluded_shares.items())

    def to_markdown(self) -> str:
        """Lay the comparison out for TensorBoard and README."""
        verdict = "\n".join(self._verdict())
        return markdown(self._columns, list(self._lines().values())) + (f"\n{verdict}" if verdict.strip() else "")

    def to_figures(self, agent: str | None, headline: str, history: dict[str, list]) -> dict[str, Figure]:
        """Draw prices against the dual's, lost profit by cause, the training curve, and the frontier, if any."""
        curve = history.get(headline, [])
        figures = {"lost_profit": self._lost_figure()}
        if agent:
            figures["prices"] = self._price_figure(agent)
        if curve:
            figures["training"] = self._training_figure(curve, agent)
        if agent and self.frontier:
            figures["frontier"] = self._frontier_figure(agent)
        return figures

    def _price_figure(self, learned: str) -> Figure:
        figure, axes = labelled("week", "marginal price of a unit of budget")
        weeks = range(1, len(self.bound.prices) + 1)
        axes.plot(weeks, self.bound.prices.tolist(), "k--", label="of the best plan (the bound)")
        for name in ("planning", learned):
            axes.plot(weeks, self.rows[name]["prices"], marker="o", markersize=3, label=name)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        return figure

    def _lost_figure(self) -> Figure:
        figure, axes = labelled("share of the attainable incremental profit that is lost", "")
        names = [name for name in self.rows if name != "none"]
        ends = {1: [0.0] * len(names), -1: [0.0] * len(names)}  # of the bars so far: of losses, and of gains below 0
        for k, cause in enumerate(self.rows[names[0]]["lost"]["cause"]):
            parts = [self.rows[name]["lost"]["cause"][cause] for name in names]
            signs = [1 if part >= 0 else -1 for part in parts]
            left = [ends[sign][i] for i, sign in enumerate(signs)]
            axes.barh(names, parts, left=left, label=cause, height=0.7, color=COLORS[k])
            for i, (sign, part) in enumerate(zip(signs, parts)):
                ends[sign][i] += part
        lost = [1 - self.rows[name]["score"] for name in names]
        half_widths = [(self.rows[name]["score_ci"][1] - self.rows[name]["score_ci"][0]) / 2 for name in names]
        axes.errorbar(
            lost, names, xerr=half_widths, fmt="|", color="0.25", capsize=2, label="1 − score, with its 95 % interval"
        )
        axes.axvline(0, color="0.25", linewidth=0.8)
        figure.legend(loc="outside lower center", ncol=3, frameon=False, fontsize=8)
        return figure

    def _training_figure(self, curve: list[tuple[int, float]], agent: str | None) -> Figure:
        millions = [(step / 1e6, score) for step, score in curve]
        tested = {
            name: (row["score"], *row["score_ci"])
            for name, row in self.rows.items()
            if name not in ("none", "random", "propensity")
        }
        figure = training_figure("agent-steps, millions", "score, 1: the upper bound", millions, tested, agent)
        lowest = min(0.0, *(score for _, score in curve), *(low for _, low, _ in tested.values()))
        for axes in figure.axes:
            axes.set_ylim(lowest, 1.02)
        figure.axes[0].set_xlim(left=0)
        return figure

    def _frontier_figure(self, learned: str) -> Figure:
        figure, axes = labelled("weekly budget", "incremental profit of a season")
        budgets = [point["weekly_budget"] for point in self.frontier]
        axes.plot(budgets, [point["bound"] for point in self.frontier], "k--", label="upper bound")
        for name in (learned, "myopic knapsack"):
            axes.plot(
                budgets,
                [point[name]["incremental_profit"] for point in self.frontier],
                marker="o",
                markersize=3,
                label=name,
            )
        axes.legend(frameon=False)
        return figure


def twin_members_report(name: str, members: list[dict], customers: int) -> Report:
    """Report what a policy earns under each member of a twin; every member has its own budget and its own bound."""
    rows = {
        f"member {k + 1}": {**member[name], "bound": member["bound"], "weekly_budget": member["weekly_budget"]}
        for k, member in enumerate(members)
    }
    columns = {
        "score": lambda row: f"{row['score']:.3f}",
        "±": lambda row: f"{(row['score_ci'][1] - row['score_ci'][0]) / 2:.3f}",
        "profit": lambda row: f"{row['incremental_profit']:,.0f}",
        "of at most": lambda row: f"{row['bound']:,.0f}",
        "spend": lambda row: f"{row['spend_ratio']:.3f}",
    }
    return Report(
        title=f"{name} under each member of the twin, {customers:,} customers",
        caption="profit: over never contacting, a season",
        rows=rows,
        columns=columns,
        last=None,
        extra={},
        plots={},
        judged="score",
        what="world",
    )
