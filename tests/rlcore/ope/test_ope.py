"""Off-policy evaluation: scalar references, exact limits, the Open Bandit Pipeline, intervals, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from envs.data_collection import rollouts
from rlcore.offline.logged_dataset import ColumnNames, LoggedDataset
from rlcore.ope import estimators as ope
from rlcore.ope import intervals
from rlcore.ope.cross_fitting import consecutive_ids, cross_fit, folds, rows_by_episode
from rlcore.ope.outcome_models import Linear, solve
from small_offers import logging_policy, offers_env

INF = math.inf


def logged(n=400, actions=3, seed=0):
    """Propensities, target, action, reward and a model's outcomes of one-step decisions, float64."""
    generator = torch.Generator().manual_seed(seed)
    p, target = (torch.rand(n, actions, generator=generator, dtype=torch.float64).softmax(1) for _ in range(2))
    action = torch.multinomial(p, 1, generator=generator)[:, 0]
    reward, q = torch.randn(n, generator=generator).double(), torch.randn(n, actions, generator=generator).double()
    return p, target, action, reward, q


def one_step(n=400, seed=0):
    p, target, action, reward, q = logged(n, seed=seed)
    w = ope.select_actions(target, action) / ope.select_actions(p, action)
    return w, reward, (target * q).sum(1), ope.select_actions(q, action)


def value(terms):
    return intervals.estimate(terms).item()


# ── one step ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_one_step_estimators_equal_scalar_loops():
    p, target, action, reward, q = (x.numpy() for x in logged(50))
    w, r, v, qa = one_step(50)
    sums = dict.fromkeys(("ips", "clip", "w", "dm", "dr", "residual", "switch", "dros"), 0.0)
    for i in range(50):
        a = action[i]
        weight, direct = target[i, a] / p[i, a], sum(target[i, b] * q[i, b] for b in range(3))
        rest = reward[i] - q[i, a]
        sums["ips"] += weight * reward[i] / 50
        sums["clip"] += min(weight, 1.5) * reward[i] / 50
        sums["w"] += weight / 50
        sums["dm"] += direct / 50
        sums["dr"] += (direct + min(weight, 1.5) * rest) / 50
        sums["residual"] += weight * rest / 50
        sums["switch"] += (direct + (weight * rest if weight <= 1.2 else 0)) / 50
        sums["dros"] += (direct + 2 * weight / (weight**2 + 2) * rest) / 50
    for terms, wanted in (
        (ope.ips(w, r), sums["ips"]),
        (ope.ips(w, r, 1.5), sums["clip"]),
        (ope.snips(w, r), sums["ips"] / sums["w"]),
        (ope.dm(v), sums["dm"]),
        (ope.dr(w, r, v, qa, 1.5), sums["dr"]),
        (ope.sndr(w, r, v, qa), sums["dm"] + sums["residual"] / sums["w"]),
        (ope.switch_dr(w, r, v, qa, 1.2), sums["switch"]),
        (ope.dros(w, r, v, qa, 2.0), sums["dros"]),
    ):
        assert value(terms) == pytest.approx(wanted, rel=1e-12)


def test_limits():
    w, r, v, qa = one_step()
    assert value(ope.switch_dr(w, r, v, qa, 0.0)) == value(ope.dm(v)) == value(ope.dros(w, r, v, qa, 0.0))
    doubly = value(ope.dr(w, r, v, qa))
    assert value(ope.switch_dr(w, r, v, qa, INF)) == doubly == value(ope.dros(w, r, v, qa, INF))
    assert value(ope.dros(w, r, v, qa, 1e12)) == pytest.approx(doubly, rel=1e-9)
    zero = torch.zeros_like(v)
    assert value(ope.dr(w, r, zero, zero)) == pytest.approx(value(ope.ips(w, r)))
    assert value(ope.sndr(w, r, zero, zero)) == pytest.approx(value(ope.snips(w, r)))
    assert value(ope.ips(torch.ones_like(w), r)) == pytest.approx(r.mean().item())


