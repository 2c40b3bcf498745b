"""The one-step model of a season against enumeration and simulated weeks; expected redemptions; training seasons."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

import reference_world as reference
from configs import composed, load
from envs import configuration
from envs.offers.env import OffersEnv
from envs.offers.lookahead import OffersLookahead
from envs.offers.policies.redemption_model import ExpectedRedemptionModel
from envs.offers.populations.base import LEVELS
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNIFORMS, UNSUBSCRIBED, CustomerState
from envs.offers.world.transition import transition
from rlcore.networks import Actor
from rlcore.rollout import Rollout, collect_rollout

CPU = torch.device("cpu")
WEEKS = 12


def make_env(agents: int, seed: int = 0, **changes) -> OffersEnv:
    """Build the shipped environment with few customers."""
    return load("offers_full_information", CPU, seed, num_agents=agents, population={"reference_size": 200}, **changes)


def small_env(agents: int, *overrides: str) -> OffersEnv:
    """Build an environment of overrides, such as of a view, with few customers."""
    return configuration.make_env(*overrides, f"env.num_agents={agents}", "env.population.reference_size=200")


def played(env: OffersEnv, seed: int = 0) -> Rollout:
    """Play a season by random actions."""
    torch.manual_seed(seed)
    actor = Actor(
        env.obs_dim,
        env.nvec,
        hidden=[4],
        activation=torch.nn.ReLU,
        heads="joint",
        policy_gain=0.01,
        first_bias=2.0,
        normalize_obs=False,
        clip_obs=10.0,
    )
    return collect_rollout(env, actor, torch.rand(env.episode_length, env.num_agents))


@cache
def season() -> tuple[OffersEnv, Rollout, OffersLookahead]:
    """A season of three customers, and its one-step model."""
    env = make_env(3)
    return env, played(env), env.as_lookahead(privileged=True)


def values_of(n: int, futures: int = 1) -> Tensor:
    """Draw values of next week's states, [K, T − 1, N, S]."""
    return torch.randn(futures, WEEKS - 1, n, 72, generator=torch.Generator().manual_seed(5))


@pytest.mark.slow
def test_the_backup_equals_an_enumeration_of_next_states():
    """In float64 over every draw of a week: shaped reward plus values beyond V⁰, of every pair."""
    env, _, lookahead = season()
    state = lookahead.visited_states()
    next_values = values_of(3)
    found = lookahead.backup(state, next_values)
    assert found.shape == (WEEKS, 3, 30)
    left = 0
    for n, customer in enumerate(reference.references(env.customers, env.world)):
        v0 = customer.no_contact_values()
        for t in (0, 5, WEEKS - 1):
            index = state[t, n].item()
            if index == lookahead.num_states:
                left += 1
                assert (found[t, n] == 0).all()
                continue
            s = reference.INSIDE[index]
            value = dict(v0[t + 1])
            if t < WEEKS - 1:
                for k, inside in enumerate(reference.INSIDE):
                    value[inside] += next_values[0, t, n, k].item()
            for a in customer.pairs:
                expected = customer.q(s, t, a, value, env.prices[t, n].item()) - v0[t][s]
                assert found[t, n, 5 * a[0] + a[1]].item() == pytest.approx(expected, abs=2e-3), (n, t, a)
    assert left < 9


