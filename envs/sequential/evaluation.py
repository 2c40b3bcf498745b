"""Compare policies of the sequential environment by common random numbers, against each week's offline knapsack."""

from __future__ import annotations

from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs.offers.planning.knapsack import upper_hull
from envs.offers.world.catalogue import ActionCodec
from envs.sequential.env import SequentialEnv
from envs.sequential.policies import Choose, bid_price, learned_policy, no_contact, random_actions
from rlcore.algorithm import Algorithm
from rlcore.ope.intervals import LEVEL, normal_half_width
from rlcore.runs.plots import labelled
from rlcore.runs.progress import tracked
from rlcore.runs.report import Report

BREACH = 1e-6  # excess over a week's budget by rounding, money


class SeasonRecord(NamedTuple):
    """One season of T weeks, N customers and W worlds, [T·N, W] each."""

    reward: Tensor  # expected reward of the action sent
    spend: Tensor
    flat_action: Tensor  # sent
    is_best: Tensor  # whether the action sent has the highest expected reward of all
    values: Tensor | None  # expected rewards of all flat actions, [T·N, W, P]; only with `keep_values`


class OfflineKnapsack(NamedTuple):
    """The linear relaxation of each week's offline knapsack: its value and its price of budget, [T, W]."""

    value: Tensor
    price: Tensor


@torch.no_grad()
def simulate_season(choose: Choose, env: SequentialEnv, keep_values: bool = False) -> SeasonRecord:
    """Simulate a season in every world, from the worlds' start."""
    obs, action_mask = env.reset()
    reward, spend, flat_action, is_best, kept_values = [], [], [], [], []
    codec = ActionCodec(*env.nvec)
    for _ in range(env.season_steps):
        values = env.world.values(env.inputs.visit, env.inputs.week)
        chosen = choose(env, obs, action_mask)
        step = env.step(codec.decode_action(chosen))
        reward.append(values.gather(1, env.sent_action[:, None])[:, 0])
        spend.append(step.info["spend"])
        flat_action.append(env.sent_action)
        is_best.append(reward[-1] >= values.amax(1))
        if keep_values:
            kept_values.append(values)
        obs, action_mask = step.obs, step.action_mask
    return SeasonRecord(
        reward=torch.stack(reward),
        spend=torch.stack(spend),
        flat_action=torch.stack(flat_action),
        is_best=torch.stack(is_best),
        values=torch.stack(kept_values) if keep_values else None,
    )


