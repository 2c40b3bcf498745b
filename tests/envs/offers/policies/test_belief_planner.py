"""Planning under a belief: the plan itself where the state is certain, an expectation elsewhere."""

from __future__ import annotations

import pytest
import torch

from envs.offers.evaluation.profit_decomposition import summarise_seasons
from envs.offers.policies.baselines import KnapsackPolicy
from envs.offers.policies.belief_planner import BeliefPlanner, BeliefView, from_memory, to_memory
from envs.offers.policies.information import ORACLE
from envs.offers.policies.rollover import planning_policy
from envs.offers.world.customers import CustomerState
from envs.offers.world.filtering import Belief, start_belief
from reference_world import INSIDE
from small_offers import small_evaluation


def one_hot(n: int, customers: int) -> torch.Tensor:
    """Memories of customers who are in state n for sure, [N, 79]."""
    memory = torch.zeros(customers, 79, dtype=torch.float64)
    memory[:, n] = 1.0
    return memory


@pytest.mark.long
def test_it_is_the_expectation_of_the_plan_over_states():
    """Value and spend of all actions: the plan's where the state is certain, a mean of two plans between two states."""
    evaluator = small_evaluation(customers=20)
    market = evaluator.test_market(evaluator.env.budget)
    bound = evaluator.solve_bound(market)
    c, world = market.customers, market.world
    view = BeliefView(c, world, start_belief(c).marginals()[:, 0])
    blind = BeliefPlanner(c, world, ORACLE, view, fee=0.0, values=bound.values)
    planner = KnapsackPolicy(c, world, ORACLE, values=bound.values, fee=0.0)
    mask = market.contact_policy(torch.ones(20, dtype=torch.bool), [])
    kept = {}

    def steps(policy, state, memory):
        """Increments as {action: (price, spend)} by customer, without the steps that no price reaches."""
        found = policy.increments(5, state, mask._replace(memory=memory))
        return [{int(a): (p.item(), s.item()) for p, s, a in zip(*row) if p > 0} for row in zip(*found)]

    for n in (0, 17, 40, 71):
        h, f, d, z = INSIDE[n]
        state = CustomerState(*(torch.full((20,), x) for x in (h, f, d, z)))
        ours, theirs = steps(blind, unreadable(20), one_hot(n, 20)), steps(planner, state, None)
        kept[n] = ours
        for mine, wanted in zip(ours, theirs):
            assert mine.keys() == wanted.keys()
            for action, (price, spend) in wanted.items():
                assert abs(mine[action][0] - price) < 1e-7 * max(1.0, price) and abs(mine[action][1] - spend) < 1e-9
    assert any(kept[0][i] != kept[40][i] for i in range(20))
    gone = steps(blind, unreadable(20), one_hot(78, 20))
    assert all(not row for row in gone)  # a message to a churned customer brings nothing at any price
    half = (one_hot(0, 20) + one_hot(17, 20)) / 2
    assert steps(blind, unreadable(20), half) != kept[0]


def unreadable(n: int) -> CustomerState:
    """States that say nothing, for a policy that may not read them."""
    return CustomerState(*(torch.full((n,), -1) for _ in range(4)))


def test_a_memory_is_a_belief():
    belief = Belief(
        *(torch.rand(*shape, 3, generator=torch.Generator().manual_seed(0)) for shape in ((6, 4, 3), (6,), ()))
    )
    for x, y in zip(belief, from_memory(to_memory(belief))):
        assert torch.equal(x, y)


@pytest.mark.long
def test_seasons_of_unseen_states_score_between_nothing_and_the_plan():
    """On 60 customers the planner that sees no state earns most of the plan's profit, and less than the plan."""
    evaluator = small_evaluation(customers=60)
    market = evaluator.test_market(evaluator.env.budget)
    bound = evaluator.solve_bound(market)
    start = start_belief(market.customers).marginals()[:, 0]
    scores = {}
    for name, policy in (
        ("seen", planning_policy(market, bound, ORACLE)),
        ("unseen", planning_policy(market, bound, ORACLE, start)),
    ):
        records = evaluator.simulate(policy, market, bound, 2, 13)
        scores[name] = summarise_seasons(records, market, bound)["score"]
    assert 0.6 < scores["unseen"] < scores["seen"] - 0.02