@pytest.mark.slow
def test_the_distribution_of_the_next_state_sums_to_one_and_is_that_of_simulated_weeks():
    """The backup's coefficients: unit values of one state at a time, for one customer and pair, against frequencies."""
    env, _, lookahead = season()
    week, draws, index = 3, 40_000, 45  # habit 3, fatigue 3, expectation 0
    state = torch.full((WEEKS, 3), index)
    nothing_later = torch.zeros(1, WEEKS - 1, 3, 72)
    base = lookahead.backup(state, nothing_later)[week, 0]
    probability = torch.zeros(72, 30)
    for s in range(72):
        unit = nothing_later.clone()
        unit[0, week, 0, s] = 100.0
        probability[s] = (lookahead.backup(state, unit)[week, 0] - base) / 100
    assert (probability > -1e-5).all()
    customer = env.customers[torch.zeros(draws, dtype=torch.long)]
    start = CustomerState(*(x[:1].expand(draws) for x in lookahead.customer_state(state[0])))
    u = torch.rand(UNIFORMS, draws, generator=torch.Generator().manual_seed(6))
    for action in (0, 5, 13, 28):
        offer, channel = (torch.full((draws,), x) for x in divmod(action, 5))
        following, *_ = transition(customer, env.world, week, start, offer, channel, u)
        inside = following.status == SUBSCRIBED
        number = (following.habit * LEVELS[1] + following.fatigue) * LEVELS[2] + following.expectation
        frequency = torch.bincount(number[inside], minlength=72) / draws
        assert (frequency - probability[:, action]).abs().max() < 4.5 * 0.5 / draws**0.5
        has_left = 1 - inside.float().mean().item()
        assert probability[:, action].sum().item() + has_left == pytest.approx(1, abs=4.5 * 0.5 / draws**0.5)
        exact = reference.references(env.customers[:1], env.world)[0]
        law = exact.law(reference.INSIDE[index], env.world.season[week].item(), divmod(action, 5))
        gone = sum(p for s, p in law.items() if s[3] != SUBSCRIBED)
        assert probability[:, action].sum().item() + gone == pytest.approx(1, abs=1e-4)


def test_states_are_numbered_and_those_who_left_have_none():
    env, rollout, lookahead = season()
    index = torch.arange(73)
    state = lookahead.customer_state(index)
    assert [s + (SUBSCRIBED,) for s in zip(*(x[:72].tolist() for x in state[:3]))] == reference.INSIDE
    decoded = env.codec.decode_state(rollout.obs.flatten(0, 1))
    number = lookahead.visited_states().flatten()
    assert torch.equal(number == 72, decoded.status != SUBSCRIBED)
    inside = number < 72
    for a, b in zip(lookahead.customer_state(number), decoded[:3]):
        assert torch.equal(a[inside], b[inside])


def test_a_critic_observes_theta_and_nothing_that_a_week_moves():
    env = make_env(40)
    rollout = played(env)
    for privileged in (False, True):
        lookahead = env.as_lookahead(privileged)
        critic_obs = lookahead.critic_obs(rollout.obs)
        assert critic_obs.shape == (WEEKS, 40, lookahead.critic_dim) and critic_obs.isfinite().all()
        week = slice(env.static_dim, env.static_dim + WEEKS)
        for t in range(1, WEEKS):  # but for the week and the price, which a customer's state does not change
            same = torch.ones(lookahead.critic_dim, dtype=torch.bool)
            same[week.start : week.stop + 1] = False
            assert torch.equal(critic_obs[t][:, same], critic_obs[0][:, same])
    shown = critic_obs[0][:, -24:].double()
    margin = env.sampled_customers.margin.log()
    correlation = torch.corrcoef(torch.cat((shown.T, margin[None])))[-1, :-1].abs()
    assert correlation.max() > 0.999


@pytest.mark.slow
def test_counts_beside_the_state_change_neither_the_states_nor_what_a_critic_observes():
    """One season of the same customers under the same actions, in two views."""
    seen = []
    for view in ("state", "state_counts"):
        config = composed(f"env/observation={view}", "env.num_agents=20", "env.population.reference_size=200")
        env = instantiate(config.env, _convert_="all")(CPU, 0)
        weeks = [env.reset()[0]]
        while len(weeks) < WEEKS:
            weeks.append(env.step(torch.tensor([[2, 1]]).expand(20, -1)).obs)
        lookahead, obs = env.as_lookahead(privileged=True), torch.stack(weeks)
        seen.append((obs.shape[-1], lookahead.visited_states(), lookahead.critic_obs(obs)))
    (narrow, state, critic_obs), (wide, other_state, other_critic_obs) = seen
    assert narrow < wide and torch.equal(state, other_state) and torch.equal(critic_obs, other_critic_obs)


def test_under_caps_the_future_that_came_about_is_what_the_critic_observes_then():
    env = make_env(50, contact_rules={"caps": [{"weeks": 4, "contacts": 2}, {"weeks": 12, "contacts": 4}]})
    rollout = played(env)
    lookahead = env.as_lookahead(privileged=False)
    critic_obs = lookahead.critic_obs(rollout.obs)
    futures = lookahead.future_critic_obs(critic_obs)
    assert futures.shape == (2, WEEKS - 1, 50, lookahead.critic_dim)
    contacted = rollout.info["contacted"][:-1].long()
    came_about = torch.where(contacted[..., None] > 0, futures[1], futures[0])
    torch.testing.assert_close(came_about, critic_obs[1:])
    assert (futures[1] != futures[0]).any() and (
        futures[1, ..., lookahead.caps] <= futures[0, ..., lookahead.caps]
    ).all()


