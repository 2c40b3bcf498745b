"""How policies of the sequential environment are judged: by common random numbers, against each week's knapsack."""
from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from envs.offers.planning.knapsack import upper_hull
from envs.offers.world.catalogue import ActionCodec
from rlcore.algorithm import Algorithm, Policy
from rlcore.report import Report
from envs.sequential.env import SequentialEnv
from rlcore.ope.intervals import LEVEL, normal_half_width
from rlcore.plots import labelled

TIE = 1e-6  # of pairs that earn the same at a price, the dearer
Choose = Callable[[SequentialEnv, Tensor, Tensor], Tensor]  # environment, obs [W, D], mask [W, *nvec] → flat pairs [W]


class Season(NamedTuple):
    """One season: [T·N, W] each; `values` [T·N, W, P] (expected rewards of all pairs) only where asked for."""

    gained: Tensor  # expected reward of what was sent
    paid: Tensor
    sent: Tensor  # flat pair
    best: Tensor  # the pair sent has the highest expected reward of all
    values: Tensor | None


class Knapsack(NamedTuple):
    """Each week's offline knapsack, its linear relaxation: value [T, W] and the price of budget there [T, W]."""

    value: Tensor
    price: Tensor


@torch.no_grad()
def play(choose: Choose, env: SequentialEnv, keep_values: bool = False) -> Season:
    """Play a season in every world from its start."""
    (obs, mask), steps = env.reset(), []
    for _ in range(env.season_steps):
        values = env.world.values(env.inputs.visit, env.inputs.week)
        pair = choose(env, obs, mask)
        step = env.step(ActionCodec(*env.nvec).decode_action(pair))
        gained = values.gather(1, env.sent[:, None])[:, 0]
        steps.append((gained, step.info["spend"], env.sent, gained >= values.amax(1), values if keep_values else None))
        obs, mask = step.obs, step.action_mask
    return Season(*(None if x[0] is None else torch.stack(x) for x in zip(*steps)))


