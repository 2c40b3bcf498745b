"""The price of money of a week: where a histogram of spend over log price meets the money."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from envs.live.plan.money_rules import MoneyRule, Totals
from envs.offers.constraints.purchase_queue import totals_after
from envs.offers.planning.knapsack import Increments
from envs.offers.world.catalogue import Catalogue

BINS = 4096
BISECTIONS = 40
TAIL = 8.0  # standard deviations of the private prices' logarithm: beyond lies 6e-16 of the probability
FINE = 50  # bins a standard deviation from which the histogram's error in price is of second order


class Demand(NamedTuple):
    """What S steps of an arm's customers add to each sum, [S] each, in any order.

    A customer's charge counts as the highest so far, so that it never falls as the price does.
    """

    log_price: np.ndarray
    spend: np.ndarray
    variance: np.ndarray
    charge: np.ndarray
    spend_square: np.ndarray
    charge_square: np.ndarray

    @classmethod
    def of(cls, steps: Increments, catalogue: Catalogue) -> Demand:
        """Return the steps that exist; steps [N, K]."""
        after = totals_after(steps, catalogue)
        real = (steps.price > 0) & (steps.price < torch.inf)

        def added(x: Tensor) -> np.ndarray:
            before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
            return (x - before)[real].numpy()

        charge = torch.where(real, after.charge, 0.0).cummax(1).values
        return cls(
            steps.price[real].double().log().numpy(),
            added(after.spend),
            added(after.variance),
            added(charge),
            added(after.spend.square()),
            added(charge.square()),
        )


class DemandCurve:
    """Sums over steps whose log price lies between `low` and `high`, in bins; all dearer steps are bought anyway."""

    def __init__(self, demand: Demand, low: float, high: float):
        inside = (demand.log_price >= low) & (demand.log_price <= high)
        dearer = demand.log_price > high
        log_price = demand.log_price[inside]
        scale = BINS / max(high - low, 1e-300)
        at = np.minimum(((log_price - low) * scale).astype(np.int64), BINS - 1)
        worth = np.exp(demand.log_price) * demand.spend
        rows = (demand.spend, demand.variance, demand.charge, worth, demand.spend_square, demand.charge_square)
        self.sums = np.stack([np.bincount(at, x[inside], BINS) for x in rows])
        self.dearer = np.array([x[dearer].sum() for x in rows])
        spend = self.sums[0]
        middle = low + (np.arange(BINS) + 0.5) / scale
        mean = np.bincount(at, log_price * demand.spend[inside], BINS) / np.where(spend > 0, spend, 1.0)
        self.log_price = np.where(spend > 0, mean, middle)
        self.low, self.high, self.width = low, high, 1 / scale

    def at(self, log_price: float, sigma: float) -> Totals:
        """Return the expected sums where private prices are a price times exp(σξ), ξ standard normal.

        With p ≥ q the probabilities of two steps of a customer and a, b ≥ 0 what they add, (ap + bq)² is at least
        a²p² + (2ab + b²)q². A sum of p(1 − p) times what each step adds to the square is therefore no less than the
        variance that lots bring.
        """
        bought = ndtr((self.log_price - log_price) / sigma)
        spend, variance, charge, worth = self.sums[:4] @ bought + self.dearer[:4]
        return Totals(spend, variance, charge, worth, *(self.sums[4:] @ (bought * (1 - bought))))


class Cleared(NamedTuple):
    """An arm's price of money, and what is expected at it."""

    price: float  #: as float32 has it; inf where there is no money
    totals: Totals
    grid_ended: bool  #: whether money is left at the lowest price


def clear(demand: Demand, money: float, rule: MoneyRule, sigma: float, lowest: float) -> Cleared:
    """Find the lowest price, from `lowest` on, at which the rule's use of money is at most `money`.

    The price is bisected on a histogram of BINS bins. The histogram is then rebuilt around that price until a bin is
    narrower than σ / FINE.
    """
    nothing = Totals(*(np.zeros(()) for _ in Totals._fields))
    if money <= 0 or not len(demand.log_price):
        return Cleared(math.inf if money <= 0 else lowest, nothing, money > 0)
    if sigma == 0:
        return clear_without_lots(demand, money, rule, lowest)
    floor = math.log(lowest)
    low = min(float(demand.log_price.min()), floor)
    curve = DemandCurve(demand, low, max(float(demand.log_price.max()), floor))

    def fits(log_price: float) -> bool:
        return bool(rule.used(curve.at(log_price, sigma)) <= money)

    if fits(floor):
        return Cleared(lowest, curve.at(floor, sigma), True)
    while True:
        bottom = max(curve.low - TAIL * sigma, floor)
        top = curve.high + max(TAIL * sigma, curve.width)
        for _ in range(BISECTIONS):
            middle = (bottom + top) / 2
            bottom, top = (bottom, middle) if fits(middle) else (middle, top)
        if curve.width * FINE <= sigma:
            break
        reach = max(TAIL * sigma, 2 * curve.width)
        curve = DemandCurve(demand, top - reach, top + reach)
    price = float(np.float32(math.exp(top)))
    return Cleared(price, curve.at(math.log(price), sigma), False)


def clear_without_lots(demand: Demand, money: float, rule: MoneyRule, lowest: float) -> Cleared:
    """Return the price just above that of the first step which the money does not cover; equal prices fall together.

    Steps below `lowest` are never bought: steps of action values go on below the grid.
    """
    order = np.argsort(-demand.log_price, kind="stable")
    price = np.exp(demand.log_price[order]).astype(np.float32)
    order, price = (x[price >= np.float32(lowest)] for x in (order, price))
    worth = price * demand.spend[order]
    none = np.zeros(len(order))
    added = (demand.spend[order], demand.variance[order], demand.charge[order], worth, none, none)
    sums = Totals(*(np.cumsum(x) for x in added))
    beyond = rule.used(sums) > money
    is_refused = bool(beyond.any())
    refused = price[beyond.argmax()] if is_refused else np.float32(0)
    last = int(np.searchsorted(-price, -refused)) - 1  # of the steps that are dearer
    totals = Totals(*(x[last] if last >= 0 else np.zeros(()) for x in sums))
    return Cleared(float(np.nextafter(refused, np.float32(np.inf))) if is_refused else lowest, totals, not is_refused)