def test_under_caps_each_action_is_valued_by_its_own_future():
    env = make_env(3, contact_rules={"caps": [{"weeks": 12, "contacts": 4}]})
    played(env)
    lookahead = env.as_lookahead(privileged=False)
    state = lookahead.visited_states()
    without, after_contact = values_of(3, futures=2)
    both = lookahead.backup(state, torch.stack((without, after_contact)))
    first, second = (lookahead.backup(state, x[None]) for x in (without, after_contact))
    assert torch.equal(both[..., 0], first[..., 0]) and torch.equal(both[..., 5:], second[..., 5:])
    assert not torch.equal(first[..., 5:], second[..., 5:])


# ── hidden states ───────────────────────────────────────────────────────────────────────────────────────────────────
@cache
def unseen_season() -> tuple[OffersEnv, Rollout, OffersLookahead]:
    """A season of customers of whom many churn, in a view that hides it, and its one-step model."""
    env = small_env(300, "env/observation=history")
    return env, played(env), env.as_lookahead(privileged=True)


@pytest.mark.slow
def test_where_the_state_is_hidden_a_critic_values_the_true_one():
    env, rollout, lookahead = unseen_season()
    state = lookahead.visited_states()
    assert lookahead.num_states == 73 and state.shape == (WEEKS, 300)
    status = env.states_so_far[3]
    has_opted_out = (status == UNSUBSCRIBED).cumsum(0) > 0
    assert torch.equal(state == 73, has_opted_out) and has_opted_out.any()
    assert torch.equal(state == 72, (status == CHURNED) & ~has_opted_out) and (state == 72).sum() > 30
    # only who has opted out is spared; who churned is written to, and nothing says so
    assert torch.equal(rollout.action_mask.flatten(2).sum(-1) == 1, has_opted_out)
    assert rollout.info["contacted"][state == 72].any()


def test_without_later_values_the_backup_is_the_reward_that_a_season_paid():
    """The expected reward of what was sent, messages to customers who churned unseen among them."""
    env, rollout, lookahead = unseen_season()
    state = lookahead.visited_states()
    values = lookahead.backup(state, torch.zeros(1, WEEKS - 1, 300, 73))
    sent = (rollout.action[..., 0] * 5 + rollout.action[..., 1])[..., None]
    paid = torch.where(state < 73, values.gather(-1, sent)[..., 0], 0.0)
    torch.testing.assert_close(paid, rollout.reward, atol=1e-3, rtol=1e-4)  # of tables of hundreds, in float32
    cost = (1 + env.prices)[state == 72, None, None] * env.world.catalogue.cost
    unheard = values[state == 72].unflatten(-1, env.nvec)
    torch.testing.assert_close(unheard[:, 1:], -cost.expand(-1, 5, -1))
    assert (unheard[:, 0] == 0).all()


def test_a_customer_who_churns_unseen_keeps_a_value_and_stays_so():
    """Coefficients of the 73 values: the chance of churn of the reference, and 1 for who has churned."""
    env, _, lookahead = unseen_season()
    state = lookahead.visited_states()
    nothing_later = torch.zeros(1, WEEKS - 1, 300, 73)
    of_churned = nothing_later.clone()
    of_churned[..., 72] = 100.0  # so that float32 keeps the digits beside tables of hundreds
    base = lookahead.backup(state, nothing_later)
    share = (lookahead.backup(state, of_churned) - base) / 100
    week = 2
    assert (share[week][state[week] == 72] == 1).all() and (share[-1] == 0).all() and (share[state == 73] == 0).all()
    for n in (state[week] < 72).nonzero()[:3, 0].tolist():
        index = state[week, n].item()
        customer = reference.references(env.customers[n : n + 1], env.world)[0]
        for action in (0, 8, 29):
            law = customer.law(reference.INSIDE[index], env.world.season[week].item(), divmod(action, 5))
            churn = sum(p for s, p in law.items() if s[3] == CHURNED)
            assert share[week, n, action].item() == pytest.approx(churn, abs=1e-5)
    every = (lookahead.backup(state, torch.full_like(nothing_later, 100.0)) - base) / 100
    opt_out = 1 - every[week][state[week] < 72]
    assert opt_out.abs()[:, :5].max() < 1e-4 and opt_out.min() > -1e-4 and opt_out[:, 5:].max() > 1e-3