@pytest.mark.parametrize("exact", ["propensity", "model", "neither"])
def test_doubly_robust_is_unbiased_if_either_is_exact(exact):
    generator = torch.Generator().manual_seed(1)
    n, batch = 200, 4000
    p = torch.tensor([0.6, 0.3, 0.1]).double()
    target, means = torch.tensor([0.2, 0.3, 0.5]).double(), torch.tensor([1.0, 2.0, 4.0]).double()
    action = torch.multinomial(p, batch * n, True, generator=generator).view(batch, n)
    reward = means[action] + torch.randn(batch, n, generator=generator).double()
    q = means if exact == "model" else torch.tensor([3.0, 0.0, 1.0]).double()
    told = p if exact == "propensity" else torch.tensor([1 / 3] * 3).double()
    w = (target / told)[action]
    estimates = intervals.estimate(ope.dr(w, reward, (target @ q).expand(batch, n), q[action]))
    z = (estimates.mean() - target @ means) / (estimates.std() / batch**0.5)
    assert (abs(z) < 3.5) == (exact != "neither"), z


# ── seasons ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def season(m=30, steps=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ratio = torch.rand(m, steps, generator=generator).double() * 2
    r, v, q = (torch.randn(m, steps, generator=generator).double() for _ in range(3))
    return ratio, r, v, q, torch.nn.functional.pad(v[:, 1:], (0, 1))


def test_sequential_estimators_equal_scalar_loops():
    ratio, r, v, q, following = season()
    gamma, m, steps = 0.9, 30, 5
    pdis = doubly = 0.0
    cumulative = np.cumprod(ratio.numpy(), 1)
    for i in range(m):
        backwards = 0.0
        for t in reversed(range(steps)):  # Jiang & Li's recursion
            backwards = v[i, t].item() + ratio[i, t].item() * (r[i, t].item() + gamma * backwards - q[i, t].item())
        doubly += backwards / m
        pdis += sum(gamma**t * cumulative[i, t] * r[i, t].item() for t in range(steps)) / m
    weighted = sum(
        gamma**t * sum(cumulative[i, t] * r[i, t].item() for i in range(m)) / cumulative[:, t].sum()
        for t in range(steps)
    )
    robust = sum(v[i, 0].item() for i in range(m)) / m
    for t in range(steps):  # Thomas & Brunskill, eq. 4: w_t·(r − q) + w_{t−1}·v, of normalised weights
        now = cumulative[:, t] / cumulative[:, t].sum()
        robust += gamma**t * (now @ (r[:, t] - q[:, t]).numpy() + gamma * now @ following[:, t].numpy())
    assert value(ope.pdis(ratio, r, gamma)) == pytest.approx(pdis, rel=1e-12)
    assert value(ope.wpdis(ratio, r, gamma)) == pytest.approx(weighted, rel=1e-12)
    assert value(ope.sequential_dr(ratio, r, v, q, following, gamma)) == pytest.approx(doubly, rel=1e-12)
    assert value(ope.weighted_dr(ratio, r, v, q, following, gamma)) == pytest.approx(robust, rel=1e-12)


def test_a_season_of_one_decision_is_one_step():
    w, r, v, qa = one_step()
    wide = [x[:, None] for x in (w, r, v, qa)]
    assert value(ope.pdis(*wide[:2], 0.9)) == pytest.approx(value(ope.ips(w, r)), rel=1e-12)
    assert value(ope.wpdis(*wide[:2], 0.9)) == pytest.approx(value(ope.snips(w, r)), rel=1e-12)
    assert value(ope.sequential_dr(*wide, 0 * wide[0], 0.9)) == pytest.approx(value(ope.dr(w, r, v, qa)), rel=1e-12)
    assert value(ope.weighted_dr(*wide, 0 * wide[0], 0.9)) == pytest.approx(value(ope.sndr(w, r, v, qa)), rel=1e-12)


