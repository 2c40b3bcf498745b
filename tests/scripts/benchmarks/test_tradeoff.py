"""Margin against trips: two accounts of the same seasons, whose sum at a trip's value is the profit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from envs.offers.evaluation.streams import TEST_SEASONS
from envs.offers.policies.baselines import KnapsackPolicy, NoContact
from envs.offers.policies.information import ORACLE
from scripts.benchmarks.learning.tradeoff import Point, account, summarise, to_figure, to_table
from small_offers import small_evaluation


@pytest.mark.long
def test_profit_is_margin_and_the_value_of_trips():
    evaluator = small_evaluation()
    market = evaluator.test_market(evaluator.env.budget)
    assert market.world.reward.trips == 0.5
    myopic = KnapsackPolicy(market.customers, evaluator.world, ORACLE, values=None, fee=0.7)
    records = evaluator.simulate(myopic, market, None, evaluator.seasons, TEST_SEASONS)
    profit = torch.stack([record.incremental_profit.sum() for record in records]).mean().item()
    margin, trips, spend = account(evaluator, myopic, market)
    assert margin + 0.5 * trips == pytest.approx(profit) and margin != 0 and trips != 0
    spent = sum(record.expected_spend.sum() for record in records) / len(records)
    assert spend * market.budget.sum().item() == pytest.approx(spent.item())
    assert account(evaluator, NoContact(), market) == (0.0, 0.0, 0.0)


@pytest.mark.slow
def test_the_money_of_one_value_of_a_trip_can_be_given_to_another():
    """Shares are of what the best plan spends, which grows with the value; a week's money does not."""
    evaluator, values_more = small_evaluation(), small_evaluation()
    values_more.world.reward = replace(values_more.world.reward, trips=10.0)
    budget = evaluator.env.budget
    market, richer = (each.test_market(budget) for each in (evaluator, values_more))
    assert (richer.budget > 1.02 * market.budget).all()
    given = budget.with_weekly(market.budget[0].item() / len(market))
    torch.testing.assert_close(values_more.test_market(given).budget, market.budget)
    assert (given.rollover, given.stock, given.rule) == (budget.rollover, budget.stock, budget.rule)


def test_trainings_of_one_value_are_averaged_and_drawn():
    points = [
        Point("learned", 0.0, 10.0, 1.0, 0.9),
        Point("learned", 0.0, 14.0, 3.0, 1.0),
        Point("learned", 2.0, 8.0, 9.0, 1.0),
        Point("planning", 0.0, 20.0, 4.0, 1.0),
    ]
    first, second, third = summarise(points)
    assert (first["margin"], first["trips"], first["trainings"]) == (12.0, 2.0, 2)
    assert first["spend"] == pytest.approx(0.95)
    assert first["margin_half_width"] == pytest.approx(12.706 * 2.0, rel=1e-3)  # Student's quantile of 1 degree
    assert second["trip_value"] == 2.0 and second["margin_half_width"] == 0.0 and third["policy"] == "planning"
    assert to_table([first, second, third]).row_count == 3
    assert len(to_figure([first, second, third]).axes[0].texts) == 3


def test_nothing_to_judge_is_refused(tmp_path):
    config = composed("benchmark=learning/tradeoff", name="bench").benchmark
    with pytest.raises(ValueError, match="expected a folder with checkpoints"):
        instantiate(config, _convert_="all")(tmp_path, torch.device("cpu"), 0)