# ── what a policy that does not see the state can know of it ────────────────────────────────────────────────────────
@pytest.mark.slow
@pytest.mark.parametrize("rules", ["none", "caps"])
def test_the_expected_backup_is_that_of_every_state_by_its_probability(rules):
    """One state at a time by `backup`, which is tested against enumeration, under any values of next states."""
    env = small_env(300, "env/observation=history", f"env/contact_rules={rules}")
    played(env)
    lookahead = env.as_lookahead(privileged=False)
    futures = {"none": 1, "caps": 2}[rules]
    assert lookahead.num_futures == futures and lookahead.filters_states
    later = torch.randn(futures, WEEKS - 1, 300, 73, generator=torch.Generator().manual_seed(7))
    found = lookahead.expected_backup(later)
    expected = torch.zeros_like(found)
    beliefs = list(lookahead.beliefs(slice(None)))
    shares = torch.stack([torch.cat((x.subscribed.flatten(0, 2), x.churned[None])) for x in beliefs])
    for s in range(73):
        expected += shares[:, s, :, None] * lookahead.backup(torch.full((WEEKS, 300), s), later)
    has_opted_out = (env.states_so_far[3] == UNSUBSCRIBED).cumsum(0) > 0
    assert (found[has_opted_out] == 0).all() and has_opted_out.any()
    expected[has_opted_out] = 0.0
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)  # of tables of hundreds, in float32


@pytest.mark.slow
def test_beliefs_are_calibrated_and_tell_customers_apart():
    """How often a level is the true one, beside its filtered probability: in all, and weighted by the probability.

    Weighted, a belief that ignores what was seen of a customer, or that is another customer's, is found out.
    """
    env = small_env(6000, "env/observation=history")
    played(env)
    lookahead = env.as_lookahead(privileged=False)
    state, beliefs = lookahead.visited_states(), list(lookahead.beliefs(slice(None)))
    levels = lookahead.customer_state(state)[:3]
    true = torch.cat([torch.nn.functional.one_hot(x, n) for x, n in zip(levels, LEVELS)], -1).transpose(1, 2)
    for week in (0, 1, 4, 11):
        *known, churned = beliefs[week].marginals()
        chances = torch.stack([x * (1 - churned) for x in known] + [churned])
        events = torch.cat((true[week] * (state[week] < 72), (state[week] == 72)[None]))
        subscribed = state[week] < 73  # as far as a shop sees
        chances, events = chances[:, subscribed].double(), events[:, subscribed].double()
        for weight in (torch.ones_like(chances), chances):
            deviation = (weight**2 * chances * (1 - chances)).sum(-1).sqrt()
            z = (weight * (events - chances)).sum(-1) / deviation.clamp_min(1.0)
            assert z.abs().max() < 4.5, (week, z)


def test_seasons_begin_as_the_filter_assumes():
    env = small_env(6000, "env/observation=history")
    env.reset()
    assert env.population.starts_alike
    state = env.as_lookahead(privileged=False).visited_states()[0]
    share = torch.bincount(state, minlength=73)[:72].double() / 6000
    expected = next(env.as_lookahead(privileged=False).beliefs(slice(1))).subscribed.flatten().double()
    assert ((share - expected).abs() <= 4.5 * (expected * (1 - expected) / 6000).sqrt()).all()