def test_an_exact_model_leaves_nothing_to_weigh():
    ratio, _, v, _, following = season()
    q = torch.randn(30, 5, generator=torch.Generator().manual_seed(3)).double()
    terms = ope.sequential_dr(ratio, q - 0.9 * following, v, q, following, 0.9)
    torch.testing.assert_close(terms.plain, v[:, 0])


# ── intervals ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_influence_is_what_leaving_one_out_moves():
    ratio, r, v, q, following = season(600)
    for make in (
        lambda k: ope.wpdis(ratio[k], r[k], 0.9),
        lambda k: ope.sequential_dr(*(x[k] for x in (ratio, r, v, q, following)), 0.9),
        lambda k: ope.weighted_dr(*(x[k] for x in (ratio, r, v, q, following)), 0.9),
    ):
        everything = torch.arange(600)
        moved = torch.stack(
            [
                599 * (intervals.estimate(make(everything)) - intervals.estimate(make(everything[everything != i])))
                for i in range(600)
            ]
        )
        torch.testing.assert_close(intervals.influence(make(everything)), moved, rtol=0.05, atol=0.05)
        assert abs(intervals.influence(make(everything)).mean()) < 1e-12


def test_intervals_by_hand():
    x = torch.tensor([1.0, 2.0, 4.0, 9.0]).double()
    low, high = intervals.normal(ope.Terms(x), None, 0.95)
    half = 1.959964 * x.std().item() / 2
    assert (low.item(), high.item()) == pytest.approx((4 - half, 4 + half), rel=1e-6)
    log = math.log(4 / 0.05)
    half = (2 * x.var().item() * log / 4) ** 0.5 + 7 * 8 * log / 9
    assert [b.item() for b in intervals.bernstein(ope.Terms(x), None, 0.95)] == pytest.approx([4 - half, 4 + half])
    # two customers of two decisions each: two numbers, not four
    low, high = intervals.normal(ope.Terms(x), torch.tensor([0, 0, 1, 1]), 0.95)
    half = 1.959964 * (torch.tensor([3.0, 13.0]).std().item() / 2**0.5) / 2
    assert (low.item(), high.item()) == pytest.approx((4 - half, 4 + half), rel=1e-6)


def test_bootstrap_agrees_with_the_normal_interval_and_resamples_denominators():
    w, r, v, qa = one_step(3000)
    cluster = torch.arange(3000) // 3
    several = [ope.ips(w, r), ope.snips(w, r + 10), ope.sndr(w, r, v, qa)]
    drawn = intervals.bootstrap(several, cluster, 4000, torch.Generator().manual_seed(0), chunk=300)
    for terms, estimates in zip(several, drawn):
        low, high = (x.item() for x in intervals.normal(terms, cluster, 0.95))
        assert np.quantile(estimates, [0.025, 0.975]) == pytest.approx([low, high], abs=0.12 * (high - low))
    # With a constant reward the ratio knows no chance at all, the sum of its parts would.
    constant = ope.snips(w, torch.full_like(r, 7.0))
    assert intervals.bootstrap([constant], cluster, 100, torch.Generator().manual_seed(0)).std() < 1e-9
    assert sum(x.item() for x in intervals.normal(constant, cluster, 0.95)) == pytest.approx(14.0)


def test_diagnostics():
    assert ope.effective_sample_size(torch.tensor([1.0, 1.0, 1.0, 0.0])).item() == pytest.approx(3.0)
    target, probs = torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.2, 0.8]])
    assert ope.unsupported_share(target, probs).item() == pytest.approx(0.25)


def decisions_of(unit: list[int], episode: list[int], step: list[int]) -> LoggedDataset:
    """Decisions of which nothing but their place counts."""
    n = len(unit)
    feedback = {"n_rounds": n, "n_actions": 2, "context": [[0.0]] * n, "action": [0] * n, "reward": [0.0] * n}
    names = ColumnNames(unit="customer", episode="season", step="week")
    placed = {"unit": unit, "episode": episode, "step": step}
    tensors = {name: torch.tensor(x) for name, x in placed.items()}
    return replace(LoggedDataset.from_obp(feedback), names=names, **tensors)