def offline_knapsack(values: Tensor, cost: Tensor, budget: float, weeks: int) -> OfflineKnapsack:
    """Solve the linear relaxation of the multiple-choice knapsack of each week and world.

    values [T·N, W, P], cost [P], budget of a week and world. No plan that knows the whole week earns more; the
    relaxation exceeds the best integer plan by less than one customer's increment (Sinha & Zoltners 1979).
    """
    steps, w, actions = values.shape
    flat = values.reshape(-1, actions).double()
    increments = upper_hull(flat, cost.expand(len(flat), -1))

    def by_week(x: Tensor) -> Tensor:  # → [weeks, W, N·K]
        return x.view(weeks, steps // weeks, w, -1).transpose(1, 2).flatten(2)

    price, order = by_week(increments.price).sort(dim=-1, descending=True, stable=True)
    price = price.clamp_min(0)  # −inf: no increment
    spend = by_week(increments.spend).gather(-1, order) * (price > 0)
    spent_before = spend.cumsum(-1) - spend
    taken = (budget - spent_before).clamp_min(0).minimum(spend)
    clearing_price = torch.where(spent_before + spend > budget, price, 0.0).amax(-1)
    no_contact = by_week(flat[:, :1]).sum(-1)
    return OfflineKnapsack(value=no_contact + (taken * price).sum(-1), price=clearing_price)


class SequentialEvaluator:
    """Compares policies over seasons of new customers, by the expected rewards of the actions sent.

    `worlds` seasons are simulated for the table, and `validation` seasons during training. The bid price is the mean
    price of the offline knapsacks of `tuning_worlds` more. With `sample`, a policy is evaluated by its draws, as it was
    trained: where a budget binds, the mode of a policy that contacts every second customer may contact nobody.
    """

    headline = "validation/score"

    def __init__(
        self, env: SequentialEnv, *, seed: int, worlds: int, validation: int, tuning_worlds: int, sample: bool
    ):
        self.env, self.stream, self.sample = env, seed * 1000, sample
        self.worlds, self.validation, self.tuning_worlds = worlds, validation, tuning_worlds
        self._validation: tuple[SeasonRecord, OfflineKnapsack] | None = None

    def _simulate(self, choose: Choose, worlds: int, stream: int, keep_values: bool = False) -> SeasonRecord:
        return simulate_season(choose, self.env.copy_of_size(worlds, self.stream + stream), keep_values)

    def _deploy(self, algorithm: Algorithm) -> Choose:
        generator = torch.Generator(self.env.device).manual_seed(self.stream + 13) if self.sample else None
        return learned_policy(algorithm.policy, generator)

    def _bound(self, worlds: int, stream: int) -> tuple[SeasonRecord, OfflineKnapsack]:
        """Return the season without contacts and the offline knapsacks of the same customers."""
        season = self._simulate(no_contact, worlds, stream, keep_values=True)
        assert season.values is not None  # they were asked for
        return season, offline_knapsack(season.values, self.env.cost, self.env.budget, self.env.world.weeks)

    def summarise(self, season: SeasonRecord, baseline: SeasonRecord, bound: OfflineKnapsack) -> dict:
        """Summarise a policy against the `baseline`, which sends nothing.

        The score is the policy's gain over the baseline as a share of the offline knapsacks' gain, with its interval
        over worlds.
        """
        weeks = self.env.world.weeks

        def weekly(x: Tensor) -> Tensor:  # [T, W]
            return x.double().view(weeks, -1, x.shape[1]).sum(1)

        reward, baseline_reward, spend = weekly(season.reward), weekly(baseline.reward), weekly(season.spend)
        gain = reward - baseline_reward
        attainable = bound.value - baseline_reward
        gap = attainable.sum(0)
        score = (gain.sum() / gap.sum().clamp_min(1e-12)).item()
        residual = gain.sum(0) - score * gap  # delta method
        half_width = normal_half_width(residual, LEVEL).item() / max(gap.mean().item(), 1e-12)
        score_of_week = gain.sum(1) / attainable.sum(1).clamp_min(1e-12)
        return {
            "score": score,
            "score_ci": [score - half_width, score + half_width],
            "return": reward.sum(0).mean().item(),
            "incremental_profit": gain.sum(0).mean().item(),
            "return_ratio": (reward.sum() / bound.value.sum()).item(),
            "score_of_week": score_of_week.tolist(),
            "spend_ratio": spend.mean().item() / self.env.budget,
            "weeks_breached": (spend > self.env.budget + BREACH).double().mean().item(),
            "contact_rate": (season.flat_action > 0).double().mean().item(),
            "best_rate": season.is_best.double().mean().item(),
        }

    @torch.no_grad()
    def validate(self, algorithm: Algorithm) -> dict[str, float]:
        """Score the algorithm's policy during training."""
        if self._validation is None:
            self._validation = self._bound(self.validation, 1)
        summary = self.summarise(self._simulate(self._deploy(algorithm), self.validation, 1), *self._validation)
        return {f"validation/{name}": summary[name] for name in ("score", "return", "spend_ratio", "contact_rate")}

    @torch.no_grad()
    def evaluate(self, algorithm: Algorithm | None, name: str) -> Report:
        """Compare the algorithm, as the row `name`, with all policies that need no training."""
        baseline, bound = self._bound(self.worlds, 11)
        mean_price = self._bound(self.tuning_worlds, 12)[1].price.mean().item()
        generator = torch.Generator(self.env.device).manual_seed(self.stream)
        policies = {
            "none": ("none", no_contact),
            "random": ("none", random_actions(generator)),
            "first come": ("true θ", bid_price(0.0)),
            "bid price": ("true θ", bid_price(mean_price)),
        }
        if algorithm is not None:
            policies[name] = ("features", self._deploy(algorithm))
        rows = {
            row: {
                "information": information,
                **self.summarise(self._simulate(choose, self.worlds, 11), baseline, bound),
            }
            for row, (information, choose) in tracked(policies.items(), "policies")
        }
        return self._report(dict(sorted(rows.items(), key=lambda item: item[1]["score"])), name, bound, mean_price)

    def _report(self, rows: dict[str, dict], name: str, bound: OfflineKnapsack, mean_price: float) -> Report:
        value, no_contact_value = bound.value.sum(0).mean().item(), rows["none"]["return"]
        metrics = {
            "value": value,
            "none": no_contact_value,
            "prices": bound.price.mean(1).tolist(),
            "gap": value - no_contact_value,
        }
        columns = {
            "knows": lambda row: row["information"],
            "score": lambda row: f"{row['score']:.3f}",
            "±": lambda row: f"{(row['score_ci'][1] - row['score_ci'][0]) / 2:.3f}",
            "return": lambda row: f"{row['return']:,.1f}",
            "spend": lambda row: f"{row['spend_ratio']:.3f}",
            "contacts": lambda row: f"{row['contact_rate']:.1%}",
            "best": lambda row: f"{row['best_rate']:.1%}",
        }
        return Report(
            title=f"{self.worlds:,} seasons of {self.env.world.weeks} weeks × {self.env.customers} customers, budget "
            f"{self.env.budget:,.2f} a week",
            caption="score: share of the weeks' offline knapsacks' gain over sending nothing, ± its 95 % interval; "
            "best: share of decisions with the highest immediate reward",
            rows=rows,
            columns=columns,
            last=["knapsack", "the week", "1.000", "", f"{value:,.1f}", "", "", ""],
            extra={"bound": metrics, "worlds": self.worlds, "customers": self.env.customers, "bid_price": mean_price},
            plots={"weeks": week_figure(rows, name)},
            judged="score",
            beside=("return", "spend_ratio", "contact_rate"),
            texts=1,
        )


def week_figure(rows: dict[str, dict], learned: str | None) -> Figure:
    """Draw each week's score of all policies but none."""
    figure, axes = labelled("week", "share of the offline knapsack")
    for name, row in rows.items():
        if name != "none":
            axes.plot(
                range(1, len(row["score_of_week"]) + 1),
                row["score_of_week"],
                marker="o",
                markersize=3,
                label=name,
                linewidth=2.0 if name == learned else 1.0,
            )
    axes.legend(frameon=False, fontsize=8)
    return figure