def test_a_belief_shows_drawn_fatigue_and_expectation_and_keeps_the_habit():
    """Fatigue and expectation uniform and known; habit, status, counts, week and price stay as they were."""
    env = small_env(400, "env/observation=belief")
    rollout, lookahead = played(env), env.as_lookahead(privileged=False)
    assert lookahead.draws_states
    visited = lookahead.visited_states()
    drawn = lookahead.draw_states(visited, torch.Generator().manual_seed(3))
    inside, unseen = visited < 72, visited == 72
    assert (drawn[unseen] == 72).all() and unseen.any()
    assert torch.equal(drawn[inside] // 12, visited[inside] // 12)
    share = torch.bincount(drawn[inside] % 12, minlength=12) / inside.sum()
    assert (share - 1 / 12).abs().max() < 4.5 * (1 / 12 / inside.sum()) ** 0.5
    obs, action_mask = lookahead.as_if_in(drawn, rollout.obs, rollout.action_mask)
    assert torch.equal(action_mask, rollout.action_mask) and torch.equal(obs[unseen], rollout.obs[unseen])
    written = slice(env.codec.dynamics.start + LEVELS[0], env.codec.dynamics.start + sum(LEVELS))
    rest = [i for i in range(env.obs_dim) if not written.start <= i < written.stop]
    assert torch.equal(obs[..., rest], rollout.obs[..., rest])
    fatigue, expectation = obs[inside][:, written].split(LEVELS[1:], -1)
    assert torch.equal(3 * fatigue.argmax(-1) + expectation.argmax(-1), drawn[inside] % 12)
    assert ((fatigue == 1) | (fatigue == 0)).all() and ((expectation == 1) | (expectation == 0)).all()


# ── redemptions ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_expected_redemptions_equal_the_reference_of_every_pair():
    env, rollout, lookahead = season()
    found = lookahead.redeem_probability()
    assert found.shape == (WEEKS, 3, 6, 5)
    decoded = env.codec.decode_state(rollout.obs.flatten(0, 1))
    states = reference.tuples(decoded)
    for n, customer in enumerate(reference.references(env.customers, env.world)):
        for t in range(WEEKS):
            s = states[3 * t + n]
            if s[3] == SUBSCRIBED:
                for a in customer.pairs:
                    p, _ = customer.respond(s, env.world.season[t].item(), a)
                    assert found[t, n, a[0], a[1]].item() == pytest.approx(p, rel=1e-4)


def test_who_churned_unseen_is_expected_to_redeem_nothing():
    _, _, lookahead = unseen_season()
    found, state = lookahead.redeem_probability(), lookahead.visited_states()
    assert (found[state == 72] == 0).all() and (found[state < 72][:, 1:] > 0).all()


def test_the_model_is_at_rest_where_it_predicts_the_expectation():
    """The gradient of its loss is zero at the target, in every pair, and not beside it."""
    env = make_env(4)
    model = ExpectedRedemptionModel(env, hidden=[4], activation=torch.nn.ReLU, lr=0.01)
    rollout = played(env)
    obs = rollout.obs.flatten(0, 1)
    logits = torch.linspace(-3, -1, 30).view(1, 6, 5).expand(len(obs), -1, -1).clone().requires_grad_()
    model.log_prob = lambda obs: torch.nn.functional.logsigmoid(logits)
    for target, rests in ((logits.detach().sigmoid(), True), (0.5 * logits.detach().sigmoid(), False)):
        (gradient,) = torch.autograd.grad(model.loss(obs, None, {"redeem_probability": target}), logits)
        assert (gradient[:, 1:].abs().max() < 1e-8) == rests
    assert set(model.targets(rollout.obs, {})) == {"redeem_probability"}


# ── observations in other states ────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("view", ["state", "state_counts"])
def test_an_observation_as_if_in_another_state_is_that_states_own(view):
    """In every state of a season that was played: status, counts, week and price stay."""
    env = small_env(72, "env=offers_full_information", f"env/observation={view}")
    rollout, lookahead = played(env), env.as_lookahead(privileged=False)
    state = torch.arange(72).expand(WEEKS, -1)
    obs, action_mask = lookahead.as_if_in(state, rollout.obs, rollout.action_mask)
    assert torch.equal(action_mask, rollout.action_mask)
    dynamics = slice(env.codec.dynamics.start, env.codec.dynamics.start + sum(LEVELS))
    found = env.codec.decode_state(obs.flatten(0, 1))
    for level, expected in zip(found[:3], zip(*reference.INSIDE)):  # habit, fatigue, expectation
        assert torch.equal(level.unflatten(0, (WEEKS, 72)), torch.tensor(expected).expand(WEEKS, -1))
    rest = [i for i in range(env.obs_dim) if not dynamics.start <= i < dynamics.stop]
    assert torch.equal(obs[..., rest], rollout.obs[..., rest]) and (obs[..., dynamics].sum(-1) == len(LEVELS)).all()


def test_a_reward_without_shaping_has_no_lookahead():
    with pytest.raises(ValueError, match="expected env.reward.shaping=true"):
        make_env(4, reward={"shaping": False}).as_lookahead(privileged=False)
