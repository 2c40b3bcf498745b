"""Planning on draws of θ: the plan itself where θ is certain, one policy for all draws elsewhere."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from envs.offers.planning.dynamic_program import action_values, best_plan, no_contact_values
from envs.offers.planning.state_values import StateGrid
from envs.offers.policies.baselines import KnapsackPolicy
from envs.offers.policies.bayes_planner import BayesPlanner, PosteriorView
from envs.offers.policies.information import ORACLE
from envs.offers.populations.base import theta_from_matrix, theta_to_matrix
from envs.offers.world.customers import CustomerState
from envs.offers.world.history import PassedWeek, SeenWeek
from small_offers import small_evaluation

N = 12


@pytest.fixture(scope="module")
def market():
    evaluator = small_evaluation(customers=N, bound={"max_evaluations": 4})
    made = evaluator.test_market(evaluator.env.budget)
    return evaluator, made, evaluator.solve_bound(made)


@pytest.fixture(scope="module")
def two_draws(market):
    """True θ, and that of the customers in another order, [2, N, P]."""
    theta = theta_to_matrix(market[1].customers)
    return torch.stack((theta, theta.flip(0)))


def planner(market, theta):
    evaluator, _, bound = market
    return BayesPlanner(theta, evaluator.world, ORACLE, prices=bound.prices, scarcity=bound.scarcity, contacts=None)


def options(market, log_weight):
    return market[1].contact_policy(torch.ones(N, dtype=torch.bool), [])._replace(memory=log_weight)


def states(seed=0):
    g = torch.Generator().manual_seed(seed)
    levels = (torch.randint(n, (N,), generator=g) for n in (6, 4, 3))
    return CustomerState(*levels, torch.zeros(N, dtype=torch.long))


def same(found, wanted):
    """Whether two policies buy the same, at the same prices."""
    for mine, theirs in zip(zip(*found), zip(*wanted)):
        ours, other = (
            [(p.item(), s.item(), int(a)) for p, s, a in zip(*row) if p > -torch.inf] for row in (mine, theirs)
        )
        if len(ours) != len(other) or not all(x == pytest.approx(y) for x, y in zip(ours, other)):
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("week", [0, 7, 11])
def test_where_theta_is_certain_it_is_the_plan(market, two_draws, week):
    """By one draw, by equal draws, and by weights that leave one of two."""
    evaluator, made, bound = market
    plan = KnapsackPolicy(made.customers, evaluator.world, ORACLE, values=bound.values, fee=0.0)
    wanted = plan.increments(week, states(), options(market, None))
    one, two = two_draws[:1], torch.stack((two_draws[0], two_draws[0]))
    for theta, log_weight in ((one, [0.0]), (two, [0.0, 0.0]), (two_draws, [0.0, -200.0])):
        memory = torch.tensor(log_weight, dtype=torch.float64).expand(N, -1)
        assert same(planner(market, theta).increments(week, states(), options(market, memory)), wanted)
    memory = torch.tensor([-200.0, 0.0], dtype=torch.float64).expand(N, -1)
    assert not same(planner(market, two_draws).increments(week, states(), options(market, memory)), wanted)


def test_one_plan_for_all_draws_is_worth_no_more_than_each_draws_own(market, two_draws):
    """Under its own θ a draw's best plan is best; by weights, the common plan is no worse than either draw's plan."""
    evaluator, _, bound = market
    world, weight = evaluator.world, torch.tensor([[0.4], [0.6]], dtype=torch.float64).expand(2, N)
    draws = world.inhabit(theta_from_matrix(two_draws.flatten(0, 1)))
    common = planner(market, two_draws).next_values(draws, 10, weight, None).subscribed
    own = best_plan(draws, world, no_contact_values(draws, world), bound.prices, since=11)[0][0].subscribed
    assert (common <= own + 1e-9).all() and (common < own - 1e-3).any()
    # one action for both draws, state by state in plain numbers: the best by the weighted mean
    free = no_contact_values(draws, world)
    nothing, contact = action_values(draws, world, 11, StateGrid(draws.alpha), bound.prices[11], free[-1])
    table = torch.cat((nothing[None], contact.flatten(0, 1)))  # [1 + O·C, 6, 4, 3, 2 · N]
    shared = 0
    for i, h, f, d in product(range(N), (1, 4), (0, 2), (0, 1)):
        first, second = table[:, h, f, d, i].tolist(), table[:, h, f, d, N + i].tolist()
        best = max(range(len(first)), key=lambda a: 0.4 * first[a] + 0.6 * second[a])
        assert common[h, f, d, i].item() == pytest.approx(first[best])
        assert common[h, f, d, N + i].item() == pytest.approx(second[best])
        shared += first[best] < max(first) or second[best] < max(second)
    assert shared > 10
    silent = free[11].subscribed

    def weighted(values):
        return (values.unflatten(-1, (2, N)) * weight).sum(-2)

    assert (weighted(common) >= weighted(silent) - 1e-9).all()
    assert (weighted(common) > weighted(silent) + 1e-3).any()


def test_weights_follow_the_likelihood(market, two_draws):
    """A week without a message: P(purchase), moves of habit and churn by the world's equations, in plain numbers."""
    world = market[0].world
    view = PosteriorView(two_draws, world)
    state = states()
    zeros, no = torch.zeros(N, dtype=torch.long), torch.zeros(N, dtype=torch.bool)
    seen = SeenWeek(zeros, zeros, no, no, no, torch.zeros(N, dtype=torch.float64))
    start = view.start(state)
    found = view.after(start, PassedWeek(3, seen, state, state)) - start
    c = view.customers
    for i in range(N):
        h, f, d = (int(x[i]) for x in state[:3])
        for k in range(2):
            at = k * N + i
            b = c.alpha[at] + c.kappa[at] * h / 5 - c.xi[at] * d / 2 + 2 * world.season[3].log()
            churn = (c.c0[at] * torch.exp(-c.gamma_h[at] * h + c.gamma_f[at] * f)).clamp_max(0.5)
            wanted = (1 - torch.sigmoid(b)).log() + (1 - churn).log()
            wanted += (1 - c.pi_minus[at]).log() if h else 0.0
            wanted += (1 - c.delta_f[at]).log() if f else 0.0
            wanted += (1 - c.delta_d[at]).log() if d else 0.0
            assert found[i, k].item() == pytest.approx(wanted.item())


@pytest.mark.slow
def test_it_serves_a_season(market, two_draws):
    evaluator, made, bound = market
    (record,) = evaluator.simulate(planner(market, two_draws), made, bound, 1, 99)
    assert (record.action > 0).any() and (record.expected_spend.sum(1) <= made.budget * 3).all()
