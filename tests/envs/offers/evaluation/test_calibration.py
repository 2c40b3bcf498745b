"""Calibrated spend: factors of spend that are known are found, and a plan on estimates then spends its budget."""

from __future__ import annotations

import pytest
import torch

from envs.offers.constraints.budget_rules import ExpectedSpend
from envs.offers.evaluation.calibration import calibrate_spend
from envs.offers.evaluation.profit_decomposition import summarise_spending
from envs.offers.planning.knapsack import Increments
from envs.offers.policies.baselines import KnapsackPolicy
from envs.offers.policies.information import ORACLE
from envs.offers.policies.wrappers import CalibratedSpendPolicy, ReservationPricePolicy, with_calibrated_spend
from envs.offers.world.history import History
from small_offers import small_evaluation


class Misjudging:
    """A policy that forecasts a share of what its messages cost, by week."""

    def __init__(self, policy, share):
        self.policy, self.share = policy, share
        self.information, self.view = policy.information, policy.view

    def increments(self, week, state, options) -> Increments:
        steps = self.policy.increments(week, state, options)
        return steps._replace(spend=steps.spend * self.share[week])


@pytest.fixture(scope="module")
def tuning():
    evaluation = small_evaluation(calibration_seasons=3)
    market = evaluation.tuning_market(evaluation.env.budget)
    assert isinstance(market.budget_rule, ExpectedSpend)
    myopic = KnapsackPolicy(market.customers, evaluation.world, ORACLE, values=None, fee=0.7)
    return evaluation, market, myopic


@pytest.mark.slow
def test_a_forecast_that_is_right_is_left_alone(tuning):
    evaluation, market, myopic = tuning
    assert calibrate_spend(evaluation, myopic, market).tolist() == pytest.approx([1.0] * len(market.budget))


@pytest.mark.slow
def test_the_factor_by_which_a_week_is_misjudged_is_found(tuning):
    evaluation, market, myopic = tuning
    share = torch.linspace(0.5, 1.6, len(market.budget), dtype=torch.float64)
    factor = calibrate_spend(evaluation, Misjudging(myopic, share), market)
    assert (factor * share).tolist() == pytest.approx([1.0] * len(share))
    calibrated = CalibratedSpendPolicy(Misjudging(myopic, share), factor)
    records = [evaluation.simulate(policy, market, None, 1, 99) for policy in (calibrated, myopic)]
    assert torch.equal(records[0][0].action, records[1][0].action)


def test_prices_are_of_the_corrected_money_and_reservation_prices_stay(tuning):
    _, market, myopic = tuning
    weeks = len(market.budget)
    state, twice = market.initial_state, torch.full((weeks,), 2.0, dtype=torch.float64)
    memory = myopic.view.start(state)
    history = History.start(state.status, twice.dtype)
    options = market.contact_policy.options(history, myopic.view.subscribed(memory, state), memory)
    before = myopic.increments(0, state, options)
    after = with_calibrated_spend(myopic, twice).increments(0, state, options)
    assert torch.equal(after.spend, 2 * before.spend) and torch.equal(after.price, before.price / 2)
    reserved = with_calibrated_spend(ReservationPricePolicy(myopic, torch.full_like(twice, 1.0)), twice)
    assert isinstance(reserved, ReservationPricePolicy)
    kept = reserved.increments(0, state, options).price > -torch.inf
    assert torch.equal(kept, before.price >= 2.0) and kept.any() and not kept.all()


@pytest.mark.long
def test_a_plan_on_estimates_spends_nearer_to_its_budget():
    """Where features tell little, θ̂ misjudges spend; calibrated on other customers, the plan spends its budget."""
    evaluation = small_evaluation(
        customers=400, tuning_customers=400, calibration_seasons=2, bound={"max_evaluations": 3}, r2=0.3
    )
    market, other = evaluation.test_market(evaluation.env.budget), evaluation.tuning_market(evaluation.env.budget)
    plain = evaluation.on_estimates.certainty_equivalent_planner(market)
    calibrated = evaluation.on_estimates.with_calibrated_spend(plain, other)

    def unspent(policy):
        records = evaluation.simulate(policy, market, None, 2, 99)
        return abs(1 - summarise_spending(records, market)["spend_ratio"])

    assert unspent(calibrated) < 0.5 * unspent(plain)