def knapsack(values: Tensor, cost: Tensor, budget: float, weeks: int) -> Knapsack:
    """Solve the linear relaxation of the multiple-choice knapsack of each week and world.

    values [T·N, W, P], cost [P]. No plan that knows the whole week earns more; it exceeds the best integer plan by less
    than one customer's step (Sinha & Zoltners 1979).
    """
    steps, w, pairs = values.shape
    flat = values.reshape(-1, pairs).double()
    increments = upper_hull(flat, cost.expand(len(flat), -1))

    def by_week(x):  # → [weeks, W, N·K]
        return x.view(weeks, steps // weeks, w, -1).transpose(1, 2).flatten(2)
    price, order = by_week(increments.price).sort(dim=-1, descending=True, stable=True)
    price = price.clamp_min(0)  # −inf: no step
    spend = by_week(increments.spend).gather(-1, order) * (price > 0)
    before = spend.cumsum(-1) - spend
    taken = (budget - before).clamp_min(0).minimum(spend)
    cut = torch.where(before + spend > budget, price, 0.0).amax(-1)
    nothing = by_week(flat[:, :1]).sum(-1)
    return Knapsack(nothing + (taken * price).sum(-1), cut)


def nothing(env: SequentialEnv, obs: Tensor, mask: Tensor) -> Tensor:
    """Send nothing."""
    return torch.zeros(len(obs), dtype=torch.long, device=obs.device)


def priced(price: float) -> Choose:
    """Send what earns most at a price of budget; at 0, first come, first served."""
    def choose(env, obs, mask):
        fits = env.world.allowed(env.inputs.visit, (env.cost <= env.left[:, None] + 1e-9).view(-1, *env.nvec)).flatten(1)
        value = env.world.values(env.inputs.visit, env.inputs.week) - (price - TIE) * env.cost
        return value.masked_fill(~fits, -torch.inf).argmax(-1)
    return choose


def learned(policy: Policy, generator: torch.Generator | None) -> Choose:
    """Send what a learned policy draws, from a random stream of its own, or without a stream the policy's mode."""
    def choose(env, obs, mask):
        u = None if generator is None else torch.rand(len(obs), generator=generator, device=obs.device)
        return ActionCodec(*env.nvec).encode_action(policy.act(obs, mask, u)[0])
    return choose


class SequentialEvaluator:
    """Compare policies over seasons of new customers, by the expected rewards of what they send.

    `worlds` seasons are played for the table, `validation` in the course of training; the bid price is the mean price of
    the offline knapsacks of `others` more. `sample`: judge a policy by its draws, as it was trained. Where a budget binds,
    the mode of one that contacts every second customer may contact nobody.
    """

    headline = "offers/score"

    def __init__(self, env: SequentialEnv, *, seed: int, worlds: int, validation: int, others: int, sample: bool):
        self.sample = sample
        self.env, self.stream, self.worlds, self.validation, self.others = env, seed * 1000, worlds, validation, others
        self._reference: tuple | None = None

    def _play(self, choose: Choose, worlds: int, stream: int, keep_values: bool = False) -> Season:
        return play(choose, self.env.beside(worlds, self.stream + stream), keep_values)

    def _learned(self, policy: Policy) -> Choose:
        generator = torch.Generator(self.env.device).manual_seed(self.stream + 13) if self.sample else None
        return learned(policy, generator)

    def _bound(self, worlds: int, stream: int) -> tuple[Season, Knapsack]:
        season = self._play(nothing, worlds, stream, keep_values=True)
        return season, knapsack(season.values, self.env.cost, self.env.budget, self.env.world.weeks)

    def summary(self, season: Season, none: Season, bound: Knapsack) -> dict:
        """Score (share of what the offline knapsacks earn over sending nothing) with interval over worlds, and the rest."""
        weeks = self.env.world.weeks

        def weekly(x):  # [T, W]
            return x.double().view(weeks, -1, x.shape[1]).sum(1)
        gained, idle, paid = weekly(season.gained), weekly(none.gained), weekly(season.paid)
        gap = (bound.value - idle).sum(0)
        ratio = ((gained - idle).sum() / gap.sum().clamp_min(1e-12)).item()
        each = (gained - idle).sum(0) - ratio * gap  # delta method
        half = normal_half_width(each, LEVEL).item() / max(gap.mean().item(), 1e-12)
        week = (gained - idle).sum(1) / (bound.value - idle).sum(1).clamp_min(1e-12)
        return {
            "score": ratio, "score_ci": [ratio - half, ratio + half], "return": gained.sum(0).mean().item(),
            "incremental_profit": (gained - idle).sum(0).mean().item(),
            "return_ratio": (gained.sum() / bound.value.sum()).item(), "score_of_week": week.tolist(),
            "spend_ratio": paid.mean().item() / self.env.budget,
            "weeks_breached": (paid > self.env.budget + 1e-6).double().mean().item(),
            "contact_rate": (season.sent > 0).double().mean().item(), "best_rate": season.best.double().mean().item()}

    @torch.no_grad()
    def validate(self, algorithm: Algorithm) -> dict[str, float]:
        """Score a policy in the course of training."""
        if self._reference is None:
            self._reference = self._bound(self.validation, 1)
        result = self.summary(self._play(self._learned(algorithm.policy), self.validation, 1), *self._reference)
        return {f"offers/{name}": result[name] for name in ("score", "return", "spend_ratio", "contact_rate")}

    @torch.no_grad()
    def evaluate(self, algorithm: Algorithm | None, name: str) -> Report:
        """Compare all policies, the trained one among them where there is one."""
        none, bound = self._bound(self.worlds, 11)
        bid = self._bound(self.others, 12)[1].price.mean().item()
        generator = torch.Generator(self.env.device).manual_seed(self.stream)

        def random(env, obs, mask):
            u = torch.rand(mask.flatten(1).shape, generator=generator, device=mask.device)
            return u.masked_fill(~mask.flatten(1), -1.0).argmax(-1)
        policies = {"none": ("none", nothing), "random": ("none", random),
                    "first come": ("true θ", priced(0.0)), "bid price": ("true θ", priced(bid))}
        if algorithm is not None:
            policies[name] = ("features", self._learned(algorithm.policy))
        rows = {row: {"information": knows, **self.summary(self._play(choose, self.worlds, 11), none, bound)}
                for row, (knows, choose) in policies.items()}
        rows = dict(sorted(rows.items(), key=lambda item: item[1]["score"]))
        total, idle = bound.value.sum(0).mean().item(), rows["none"]["return"]
        extra = {"bound": {"value": total, "none": idle, "prices": bound.price.mean(1).tolist(), "gap": total - idle},
                 "worlds": self.worlds, "customers": self.env.customers, "bid_price": bid}
        columns = {"knows": lambda r: r["information"], "score": lambda r: f"{r['score']:.3f}",
                   "±": lambda r: f"{(r['score_ci'][1] - r['score_ci'][0]) / 2:.3f}",
                   "return": lambda r: f"{r['return']:,.1f}", "spend": lambda r: f"{r['spend_ratio']:.3f}",
                   "contacts": lambda r: f"{r['contact_rate']:.1%}", "best": lambda r: f"{r['best_rate']:.1%}"}
        return Report(
            title=f"{self.worlds:,} seasons of {self.env.world.weeks} weeks × {self.env.customers} customers, budget "
                  f"{self.env.budget:,.2f} a week",
            caption="score: share of what each week's offline knapsack earns over sending nothing, ± its 95 % interval; "
                    "first come: first served; best: decisions that send what earns most now",
            rows=rows, columns=columns, extra=extra, judged="score", plots={"weeks": week_figure(rows, name)},
            last=["knapsack", "the week", "1.000", "", f"{total:,.1f}", "", "", ""])


def week_figure(rows: dict, agent: str | None):
    """Draw each week's score of all policies but none."""
    figure, axes = labelled("week", "share of the offline knapsack")
    for name, row in rows.items():
        if name != "none":
            axes.plot(range(1, len(row["score_of_week"]) + 1), row["score_of_week"], marker="o", markersize=3, label=name,
                      linewidth=2.0 if name == agent else 1.0)
    axes.legend(frameon=False, fontsize=8)
    return figure