# ── models ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_no_customer_is_predicted_by_a_model_that_saw_it():
    fits: list[set] = []

    def fit(obs, action, outcome, actions, generator):
        seen = set(obs[:, 0].long().tolist())
        fits.append(seen)
        return lambda x: torch.stack([torch.full((actions, 1), float(int(i) in seen)) for i in x[:, 0]])

    customer = torch.arange(20).repeat_interleave(3)
    place = rows_by_episode(decisions_of(customer.tolist(), [0] * 60, [0, 1, 2] * 20))
    generator = torch.Generator().manual_seed(0)
    fold = folds(customer, 4, generator)
    assert fold.bincount().tolist() == [15] * 4 and (fold.view(20, 3) == fold.view(20, 3)[:, :1]).all()
    v, q = cross_fit(
        fit,
        customer[:, None].float(),
        0 * customer,
        torch.ones(60, 1),
        torch.full((60, 2), 0.5),
        place,
        fold,
        1.0,
        generator,
    )
    assert not v.any() and not q.any()
    assert len(fits) == 12 and all(len(seen) == 15 for seen in fits)


def test_fitted_q_evaluation_finds_the_value_of_a_chain():
    # One binary state that action 1 switches; reward is the state. From 0 over 3 weeks the target (always 1) earns
    # 0+1+0.
    generator = torch.Generator().manual_seed(0)
    m, steps = 2000, 3
    state, rows = torch.zeros(m, dtype=torch.long), []
    for _ in range(steps):
        action = torch.randint(2, (m,), generator=generator)
        rows.append((state, action, state.float()))
        state = state ^ action
    state, action, reward = (torch.stack(x, 1).flatten() for x in zip(*rows))
    customer, week = torch.arange(m).repeat_interleave(steps), torch.arange(steps).repeat(m)
    obs = torch.stack((state.float(), 1 - state.float()), 1)
    target = torch.tensor([0.0, 1.0]).expand(m * steps, 2)
    v, q = cross_fit(
        Linear(ridge=1e-3, own=True, scaled=False),
        obs,
        action,
        reward[:, None],
        target,
        torch.arange(m * steps).view(m, steps),
        folds(customer, 2, generator),
        1.0,
        generator,
    )
    assert v.view(m, steps)[:, 0] == pytest.approx(1.0, abs=0.01)
    last = week == 2
    torch.testing.assert_close(q[last, 0], reward[last], atol=0.01, rtol=0)


def test_ridge_regression_is_the_minimum():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 30, 4, generator=generator).double(), torch.randn(2, 30, 2, generator=generator).double()
    penalty = torch.tensor([0.7, 0.0, 2.0, 0.7]).double()
    weight = solve(x, y, penalty).requires_grad_()
    loss = (y - x @ weight).square().sum() + (penalty[:, None] * weight.square()).sum()
    assert torch.autograd.grad(loss, weight)[0].abs().max() < 1e-9


def test_seasons_are_laid_out_in_order():
    log = decisions_of([7, 7, 3, 7, 3], [0, 0, 1, 1, 1], [2, 1, 4, 0, 3])
    assert rows_by_episode(log).tolist() == [[4, 2], [1, 0], [3, -1]]
    repeated = decisions_of([1, 2, 2, 2, 2], [0] * 5, [0, 3, 1, 2, 3])
    with pytest.raises(ValueError, match="rows 3, 6: expected one decision of a customer, season and week"):
        rows_by_episode(repeated)
    with pytest.raises(ValueError, match="rows 3, 6: expected one"):
        rows_by_episode(repeated[torch.tensor([1, 2, 4])])  # a part of a file names the file's rows
    assert consecutive_ids(torch.tensor([9, 4, 9])).tolist() == [1, 0, 1]


# ── a whole log ─────────────────────────────────────────────────────────────────────────────────────────────────────
def valuation(**changes):
    config = composed("ope/model=linear", name="evaluate").ope
    return instantiate({**config, "replications": 300, "greedy": False, **changes}, _convert_="all")


