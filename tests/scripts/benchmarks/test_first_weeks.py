"""The first weeks of a shop without a log: a price that spends the money, and what the weeks brought and cost."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from envs.offers.example_shop.customers import customer_rows
from envs.offers.planning.knapsack import Increments
from scripts.benchmarks.shop.first_weeks import NewShop, RandomSends, price_of_money


def test_at_the_price_of_money_the_expected_spend_is_the_money():
    price = torch.tensor([[3.0, 1.0], [0.5, -torch.inf], [2.0, 0.25]]).double()
    spend = torch.tensor([[1.0, 2.0], [4.0, 9.0], [0.5, 1.5]]).double()
    steps = Increments(price, spend, torch.tensor([[1, 2], [1, 1], [3, 4]]))
    found = price_of_money(steps, 2.5, 0.5).item()
    reached = [
        cost * norm.cdf(math.log(own / found) / 0.5)
        for own, cost in zip(price.flatten().tolist(), spend.flatten().tolist())
        if own > 0
    ]
    assert sum(reached) == pytest.approx(2.5, rel=1e-6)


@pytest.mark.slow
def test_weeks_without_a_send_bring_and_cost_nothing_and_each_send_costs_what_the_catalogue_says():
    rows = customer_rows(0, 40, 3, younger=False)
    nobody, everybody = (NewShop(rows, 3, RandomSends(share=share)) for share in (0.0, 1.0))
    weeks = [nobody.live() for _ in range(2)]
    assert nobody.profit_and_spend(weeks) == (0.0, 0.0)
    weeks = [everybody.live() for _ in range(2)]
    costs, values = everybody.catalogue.cost.tolist(), everybody.catalogue.value.tolist()
    paid = 0.0
    for week in weeks:
        sent = zip(week.offer.tolist(), week.channel.tolist(), week.redeemed.tolist())
        paid += sum(costs[channel] + values[offer] * redeemed for offer, channel, redeemed in sent if offer)
    profit, spend = everybody.profit_and_spend(weeks)
    assert spend == pytest.approx(paid / 40) and spend > 0.5 and profit != 0.0
