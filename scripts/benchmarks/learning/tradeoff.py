"""Margin against trips: what policies that value a trip differently bring of both.

Usage:

    python scripts/train.py experiment=tradeoff
    python scripts/bench.py learning/tradeoff benchmark.folder=outputs/sweep/…

Both are expected, over never contacting anyone, and include what a customer brings after the season. A trip has a value
beside its margin (`env.reward.trips`): 0 is the CFO's end, a high value the CMO's. All policies have the same money,
the budget of the least value: budgets are shares of what the best plan spends, which grows with the value of a trip.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from envs.offers.evaluation import EvaluationMarket, OffersEvaluator
from envs.offers.evaluation.streams import TEST_SEASONS
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.information import ORACLE
from envs.offers.policies.rollover import planning_policy
from rlcore.ope.intervals import LEVEL, student_half_width
from rlcore.runs.plots import labelled, text_table
from scripts.benchmarks.common.display import save_figure, show
from scripts.benchmarks.common.trained import restore

CAPTION = (
    "value: of a trip beside its margin; margin (money, less spend) and trips: of all customers, expected, over never "
    "contacting anyone, a season and what follows it; spend: expected spend / budget, the same for all; ±: half of "
    "Student's 95 % interval over trainings; planning knows true θ"
)


class Point(NamedTuple):
    """What one policy brings over never contacting anyone."""

    policy: str
    trip_value: float  #: beside its margin, money
    margin: float  #: money, less spend
    trips: float
    spend: float  #: expected, as a share of the budget


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    evaluation: Callable[..., OffersEvaluator],
    folder: str | None,
    checkpoints: list[str],
    trusted_packages: list[str],
) -> dict:
    """Judge all trainings on the same test customers by margin and by trips; print, draw and return both.

    Raises ValueError where there is no checkpoint.
    """
    paths = list(checkpoints)
    if folder is not None:
        paths += [str(path) for path in sorted(Path(folder).rglob("checkpoint.pt"))]
    if not paths:
        raise ValueError("benchmark.folder: expected a folder with checkpoints of experiment=tradeoff, got none")
    points: list[Point] = []
    planned = set()
    trainings = [restore(path, device, trusted_packages) for path in paths]
    trainings.sort(key=lambda training: training.env.world.reward.trips)
    budget = trainings[0].env.budget
    first = evaluation(trainings[0].env).test_market(budget)
    budget = budget.with_weekly(first.budget[0].item() / len(first))
    for training in trainings:
        evaluator = evaluation(training.env)
        market, tuning_market = (draw(budget) for draw in (evaluator.test_market, evaluator.tuning_market))
        trip_value = training.env.world.reward.trips
        policies: dict[str, SeasonPolicy] = {"learned": evaluator.deploy(training.agent, market, tuning_market)[0]}
        if trip_value not in planned:
            policies["planning"] = planning_policy(market, evaluator.solve_bound(market), ORACLE)
            planned.add(trip_value)
        points += [Point(name, trip_value, *account(evaluator, policy, market)) for name, policy in policies.items()]
    rows = summarise(points)
    show(to_table(rows))
    save_figure(directory, "tradeoff", to_figure(rows))
    return {"points": [point._asdict() for point in points], "rows": rows}


def account(evaluator: OffersEvaluator, policy: SeasonPolicy, market: EvaluationMarket) -> tuple[float, float, float]:
    """Return what a policy adds to margin less spend and to the number of trips, and its spend / budget.

    All are means over the test seasons. Profit is linear in the value of a trip, so two accounts of the same seasons
    tell margin and trips.
    """
    profits = []
    for value in (0.0, 1.0):
        valued = with_trip_value(market, value)
        records = evaluator.simulate(policy, valued, None, evaluator.seasons, TEST_SEASONS)
        profits.append(torch.stack([record.incremental_profit.sum() for record in records]).mean().item())
    spend = torch.stack([record.expected_spend.sum() for record in records]).mean() / market.budget.sum()
    return profits[0], profits[1] - profits[0], spend.item()


def with_trip_value(market: EvaluationMarket, value: float) -> EvaluationMarket:
    """Return a market whose accounts value a trip so; the customers and what may be spent stay the same."""
    world = copy(market.world)
    world.reward = replace(world.reward, trips=value)
    return market.with_customers(market.customers, world)


def summarise(points: list[Point]) -> list[dict[str, Any]]:
    """Average the points of each policy and value of a trip over trainings, by policy and value."""
    rows = []
    for policy, trip_value in sorted({(point.policy, point.trip_value) for point in points}):
        of_setting = [point for point in points if (point.policy, point.trip_value) == (policy, trip_value)]
        row: dict[str, Any] = {"policy": policy, "trip_value": trip_value, "trainings": len(of_setting)}
        for key in ("margin", "trips", "spend"):
            values = torch.tensor([getattr(point, key) for point in of_setting], dtype=torch.float64)
            row[key] = values.mean().item()
            row[f"{key}_half_width"] = student_half_width(values, LEVEL).item()
        rows.append(row)
    return rows


def to_table(rows: list[dict[str, Any]]):
    """Lay out margin and trips by policy and value of a trip."""
    lines = [
        [
            row["policy"],
            f"{row['trip_value']:g}",
            str(row["trainings"]),
            f"{row['margin']:,.0f}",
            f"{row['margin_half_width']:,.0f}" if row["trainings"] > 1 else "",
            f"{row['trips']:,.0f}",
            f"{row['trips_half_width']:,.0f}" if row["trainings"] > 1 else "",
            f"{row['spend']:.3f}",
        ]
        for row in rows
    ]
    return text_table(
        "Margin against trips",
        ["policy", "value", "trainings", "margin", "±", "trips", "±", "spend"],
        lines,
        caption=CAPTION,
    )


def to_figure(rows: list[dict[str, Any]]) -> Figure:
    """Draw margin against trips, a line a policy; each point names the value of a trip."""
    figure, axes = labelled("trips over never contacting anyone", "margin over never contacting anyone, money")
    for policy in dict.fromkeys(row["policy"] for row in rows):
        of_policy = [row for row in rows if row["policy"] == policy]
        axes.errorbar(
            [row["trips"] for row in of_policy],
            [row["margin"] for row in of_policy],
            xerr=[row["trips_half_width"] for row in of_policy],
            yerr=[row["margin_half_width"] for row in of_policy],
            marker="o",
            markersize=3,
            label=policy,
        )
        for row in of_policy:
            axes.annotate(f" {row['trip_value']:g}", (row["trips"], row["margin"]), fontsize=7)
    axes.legend(frameon=False, title="by the value of a trip beside its margin", title_fontsize=8, loc="center right")
    return figure
