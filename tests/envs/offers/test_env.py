"""The priced environment against scalar customers: contract, rewards and their identities, prices, streams."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from configs import load, node
from reference_world import SUBSCRIBED, UNSUBSCRIBED, references

WEEKS, NVEC = 12, (6, 5)
SIZES = (6, 4, 3, 3)  # habit, fatigue, expectation, status
MID, WIDTH = math.log(0.2 * 15.0) / 2, math.log(15.0 / 0.2)  # of the logarithm of the price
DRIFT_MID, DRIFT_WIDTH = -0.05, 0.2


def make(n=64, seed=0, **changes):
    """Build the shipped environment for n agents with some of its keys replaced."""
    return load(
        "offers_full_information",
        torch.device("cpu"),
        seed,
        num_agents=n,
        **{**changes, "population": {"reference_size": 500, **changes.get("population", {})}},
    )


def pushy(**changes) -> dict:
    """Replace catalogue keys so that customers soon leave: the highest opt-out rates."""
    channels = node("catalogue/default").channels
    return {"catalogue": {"channels": {name: {"opt_out": 1.0} for name in channels}}, **changes}


def decode(env, obs: Tensor) -> SimpleNamespace:
    """Read observations by the document: features, one-hot state and week, scaled price and drift."""
    features, *hot, week, price, drift = obs.split((env.population.num_features, *SIZES, WEEKS, 1, 1), -1)
    for x in (*hot, week):
        assert ((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all()
    state = list(zip(*(x.argmax(-1).tolist() for x in hot)))
    return SimpleNamespace(
        features=features,
        state=state,
        status=hot[3].argmax(-1),
        week=week.argmax(-1),
        price=torch.exp(price * WIDTH / 12**0.5 + MID)[:, 0],
        drift=(drift * DRIFT_WIDTH / 12**0.5 + DRIFT_MID)[:, 0],
    )


def draw(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an allowed pair [N, 2] for each."""
    pair = torch.multinomial(mask.flatten(1).float(), 1, generator=generator)[:, 0]
    return torch.stack((pair // NVEC[1], pair % NVEC[1]), -1)


def silent(mask: Tensor, _=None) -> Tensor:
    """Contact nobody."""
    return torch.zeros(len(mask), 2, dtype=torch.long)


def season(env, choose=draw, seed=1, prepare=lambda env: None) -> SimpleNamespace:
    """Simulate a season; return observations and masks [T+1], actions and steps [T]."""
    g, (obs, mask) = torch.Generator().manual_seed(seed), env.reset()
    prepare(env)
    seen = SimpleNamespace(start=env.state, obs=[obs], mask=[mask], action=[], steps=[])
    for _ in range(WEEKS):
        seen.action.append(choose(seen.mask[-1], g))
        seen.steps.append(env.step(seen.action[-1]))
        seen.obs.append(seen.steps[-1].obs)
        seen.mask.append(seen.steps[-1].action_mask)
    seen.reward = torch.stack([step.reward for step in seen.steps])
    return seen


def table(mask: Tensor, env) -> Tensor:
    """A fixed policy: a pair for each state and week, nothing in a third of them, never what is masked."""
    h, f, d, _ = env.state
    k = (7 * h + 5 * f + 3 * d + env.week) % 39
    offer, channel = torch.where(k < 25, k // 5 + 1, 0), torch.where(k < 25, k % 5, 0)
    return torch.stack((offer, channel), -1) * mask[:, 1, 0, None]


def play_table(**changes):
    """Play the fixed policy from the shipped seed; return the environment and its season."""
    env = make(**changes)
    return env, season(env, lambda mask, _: table(mask, env))


def same(a, b) -> bool:
    """Compare two seasons bit by bit."""
    flat = [[*x.obs, *x.mask, *x.action, *(y for s in x.steps for y in (*s[2:6], *s.info.values()))] for x in (a, b)]
    return all(torch.equal(x, y) for x, y in zip(*flat))


# ── contract ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_shapes_types_and_ends():
    env = make(n=50, **pushy())
    assert (env.num_agents, env.nvec, env.can_truncate, env.device) == (50, NVEC, False, torch.device("cpu"))
    assert env.obs_dim == env.context_dim + 2 == 24 + sum(SIZES) + WEEKS + 2
    seen = season(env)
    for obs, mask in zip(seen.obs, seen.mask):
        assert obs.shape == (50, env.obs_dim) and obs.dtype == torch.float32 and obs.isfinite().all()
        assert mask.shape == (50, *NVEC) and mask.dtype == torch.bool
    for t, step in enumerate(seen.steps):
        assert step.reward.shape == (50,) and step.reward.dtype == torch.float32 and step.reward.isfinite().all()
        assert step.terminated.dtype == step.truncated.dtype == torch.bool
        assert step.terminated.shape == step.truncated.shape == (50,)
        assert step.terminated.all() == step.terminated.any() == (t == WEEKS - 1)
        assert not step.truncated.any()
        assert torch.equal(step.final_obs, step.obs)
        assert all(x.shape == (50,) for x in step.info.values())
        assert torch.equal(step.info["contacted"], seen.action[t][:, 0] > 0)
        assert not (step.info["redeemed"] & ~step.info["contacted"]).any()
        assert torch.equal(step.info["spend"] > 0, step.info["contacted"])
        assert torch.equal(step.info["churned"], decode(env, step.obs).status == 2)


def test_mask_allows_all_that_exists_to_the_subscribed_and_only_nothing_to_the_rest():
    env = make(n=200, **pushy(population={"priors": {"uniform": {"c0": [0.3, 0.5]}}}))
    exists = torch.ones(NVEC, dtype=torch.bool)
    exists[0, 1:] = False
    only = torch.zeros(NVEC, dtype=torch.bool)
    only[0, 0] = True
    met = set()
    seen = season(env)
    for obs, mask in zip(seen.obs, seen.mask):
        for status, m in zip(decode(env, obs).status.tolist(), mask):
            met.add(status)
            assert torch.equal(m, exists if status == SUBSCRIBED else only)
    assert met == {0, 1, 2}


@pytest.mark.long
def test_a_season_equals_scalar_customers():
    """Every observation, draw, reward and spend of six customers, one float at a time."""
    for shaping, terminal in ((True, 1.0), (False, 0.7)):
        env = make(n=6, **pushy(reward={"shaping": shaping, "terminal": terminal, "churn_cost": 2.0}))
        seen = season(env)
        people = references(env.customers.map(Tensor.double), env.world)
        v0 = [r.no_contact_values() for r in people]
        price, u = env.prices.double(), env.uniforms.double()
        now = decode(env, seen.obs[0])
        for t, step in enumerate(seen.steps):
            following, last = decode(env, step.obs), t == WEEKS - 1
            assert now.week.tolist() == [t] * 6
            for i, r in enumerate(people):
                s, a, x = now.state[i], tuple(seen.action[t][i].tolist()), r.season[t]
                after, _, redeemed = r.draw(s, x, a, u[t, :, i].tolist())
                assert (following.state[i], step.info["redeemed"][i].item()) == (after, redeemed)
                if shaping:
                    expected = r.q(s, t, a, v0[i][t + 1], price[t, i].item()) - v0[i][t][s]
                else:
                    expected = r.profit(s, x, a) - price[t, i].item() * r.spend(s, x, a) + last * r.end()[after]
                assert step.reward[i].item() == pytest.approx(expected, rel=1e-4, abs=2e-4)
                assert step.info["spend"][i].item() == pytest.approx(r.spend(s, x, a), rel=1e-4)
            now = following
        assert any(s[3] == UNSUBSCRIBED for s in now.state)


@pytest.mark.slow
# ── rewards ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_untouched_customers_earn_exactly_nothing():
    env = make(n=500, **pushy())
    assert (season(env, silent).reward == 0).all()
    seen = season(env)
    contacted = torch.stack(seen.action)[..., 0] > 0
    assert (seen.reward[~contacted] == 0).all() and (seen.reward[contacted] != 0).any()
    assert (torch.stack([decode(env, obs).status for obs in seen.obs]) > 0).any()
    assert (season(make(reward={"shaping": False}), silent).reward != 0).any()


@pytest.mark.parametrize("terminal", [1.0, 0.3])
def test_realised_shaped_rewards_telescope_to_the_unshaped(terminal):
    reward = {"outcomes": "realised", "terminal": terminal, "churn_cost": 3.0, "fatigue_penalty": 0.2}
    env, shaped = play_table(n=300, reward={**reward, "shaping": True})
    _, plain = play_table(n=300, reward={**reward, "shaping": False})
    assert torch.equal(torch.stack(shaped.action), torch.stack(plain.action))
    gained, earned = (x.reward.double().sum(0) for x in (shaped, plain))
    torch.testing.assert_close(gained + env.no_contact_values[0].at(shaped.start), earned, rtol=1e-5, atol=1e-3)


def is_zero(x: Tensor, within: float) -> None:
    """Assert that independent draws [N] have mean 0 to Monte-Carlo error, and that error to be below `within`."""
    error = x.double().std() / len(x) ** 0.5
    assert error < within
    assert abs(x.double().mean()) < 4 * error


@pytest.mark.long
def test_expected_shaped_rewards_sum_to_what_the_policy_earns_over_never_contacting():
    env, shaped = play_table(n=5000)
    _, plain = play_table(n=5000, reward={"shaping": False})
    assert torch.equal(torch.stack(shaped.action), torch.stack(plain.action))
    gained, earned = shaped.reward.sum(0), plain.reward.sum(0)
    is_zero(gained + env.no_contact_values[0].at(shaped.start) - earned, within=1.5)
    assert gained.mean().abs() > 5  # of money a customer: far outside the error
    assert (gained - gained.mean()).square().mean() < 0.1 * (earned - earned.mean()).square().mean()  # and less noise


@pytest.mark.long
@pytest.mark.parametrize("shaping", [True, False])
def test_realised_rewards_are_the_expected_ones_in_mean(shaping):
    reward = {"shaping": shaping, "churn_cost": 5.0, "fatigue_penalty": 0.5}
    env, expected = play_table(n=5000, reward=reward)
    _, realised = play_table(n=5000, reward={**reward, "outcomes": "realised"})
    assert torch.equal(torch.stack(realised.action), torch.stack(expected.action))
    surprise = realised.reward - expected.reward
    for week in surprise:
        is_zero(week, within=0.7)
    is_zero((surprise * env.prices).sum(0), within=12)  # also where money is dear
    is_zero((surprise * torch.stack(expected.action)[..., 0]).sum(0), within=12)  # and where much is offered


@pytest.mark.slow
@pytest.mark.parametrize("outcomes", ["expected", "realised"])
@pytest.mark.parametrize("shaping", [True, False])
def test_the_price_enters_as_minus_price_times_spend(outcomes, shaping):
    def priced(by):
        def prepare(env):
            env.prices = env.prices * 0 + by

        return season(make(n=200, reward={"outcomes": outcomes, "shaping": shaping}), prepare=prepare)

    free, dear = priced(0.0), priced(3.0)
    assert torch.equal(torch.stack(free.action), torch.stack(dear.action))
    spend = (free.reward - dear.reward) / 3.0
    if outcomes == "expected":
        wanted = torch.stack([step.info["spend"] for step in free.steps])
    else:
        offer, channel = torch.stack(free.action).unbind(-1)
        redeemed = torch.stack([step.info["redeemed"] for step in free.steps])
        value, cost = torch.tensor([0, 0.5, 1, 1.5, 2, 2.5]), torch.tensor([0, 0.02, 0.03, 0.05, 0.07])
        wanted = value[offer] * redeemed + cost[channel] * (offer > 0)
    torch.testing.assert_close(spend, wanted, rtol=1e-4, atol=1e-4)


# ── prices ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_price_paths_have_their_law():
    env = make(n=5000)
    env.reset()
    path = env.prices.double().log()
    week = torch.arange(WEEKS, dtype=torch.float64) - 5.5
    level, drift = path.mean(0), (week[:, None] * path).sum(0) / week.square().sum()
    noise = path - level - drift * week[:, None]
    assert noise.square().sum().item() / (WEEKS - 2) / 5000 == pytest.approx(0.1**2, rel=0.05)
    error = 0.1 / week.square().sum().sqrt()
    torch.testing.assert_close(env.drift.double(), drift, rtol=0, atol=6 * error.item())
    assert kstest(env.drift, "uniform", (-0.15, 0.2)).pvalue > 1e-3
    assert kstest(level, "uniform", (math.log(0.2), WIDTH)).pvalue > 1e-3  # the noise of a mean is .7 % of the width
    assert torch.corrcoef(torch.stack((level, drift)))[0, 1].abs() < 0.06
    assert path.min() > math.log(0.2) - 5.5 * 0.15 - 0.6 and path.max() < math.log(15) + 5.5 * 0.15 + 0.6


def test_observed_prices_decode_to_the_ones_charged():
    env = make(n=500)
    seen = season(env)
    for t in range(WEEKS):
        now = decode(env, seen.obs[t])
        torch.testing.assert_close(now.price, env.prices[t], rtol=1e-4, atol=0)
        torch.testing.assert_close(now.drift, env.drift, rtol=0, atol=1e-5)
        assert seen.obs[t][:, -2:].std(0).tolist() == pytest.approx([1, 1], abs=0.15)  # scaled


@pytest.mark.slow
def test_the_price_reaches_only_the_last_two_columns():
    def dearer(env):
        env.prices, env.drift = 2 * env.prices, env.drift + 0.01

    plain, dear = season(make(n=100)), season(make(n=100), prepare=dearer)
    k = make(n=1).context_dim
    for a, b in zip(plain.obs[1:], dear.obs[1:]):
        assert torch.equal(a[:, :k], b[:, :k])
        assert (a[:, k:] < b[:, k:]).all()


@pytest.mark.slow
# ── streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_seed_decides_and_nothing_else():
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), season(make(seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert same(first, season(make(seed=3)))
    other = season(make(seed=4))
    assert not torch.equal(first.obs[0][:, :24], other.obs[0][:, :24]) and not torch.equal(first.reward, other.reward)


def test_every_season_is_drawn_anew():
    env = make(n=100)
    drawn = []
    for _ in range(3):
        env.reset()
        now = env.features, env.customers.margin, env.uniforms, env.prices, env.drift
        drawn.append([x.clone() for x in now])
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert not torch.isin(drawn[a][1], drawn[b][1]).any()  # no customer comes twice
        assert not any(torch.equal(x, y) for x, y in zip(drawn[a], drawn[b]))


def test_a_new_season_starts_afresh():
    env = make(n=300, **pushy())
    season(env)
    obs, mask = env.reset()
    now = decode(env, obs)
    assert not now.week.any() and not now.status.any() and mask.flatten(1).sum(1).eq(26).all()
    habit, fatigue, expectation, _ = zip(*now.state)
    assert set(habit) == set(range(6)) and set(fatigue) == {0} and set(expectation) == {0, 1}


@pytest.mark.slow
def test_a_restored_stream_goes_on_alike():
    whole = make(seed=5)
    season(whole)
    saved = whole.state_dict()
    second, third = season(whole), season(whole)
    other = make(seed=6)
    other.load_state_dict(saved)
    assert same(second, season(other)) and same(third, season(other))


def test_what_is_done_does_not_move_the_stream():
    busy, idle = make(), make()
    season(busy)
    season(idle, silent)
    assert torch.equal(busy.reset()[0], idle.reset()[0])


@pytest.mark.slow
# ── the static world ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("world, stays", [("static", True), ("full", False)])
@pytest.mark.parametrize("shaping", [True, False])
def test_in_the_static_world_history_changes_nothing(world, stays, shaping):
    """Half a season of contacts or of silence, then the same actions to all: the same rewards where nothing lasts."""

    def rewards(first):
        env = make(n=300, world=node(f"world/{world}"), reward={"shaping": shaping, "terminal": 0.0})
        weeks = iter(range(WEEKS))
        return season(env, lambda mask, g: (first if next(weeks) < 6 else table_of_week)(mask, env))

    def everyone(mask, _):
        return torch.tensor([5, 3]) * mask[:, 1, 0, None]

    def table_of_week(mask, env):
        k = torch.arange(len(mask)) + env.week
        return torch.stack((1 + k % 5, k // 5 % 5), -1) * mask[:, 1, 0, None]

    contacted, left = rewards(everyone), rewards(silent)
    spend = [torch.stack([step.info["spend"] for step in x.steps[6:]]) for x in (contacted, left)]
    assert torch.equal(torch.stack(contacted.mask), torch.stack(left.mask)) == stays
    assert torch.equal(*spend) == stays
    assert torch.allclose(contacted.reward[6:], left.reward[6:], rtol=1e-4, atol=1e-4) == stays


@pytest.mark.slow
# ── with PPO ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_ppo_collects_seasons_within_the_mask():
    env = make(n=60, **pushy())
    ppo = load("../algo/ppo", env, 0, minibatches=2)
    rollout = ppo.collect()
    assert rollout.obs.shape == (WEEKS, 60, env.obs_dim) and rollout.action.shape == (WEEKS, 60, 2)
    offer, channel = rollout.action.unbind(-1)
    mask, redeemed = rollout.action_mask.flatten(2), rollout.info["redeemed"]
    assert mask.gather(2, (offer * NVEC[1] + channel)[..., None]).all()
    assert (mask.sum(-1) == 1).any()  # some had left
    assert rollout.terminated[-1].all() and not rollout.terminated[:-1].any() and rollout.final_obs is None
    assert not (redeemed & (offer == 0)).any() and redeemed.any()
    assert rollout.mean_info()["rollout/contacted"].item() == pytest.approx((offer > 0).float().mean().item())
    again = ppo.collect()
    assert not torch.equal(again.obs[0], rollout.obs[0])
    metrics = ppo.update(ppo.compute_advantages(rollout))
    assert all(x.isfinite() for x in metrics.values())


@pytest.mark.parametrize("num_steps", [6, 24])
def test_ppo_refuses_rollouts_that_are_no_season(num_steps):
    with pytest.raises(ValueError, match=r"^algo\.num_steps: expected 12, "):
        load("../algo/ppo", make(), 0, num_steps=num_steps)