@pytest.fixture(scope="module")
def log() -> LoggedDataset:
    chunks = rollouts(
        offers_env(1500, price_range=[2.0, 4.0]),
        logging_policy("price_perturbed", epsilon=0.3, plans=False),
        "price_perturbed",
        0,
        decisions=1,
        steps=1,
        all_propensities=True,
    )
    return LoggedDataset.cat(list(chunks))


def test_the_logging_policy_s_own_value_comes_out(log):
    result = valuation()(log, log.probs)
    logged = result.rows.pop("as logged")
    assert set(result.rows) == {"FQE", "PDIS", "weighted PDIS", "sequential DR", "weighted DR"}
    assert result.rows["FQE"]["profit"] == pytest.approx(logged["profit"], rel=0.05)  # of a linear model
    for name, row in list(result.rows.items())[1:]:
        for kind in ("profit", "spend", "net"):
            half = (logged[f"{kind}_ci"][1] - logged[f"{kind}_ci"][0]) / 2
            assert row[kind] == pytest.approx(logged[kind], abs=1e-4 if "PDIS" in name else half), (name, kind)
            assert row[f"{kind}_ci"][0] < row[kind] < row[f"{kind}_ci"][1]
            assert row[f"{kind}_bernstein"][0] < row[f"{kind}_normal"][0]
    d = result.diagnostics
    assert d["effective_share"] == pytest.approx(1.0, abs=1e-6) and d["unsupported"] == 0.0 and not result.warnings
    assert logged["net"] == pytest.approx(log.net_reward.double().view(-1, 12).sum(1).mean().item(), rel=1e-6)


def test_one_step_logs_get_one_step_estimators(log):
    first = log[log.step == 0]
    result = valuation(clip=5.0)(first, first.probs)
    assert {"DM", "IPS", "IPS, clipped at 5", "SNIPS", "DR", "SNDR"} < set(result.rows)
    assert result.rows["DR"]["profit_ci"][0] < result.rows["as logged"]["profit"] < result.rows["DR"]["profit_ci"][1]


def test_what_is_missing_is_refused_or_warned_of(log):
    value = valuation()
    some = replace(log, propensity=torch.where(log.step == 0, torch.nan, log.propensity), probs=None)
    result = value(some, log.probs)
    assert set(result.rows) == {"as logged", "FQE"} and result.weights is None
    assert result.warnings[0].startswith("rows 2, 14, 26, 38, 50 and 1,495 more: no propensity; only the model")
    with pytest.raises(ValueError, match="target: rows 2, .*it does what valid_. forbids"):
        value(log, torch.full_like(log.probs, 1 / 30))
    never = torch.nn.functional.one_hot(torch.where(log.action_mask[:, 7], 7, 0), 30).float()
    bare = replace(log, probs=log.probs.index_fill(1, torch.tensor([7]), 0.0))[log.action != 7]
    result = value(bare, never[log.action != 7])
    assert "the target does what the logging policy never would there" in result.warnings[0]
    assert result.diagnostics["unsupported"] > 0.5
    result = value(replace(bare, probs=None), never[log.action != 7])
    assert "of what the target does is never done in the log" in result.warnings[0]
    assert "intervals are too narrow" in result.warnings[1]
    contacted = log[(log.action > 0) & (log.action != 7)]
    with pytest.raises(ValueError, match="none of the logged decisions is one that it could have made"):
        value(contacted, torch.nn.functional.one_hot(0 * contacted.action, 30).float())


# ── the Open Bandit Pipeline ────────────────────────────────────────────────────────────────────────────────────────
def open_bandit():
    """The Open Bandit sample (ZOZO, CC BY 4.0) that comes with obp, as its dict: obp's loader needs an older pandas."""
    obp, pd = pytest.importorskip("obp"), pytest.importorskip("pandas")
    table = pd.read_csv(Path(obp.__file__).parent / "dataset/obd/random/all/all.csv", index_col=0)
    features = pd.get_dummies(table[[f"user_feature_{k}" for k in range(4)]]).to_numpy(float)
    return {
        "n_rounds": len(table),
        "n_actions": 80,
        "context": features,
        "action": table["item_id"].to_numpy(),
        "position": table["position"].to_numpy() - 1,
        "reward": table["click"].to_numpy(float),
        "pscore": table["propensity_score"].to_numpy(float),
    }


