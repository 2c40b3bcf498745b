"""The base of the off-policy benchmarks: a pool with exact true values, and a real shop's file as a log."""

from __future__ import annotations

import math

import pytest
import torch
from hydra.utils import instantiate

from configs import composed, load
from made_up_mailing import made_up_mailing
from rlcore.ope.outcome_models import Linear
from scripts.benchmarks.ope.customer_pool import Pool, replications
from scripts.benchmarks.uplift import hillstrom

CPU = torch.device("cpu")


def pool_of(size=40, **changes):
    env = load(
        "offers_full_information",
        CPU,
        0,
        num_agents=10,
        population={"reference_size": 1000},
        price_noise=0.0,
        price_range=[2.999, 3.001],
        drift_range=[-1e-6, 1e-6],
        **changes,
    )
    env.use_realised_outcomes()
    return env, Pool(env, size, 0)


@pytest.mark.long
def test_the_true_value_is_what_playing_brings_on_average():
    env, pool = pool_of()
    policy = pool.policy(price=2.0, plans=True, sigma=0.6, epsilon=0.2)
    assert policy.shape == (12, 72, 40, 30) and ((policy.sum(-1) - 1).abs() < 1e-5).all() and not policy[..., 1:5].any()
    profit, spend = pool.value(policy)
    ((log, (same,)),) = replications(env, pool, policy, [policy], count=1, customers=6000, at_once=1, seed=0)
    torch.testing.assert_close(same.double().gather(1, log.action[:, None])[:, 0], log.propensity, rtol=1e-6, atol=0)
    for got, true in ((log.gross_reward, profit), (log.cost, spend)):
        season = got.double().view(6000, 12).sum(1)
        assert abs(season.mean() - true) < 3.5 * season.std() / math.sqrt(6000)
    # Never contacting earns what the organic value says, and a plan at price 0 more than that.
    never = pool.policy(price=1e9, plans=True, sigma=0.1, epsilon=0.0)
    assert pool.value(never)[0] == pytest.approx(
        pool.no_contact_values[0].at(pool.sample.state).mean().item(), rel=1e-9
    )
    free = pool.policy(price=1e-9, plans=True, sigma=0.1, epsilon=0.0)
    assert pool.value(free)[0] > max(pool.value(never)[0], profit)


@pytest.mark.slow
def test_replications_are_of_different_customers_and_each_whole():
    env, pool = pool_of()
    policy = pool.policy(price=2.0, plans=False, sigma=0.6, epsilon=0.2)
    runs = list(replications(env, pool, policy, [policy], count=5, customers=20, at_once=2, seed=0))
    assert len(runs) == 5 and all(len(log) == 240 and log.unit.unique().numel() == 20 for log, _ in runs)
    assert len({log.reward.sum().item() for log, _ in runs}) == 5


@pytest.mark.long
@pytest.mark.parametrize("bench", ["coverage", "selection"])
def test_the_benches_run(bench, tmp_path, capsys):
    small = {"pool": 20, "count": 2, "customers": 60, "at_once": 2}
    config = composed(f"benchmark=ope/{bench}", name="bench").benchmark
    if bench == "coverage":
        for case in config.cases.values():
            case.update(small)
            case.env.population.reference_size = 1000
    else:
        config.update(small)
        config.env.population.reference_size = 1000
    found = instantiate(config, _convert_="all")(tmp_path, CPU, 0)
    if bench == "coverage":
        row = found["cases"]["season"]["rows"]["sequential DR"]["profit"]
        assert 0 <= row["normal"]["covered"] <= 1 and row["Bernstein"]["half_width"] > row["normal"]["half_width"] > 0
        assert found["cases"]["one_step"]["weeks"] == 1
    else:
        assert len(found["candidates"]) == 8 and sum(row["chosen"] for row in found["candidates"].values()) == 1
        assert found["right"] >= found["best"] and found["regret"] >= 0
    assert "effective" in capsys.readouterr().out


