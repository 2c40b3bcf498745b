"""Views of a customer: the season's sums beside the state, and views that tell no more than a shop knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from configs import node
from envs.data_collection import UniformPolicy, rollouts
from envs.offers.env import OffersEnv
from envs.offers.evaluation.simulation import simulate_season
from envs.offers.policies.learned import ValueKnapsackPolicy
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNSUBSCRIBED, CustomerState
from envs.offers.world.filtering import Belief, filter_week
from envs.offers.world.history import SeenWeek
from policies import greedy
from rlcore.distributions import draw, unflatten
from small_offers import small_evaluation

CPU = torch.device("cpu")
HIDING = ["history", "belief"]
LEAVING = {"uniform": {"c0": [0.2, 0.4]}, "lognormal": {"opt_out": [8.0, 0.5]}}  # many churn, many opt out


def environment(view: str, agents: int = 60, leaving: bool = True, seed: int = 0, **changes) -> OffersEnv:
    """An environment under a view, in which many customers leave."""
    config = OmegaConf.merge(
        node("offers_full_information"),
        {
            "num_agents": agents,
            "population": {"reference_size": 1000, "priors": LEAVING if leaving else {}},
            **changes,
        },
    )
    config.observation = node(f"observation/{view}")
    return instantiate(config, _convert_="all")(CPU, seed)


def play(env: OffersEnv, seed: int = 1):
    """Yield, for a season of random actions: observation, mask, action, step, states before and after."""
    generator = torch.Generator().manual_seed(seed)
    obs, mask = env.reset()
    for _ in range(env.episode_length):
        flat = mask.flatten(1)
        action = unflatten(
            draw(flat.float() / flat.sum(1, keepdim=True), torch.rand(len(obs), generator=generator)), env.nvec
        )
        before = env.state
        step = env.step(action)
        yield obs, mask, action, step, before, env.state
        obs, mask = step.obs, step.action_mask


# ── the season's sums ───────────────────────────────────────────────────────────────────────────────────────────────
def counted(env: OffersEnv, weeks: list, customer: int, by_state: bool) -> list[float]:
    """The sums of one customer after some weeks, in plain Python."""
    channels, offers = len(env.world.catalogue.channels), len(env.world.catalogue.offers) - 1
    weeks_by_habit, purchases_by_habit, moves = [0] * 6, [0] * 6, [0] * 4
    sent_channel, redeemed_channel, sent_offer, redeemed_offer = (
        [0] * channels,
        [0] * channels,
        [0] * offers,
        [0] * offers,
    )
    for _, _, action, step, before, after in weeks:
        (h, f, d, z), (h2, f2, d2, z2) = ([x[customer].item() for x in state] for state in (before, after))
        offer, channel = action[customer].tolist()
        bought, redeemed = (step.info[key][customer].item() for key in ("trips", "redeemed"))
        if offer:
            sent_channel[channel] += 1
            sent_offer[offer - 1] += 1
            redeemed_channel[channel] += redeemed
            redeemed_offer[offer - 1] += redeemed
        if z != CHURNED:
            weeks_by_habit[h] += 1
            purchases_by_habit[h] += bought
            if z2 != CHURNED:
                moves[0] += bought and h2 > h
                moves[1] += not bought and h2 < h
                moves[2] += not offer and f2 < f
                moves[3] += not redeemed and d2 < d
    purchases = sum(purchases_by_habit)
    first = [*weeks_by_habit, *purchases_by_habit, *moves] if by_state else [purchases]
    sums = [*first, *sent_channel, *redeemed_channel, *sent_offer, *redeemed_offer]
    margin = env.customers.margin[customer].log1p().item() if purchases else 0.0
    return [*(0.5 * x for x in sums), margin]


@pytest.mark.long
@pytest.mark.parametrize("view", ["state_counts", *HIDING])
def test_the_sums_are_those_of_the_season_so_far(view):
    env, weeks = environment(view), []
    names = env.codec.dynamics_names
    assert len(names) == env.codec.num_dynamics == len(set(names)) and names[-1] == "mean margin"
    own = {"state_counts": 37}.get(view, 22)
    for week in play(env):
        weeks.append(week)
        found = env.codec.decode_dynamics(week[3].obs)[:, -own:]
        wanted = torch.tensor([counted(env, weeks, i, view == "state_counts") for i in range(env.num_agents)])
        torch.testing.assert_close(found, wanted)
    assert (env.state.status == CHURNED).sum() > 10 and (env.state.status == UNSUBSCRIBED).sum() > 3
    assert (wanted.amax(0) > 0).all()  # every sum is of something


@pytest.mark.slow
def test_state_and_counts_are_the_state_and_more():
    plain, counts = environment("state"), environment("state_counts")
    for (obs, mask, *_), (other, other_mask, *_) in zip(play(plain), play(counts)):
        assert torch.equal(mask, other_mask)
        first, last = counts.codec.dynamics.start + 13, counts.codec.dynamics.stop
        assert torch.equal(obs, torch.cat((other[:, :first], other[:, last:]), 1))
        assert all(torch.equal(*x) for x in zip(plain.codec.decode_state(obs), counts.codec.decode_state(other)))


@pytest.mark.slow
@pytest.mark.parametrize("view", ["state_counts", *HIDING])
def test_without_contacts_is_what_a_customer_shows_who_was_never_sent_anything(view):
    """The columns of contacts of a rested customer are those of one without contacts; the others stay."""
    env = environment(view)
    *_, last = play(env)
    obs = last[3].obs
    rested = env.codec.without_contacts(obs)
    nobody = env.reset()[0] if view == "state_counts" else obs
    names = env.codec.dynamics_names
    columns = env.codec.decode_dynamics(rested)
    for k, name in enumerate(names):
        if name.startswith(
            ("contacts", "redemptions", "attention", "spend", "last contact", "fatigue down", "expectation down")
        ):
            assert not columns[:, k].any(), name
        elif name.startswith(("weeks", "purchases", "habit", "mean margin", "last purchase")):
            assert torch.equal(columns[:, k], env.codec.decode_dynamics(obs)[:, k]), name
    assert (env.codec.decode_status(rested) == SUBSCRIBED).all() and len(nobody)


# ── a view that hides hides all ─────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("view", HIDING)
def test_a_hiding_view_reads_no_state(view):
    env = environment(view)
    codec, generator = env.codec, torch.Generator().manual_seed(3)
    for *_, step, _, after in play(env):
        other = CustomerState(*(torch.randint(n, (env.num_agents,), generator=generator) for n in (6, 4, 3, 3)))
        arguments = (env.memory, env.week % 12, env.price if env.week < 12 else env.prices[-1], env.drift)
        shown = [codec.encode(env.features, state, *arguments) for state in (after, other)]
        assert torch.equal(*shown) and torch.equal(
            codec.subscribed(after, env.memory), codec.subscribed(other, env.memory)
        )
        assert torch.equal(shown[0][:, : codec.status.stop], step.obs[:, : codec.status.stop])


@pytest.mark.parametrize("view", HIDING)
def test_who_churned_looks_like_who_is_silent(view):
    """Masks and status columns tell opt-outs alone; a customer who churned is written to as before."""
    env, opted_out = environment(view), torch.zeros(60, dtype=torch.bool)
    for obs, mask, *_, before, after in play(env):
        assert torch.equal(mask.flatten(1).sum(1) == 1, opted_out)
        assert torch.equal(env.codec.decode_status(obs), opted_out.long())
        opted_out |= (before.status == SUBSCRIBED) & (after.status == UNSUBSCRIBED)
    assert (opted_out & (env.state.status == CHURNED)).any() and (~opted_out & (env.state.status == CHURNED)).any()


@pytest.mark.parametrize("outcomes", ["expected", "realised"])
@pytest.mark.parametrize("shaping", [True, False])
def test_a_message_to_a_churned_customer_costs_and_brings_nothing(outcomes, shaping):
    env = environment("history", reward={"outcomes": outcomes, "shaping": shaping, "trips": 0.5})
    catalogue, unheard_messages = env.world.catalogue, 0
    for week, (_, _, action, step, before, _) in enumerate(play(env)):
        silent = before.status == CHURNED
        cost = torch.where(action[:, 0] > 0, catalogue.cost[action[:, 1]], 0.0)[silent]
        unheard_messages += int((action[silent, 0] > 0).sum())
        price = env.prices[week][silent]
        torch.testing.assert_close(step.info["spend"][silent], cost)
        torch.testing.assert_close(step.info["profit"][silent], -cost)
        torch.testing.assert_close(step.info["reward"][silent], -(1 + price) * cost)
        assert not step.info["trips"][silent].any()
    assert unheard_messages > 50


def test_expected_tables_of_churned_customers_hold_the_cost_alone():
    env = environment("history")
    *_, last = play(env)
    env.week = 11
    silent = (env.state.status == CHURNED) & env.options.action_mask[:, 1]
    silent = (env.state.status == CHURNED) & (env.options.action_mask.sum(1) > 1)
    cost = torch.cat((torch.zeros(1, 5), env.world.catalogue.cost.expand(5, 5))).expand(int(silent.sum()), 6, 5)
    torch.testing.assert_close(env.expected_cost(None)[silent], cost)
    valid = env.options.action_mask[silent].unflatten(1, env.nvec)
    reward = env.expected_reward()[silent]
    torch.testing.assert_close(reward[valid], (-(1 + env.price[silent])[:, None, None] * cost)[valid])
    assert silent.sum() > 5 and torch.isinf(reward[~valid]).all() and len(last)


def test_a_log_of_a_hiding_view_tells_no_churn():
    """Not by masks, statuses or propensities, nor by money that no shop books."""
    env = environment("history", reward={"churn_cost": 7.0, "fatigue_penalty": 0.3, "trips": 0.5})
    env.use_realised_outcomes()
    (log,) = rollouts(env, UniformPolicy(), "uniform", 0, decisions=720, steps=1, all_propensities=False)
    margin = env.customers.margin[log.unit]
    trips = log.outcomes["trips"]
    torch.testing.assert_close(log.reward, (margin + 0.5) * trips - log.cost)
    assert not log.terminal_value.any() and trips.sum() > 100
    allowed = log.action_mask.sum(1)
    torch.testing.assert_close(log.propensity, 1 / allowed.double())
    assert torch.equal(allowed == 1, env.codec.decode_status(log.obs) == UNSUBSCRIBED)
    assert env.codec.decode_status(log.obs).amax() == UNSUBSCRIBED
    assert (env.state.status == CHURNED).sum() > 10


@pytest.mark.long
def test_scores_charge_messages_to_the_churned():
    """Without a plan that would send them, a decision loses (1 + λ)·cost; the direct score loses the cost."""
    evaluator = small_evaluation(
        customers=200,
    )
    codec = environment("history", leaving=False).codec
    market = evaluator.test_market(evaluator.env.budget)
    market = replace(market, customers=replace(market.customers, c0=market.customers.c0 * 20), no_contact_values=None)
    bound = evaluator.solve_bound(market)
    keen = ValueKnapsackPolicy(
        greedy(lambda obs: torch.rand(len(obs), 30, generator=torch.Generator().manual_seed(len(obs)))),
        None,
        codec,
        market.customers,
        market.world,
        market.features,
    )
    states = []

    class Witness:
        """The same policy, which keeps the states."""

        information, view = keen.information, keen.view

        def increments(self, week, state, options):
            states.append((state, options))
            return keen.increments(week, state, options)

    record = simulate_season(Witness(), market, market.sample_uniforms(torch.Generator().manual_seed(0)), bound)
    catalogue, unheard_messages = market.world.catalogue, 0
    for week, (state, options) in enumerate(states):
        offer, channel = catalogue.action_codec.decode(record.action[week])
        unheard = (state.status == CHURNED) & (offer > 0)
        unheard_messages += int(unheard.sum())
        cost = catalogue.cost[channel][unheard]
        torch.testing.assert_close(record.expected_spend[week][unheard], cost)
        torch.testing.assert_close(record.incremental_profit[week][unheard], -cost)
        torch.testing.assert_close(record.lost_profit[week][unheard], (1 + bound.prices[week]) * cost)
        assert not record.redeem_probability[week][state.status == CHURNED].any()
        _, sums, _ = codec._split(options.memory)
        contacts = sum((record.action[t] >= 5).float() for t in range(week)) if week else torch.zeros(200)
        torch.testing.assert_close(sums[:, 1:6].sum(1), contacts)
    assert unheard_messages > 20


@pytest.mark.slow
# ── the belief ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_belief_is_the_filter_of_the_whole_season_under_the_estimate():
    """Carried as marginals, it equals the filter of the joint state to what independence loses."""
    env = environment("belief")
    codec, opted_out = env.codec, torch.zeros(60, dtype=torch.bool)
    c = env.world.inhabit(codec.theta(env.reset()[0][:, : env.static_dim]))
    env = environment("belief")
    marginals = codec.start.float()[:, None].expand(-1, 60)
    for week, (obs, _, action, step, before, after) in enumerate(play(env)):
        torch.testing.assert_close(codec.decode_dynamics(obs)[:, :14], marginals.T)
        left = (before.status == SUBSCRIBED) & (after.status == UNSUBSCRIBED)
        seen = SeenWeek(
            action[:, 0], action[:, 1], step.info["trips"], step.info["redeemed"], left, env.customers.margin
        )
        marginals = filter_week(c, env.world, week, Belief.from_marginals(marginals, opted_out), seen)[0].marginals()
        opted_out |= left
    columns = codec.decode_dynamics(step.obs)[:, :14]
    for part in (columns[:, :6], columns[:, 6:10], columns[:, 10:13]):
        torch.testing.assert_close(part.sum(1), torch.ones(60))
    assert columns[env.state.status == CHURNED, 13].mean() > 2 * columns[env.state.status != CHURNED, 13].mean()


def test_a_policy_keeps_the_estimate_that_it_was_trained_with():
    """A belief of another estimate is replaced by that of the checkpoint, through the environment's state."""
    ours, theirs = environment("belief"), environment("belief")
    theirs.codec.theta.weight += 0.1
    theirs.codec.start[:6] = torch.tensor([1.0, 0, 0, 0, 0, 0])
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(ours.codec.theta(x).alpha, theirs.codec.theta(x).alpha)
    ours.load_fitted(theirs.state_dict())
    assert torch.equal(ours.codec.theta(x).alpha, theirs.codec.theta(x).alpha)
    assert torch.equal(ours.codec.start_memory(x), theirs.codec.start_memory(x))