def test_estimates_are_those_of_the_open_bandit_pipeline():
    theirs = pytest.importorskip("obp.ope")
    feedback = open_bandit()
    log = LoggedDataset.from_obp(feedback)
    assert len(log) == 10_000 and log.nvec == (80,)
    rng = np.random.default_rng(0)
    target = rng.dirichlet(np.full(80, 0.3), size=len(log))
    model = rng.uniform(0, 0.1, size=(len(log), 80))
    given = {
        "reward": feedback["reward"],
        "action": feedback["action"],
        "pscore": feedback["pscore"],
        "action_dist": target[:, :, None],
        "position": np.zeros(len(log), dtype=int),
        "estimated_rewards_by_reg_model": model[:, :, None],
    }
    pi, q = torch.tensor(target), torch.tensor(model)
    w, r = ope.select_actions(pi, log.action) / log.propensity, log.reward.double()
    v, qa = (pi * q).sum(1), ope.select_actions(q, log.action)
    pairs = {
        "dm": (ope.dm(v), theirs.DirectMethod()),
        "ips": (ope.ips(w, r), theirs.InverseProbabilityWeighting()),
        "snips": (ope.snips(w, r), theirs.SelfNormalizedInverseProbabilityWeighting()),
        "dr": (ope.dr(w, r, v, qa), theirs.DoublyRobust()),
        "sndr": (ope.sndr(w, r, v, qa), theirs.SelfNormalizedDoublyRobust()),
        "switch": (ope.switch_dr(w, r, v, qa, 3.0), theirs.SwitchDoublyRobust(tau=3.0)),
        "dros": (ope.dros(w, r, v, qa, 5.0), theirs.DoublyRobustWithShrinkage(lambda_=5.0)),
    }
    found = {name: (value(mine), other.estimate_policy_value(**given)) for name, (mine, other) in pairs.items()}
    assert len({round(x, 6) for x, _ in found.values()}) == 7  # else nothing was told apart
    for name, (mine, other) in found.items():
        assert mine == pytest.approx(other, abs=1e-6), name


def test_a_valuation_reads_the_open_bandit_sample():
    log = LoggedDataset.from_obp(open_bandit())
    result = valuation(replications=50)(log, log.action_mask / 80)
    # its mean click rate: it was logged uniformly
    assert result.rows["IPS"]["reward"] == pytest.approx(0.0038, abs=1e-4)
    assert result.diagnostics["effective_share"] == pytest.approx(1.0)


def test_half_widths_of_means():
    x = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 8.0], [9.0, 2.0]]).double()
    normal = intervals.normal_half_width(x, 0.95)
    torch.testing.assert_close(normal, 1.959963984540054 * x.std(0) / 2)
    torch.testing.assert_close(intervals.student_half_width(x, 0.95), 3.1824463052837086 * x.std(0) / 2)
    assert not intervals.normal_half_width(x[:1], 0.95).any() and not intervals.student_half_width(x[:1], 0.95).any()


def test_a_bootstrap_of_few_clusters_leaves_out_draws_without_weight():
    weight = torch.tensor([0.0, 0.0, 0.0, 2.0], dtype=torch.float64)  # e⁻¹ of the draws miss the last
    terms = ope.Terms(plain=torch.zeros(4, dtype=torch.float64), numerator=3 * weight[:, None], weight=weight[:, None])
    drawn = intervals.bootstrap([terms], None, 2000, torch.Generator().manual_seed(0))[0]
    assert abs(drawn.isnan().double().mean().item() - math.exp(-1)) < 0.04
    assert intervals.central(drawn, 0.95).tolist() == [3.0, 3.0]