@pytest.mark.slow
# ── Hillstrom ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.long
def test_a_shop_s_policy_is_learned_and_valued_on_others(tmp_path):
    """The A/B test's own command, on a file in the layout of Hillstrom's."""
    pytest.importorskip("pyarrow")
    made_up_mailing().to_parquet(tmp_path / "shop.parquet")
    logistic = ("S_logistic", "S_logistic_1000", "S_logistic_3000", "T_logistic")
    slow = (*logistic, "X_linear", "DR_linear", "T_network", "X_network")
    config = composed(
        "trial_table@table=hillstrom",
        f"data={tmp_path / 'shop.parquet'}",
        "ab_test.folds=2",
        "ab_test.cost=0.1",
        "+ab_test.worth.spend=0.4",
        *(f"~ab_test.learners.{name}" for name in slow),
        name="uplift",
    )
    trial = instantiate(config.table, _convert_="all").read()
    analysis = instantiate(config.ab_test, _convert_="all")(trial, 0)
    for name in ("by visit", "by profit"):
        # the right mail to everyone: .4 · 10 · .5 − .1; one mail to all: .4 · 10 · (.5 + .1) / 2 − .1
        _, low, high = analysis.policies[name].dr
        assert low < 1.9 < high
        assert analysis.over_best[name][0] == pytest.approx(0.8, abs=0.15)
        assert analysis.over_none[name][1] > 0
    assert {trial.arms[half.best_arm] for half in analysis.halves} <= {"Mens E-Mail", "Womens E-Mail"}


def test_a_shop_s_file_is_refused_by_name(tmp_path):
    pytest.importorskip("pyarrow")
    frame, path = made_up_mailing(20), tmp_path / "shop.csv"
    for change, message in (
        (lambda f: f.drop(columns="womens"), "shop.csv: no column 'womens'"),
        (lambda f: f.assign(segment=["Fax", *f.segment[1:]]), "row 2, column 'segment': expected one of"),
    ):
        change(frame).to_csv(path, index=False)
        with pytest.raises(ValueError, match=message):
            hillstrom.read_hillstrom(str(path))
    frame.loc[3, "spend"] = float("nan")
    frame.to_csv(path, index=False)
    with pytest.raises(ValueError, match="row 5, column 'spend': no number"):
        hillstrom.read_hillstrom(str(path))
    with pytest.raises(ValueError, match="benchmark.path: expected the file"):
        hillstrom.read_hillstrom(None)


def test_slopes_shared_and_own():
    generator = torch.Generator().manual_seed(0)
    obs, action = torch.randn(3000, 2, generator=generator), torch.randint(3, (3000,), generator=generator)
    outcome = obs[:, 0] + torch.where(action > 0, 2 * obs[:, 1], 0.0) + action
    one = torch.tensor([[0.5, -1.0]])
    wanted = torch.tensor([0.5, -0.5, 0.5])
    for own in (False, True):
        predict = Linear(ridge=1e-6, own=own, scaled=False)(obs, action, outcome[:, None], 3, generator)
        torch.testing.assert_close(predict(one)[0, :, 0], wanted, atol=1e-4, rtol=0)
    opposite = torch.where(action == 1, obs[:, 1], torch.where(action == 2, -obs[:, 1], 0.0))
    predict = Linear(ridge=1e-6, own=True, scaled=False)(obs, action, opposite[:, None], 3, generator)
    torch.testing.assert_close(predict(one)[0, :, 0], torch.tensor([0.0, -1.0, 1.0]), atol=1e-4, rtol=0)


def test_what_is_proportional_to_a_scale_is_found():
    generator = torch.Generator().manual_seed(0)
    obs, action = torch.randn(4000, 3, generator=generator), torch.randint(2, (4000,), generator=generator)
    outcome = (0.8 * obs[:, 0] - 0.5 * obs[:, 1]).exp() * (2 + action + 0.5 * obs[:, 2].clamp(-1, 1))
    left = {
        scaled: (
            Linear(ridge=1.0, own=False, scaled=scaled)(obs, action, outcome[:, None], 2, generator)(obs)[
                torch.arange(4000), action, 0
            ]
            - outcome
        ).std()
        / outcome.std()
        for scaled in (False, True)
    }
    assert left[True] < 0.15 < 0.4 < left[False], left


@pytest.mark.long
def test_twins_are_held_against_the_truth(tmp_path):
    """The truth has no error; the twin is near it, customer by customer."""
    cfg = composed(
        "benchmark=learning/twins",
        "benchmark.decisions=12000",
        "benchmark.agents=1000",
        "benchmark.new=300",
        "~benchmark.twins.network",
        "benchmark.twins.linear.twin.reference_size=2000",
        name="bench",
    )
    rows = instantiate(cfg.benchmark, _convert_="all")(tmp_path, CPU, 0)["rows"]
    truth, twin = rows["truth"], rows["linear"]
    assert truth["error"] == 0 and truth["correlation"] == pytest.approx(1)
    assert twin["error"] < 0.6 * truth["spread"] and twin["correlation"] > 0.8
    assert truth["response"] > twin["response"] > truth["response"] - 0.05
