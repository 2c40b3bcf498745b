"""Uplift: curves, coefficients and bins against scalar versions and scikit-uplift; learners against known effects."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from made_up_mailing import made_up_mailing
from rlcore.ope.outcome_models import Linear, Network
from rlcore.uplift import comparison, fitted_models
from rlcore.uplift import meta_learners as effects
from rlcore.uplift import metrics as uplift
from rlcore.uplift.balance import hotelling, standardized_differences


def trial(n=400, ties=True, seed=0):
    """A randomised test with an informative score that has ties."""
    g = torch.Generator().manual_seed(seed)
    score = torch.rand(n, generator=g, dtype=torch.float64)
    treated = torch.rand(n, generator=g) < 0.6
    outcome = (torch.rand(n, generator=g) < 0.2 + 0.5 * score * treated).double()
    return outcome, (score * 8).round() if ties else score, treated


def scalar_points(outcome, score, treated, qini):
    """The curve of either kind, one customer after the other."""
    points, rows = [(0, 0.0)], list(zip(outcome.tolist(), score.tolist(), treated.tolist()))
    for level in sorted({s for _, s, _ in rows}, reverse=True):
        t = [y for y, s, w in rows if s >= level and w]
        c = [y for y, s, w in rows if s >= level and not w]
        if qini:
            gain = sum(t) - (sum(c) * len(t) / len(c) if c else 0.0)
        else:
            gain = ((sum(t) / len(t) if t else 0.0) - (sum(c) / len(c) if c else 0.0)) * (len(t) + len(c))
        points.append((len(t) + len(c), gain))
    return points


def scalar_area(points):
    """Area above the line to the end."""
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    return area - points[-1][0] * points[-1][1] / 2


@pytest.mark.parametrize("ties", [True, False])
def test_curves_are_those_of_a_scalar_version(ties):
    outcome, score, treated = trial(ties=ties)
    outcome = outcome * 3.7  # money
    for kind, curve in ((True, uplift.qini_curve), (False, uplift.uplift_curve)):
        x, y = curve(outcome, score, treated)
        wanted = scalar_points(outcome, score, treated, kind)
        assert x.tolist() == [n for n, _ in wanted]
        torch.testing.assert_close(y, torch.tensor([g for _, g in wanted], dtype=torch.float64))
        assert uplift.area_above_random(x, y).item() == pytest.approx(scalar_area(wanted))
    best = scalar_area(scalar_points(outcome, torch.where(treated, outcome, -outcome), treated, True))
    assert uplift.qini(outcome, score, treated).item() == pytest.approx(
        scalar_area(scalar_points(outcome, score, treated, True)) / best
    )


@pytest.mark.parametrize("seed", range(3))
def test_coefficients_and_bins_are_scikit_uplift_s(seed):
    metrics = pytest.importorskip("sklift.metrics")
    for ties in (True, False):
        outcome, score, treated = trial(ties=ties, seed=seed)
        args = outcome.int().numpy(), score.numpy(), treated.int().numpy()
        assert uplift.qini(outcome, score, treated).item() == pytest.approx(metrics.qini_auc_score(*args), abs=1e-12)
        assert uplift.auuc(outcome, score, treated).item() == pytest.approx(metrics.uplift_auc_score(*args), abs=1e-12)
        if ties:
            continue  # in which bin a tied customer is, depends on the order of the rows there
        found = uplift.by_bin(outcome, score, treated, 7)
        theirs = metrics.uplift_by_percentile(*args, bins=7, std=True)
        for ours, name in (
            (found.treated, "n_treatment"),
            (found.control, "n_control"),
            (found.uplift, "uplift"),
            (found.treated_mean, "response_rate_treatment"),
            (found.control_mean, "response_rate_control"),
            (found.std, "std_uplift"),
        ):
            assert ours.tolist() == pytest.approx(theirs[name].tolist(), abs=1e-12), name
        assert found.average.item() == pytest.approx(metrics.weighted_average_uplift(*args, bins=7), abs=1e-12)
    mostly = trial(seed=seed)[0] * 0 + (torch.arange(400) % 5 > 0)  # more buy anyhow than would never
    args = mostly.int().numpy(), score.numpy(), treated.int().numpy()
    assert uplift.auuc(mostly, score, treated).item() == pytest.approx(metrics.uplift_auc_score(*args), abs=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1e-16])
def test_nothing_depends_on_the_order_of_rows_or_on_rounding(noise):
    outcome, score, treated = trial()
    score = score / 80
    wanted = uplift.by_bin(outcome, score, treated, 10)
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        order = torch.randperm(400, generator=g)
        rounded = score[order] + noise * torch.randn(400, generator=g, dtype=torch.float64)
        rows = outcome[order], rounded, treated[order]
        for measure in (uplift.qini, uplift.auuc):
            assert measure(*rows).item() == pytest.approx(measure(outcome, score, treated).item(), abs=1e-12)
        for found, known in zip(uplift.by_bin(*rows, 10), wanted):
            torch.testing.assert_close(found, known, rtol=0, atol=1e-9)


def test_standard_errors_of_bins_go_by_cluster():
    """The references: rows that come twice are one, and a cluster in both groups counts as paired."""
    outcome, score, treated = trial(ties=False)
    alone = uplift.by_bin(outcome, score, treated, 8)
    twice = [x.repeat(2) for x in (outcome, score, treated)]
    by_pair = uplift.by_bin(*twice, 8, torch.arange(400).repeat(2))
    assert by_pair.std.tolist() == pytest.approx(alone.std.tolist())
    assert uplift.by_bin(*twice, 8).std.tolist() == pytest.approx((alone.std / 2**0.5).tolist())
    g = torch.Generator().manual_seed(0)
    pair = torch.randn(40, generator=g).double()[:, None] + 0.1 * torch.randn(40, 2, generator=g)
    first = torch.tensor([True, False]).repeat(40)
    found = uplift.by_bin(pair.flatten(), torch.zeros(80), first, 1, torch.arange(40).repeat_interleave(2))
    assert found.std.item() == pytest.approx((pair[:, 0] - pair[:, 1]).std(correction=0).item() / 40**0.5)


@pytest.mark.slow
def test_a_tied_group_is_in_its_bins_as_on_average_over_its_orders():
    outcome, score, treated = trial(60)
    found = uplift.by_bin(outcome, score, treated, 4)
    sums = torch.zeros(4, 4, dtype=torch.float64)
    for seed in range(1500):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        best = order[score[order].argsort(stable=True, descending=True)]
        for k, part in enumerate(best.split(15)):
            t, y = treated[part], outcome[part]
            sums[k] += torch.stack((t.sum(), (~t).sum(), y[t].sum(), y[~t].sum())) / 1500
    treated_units, control_units, treated_outcome, control_outcome = sums.T
    for ours, by_orders in (
        (found.treated, treated_units),
        (found.control, control_units),
        (found.treated * found.treated_mean, treated_outcome),
        (found.control * found.control_mean, control_outcome),
    ):
        torch.testing.assert_close(ours, by_orders, rtol=0, atol=0.2)
    assert (found.treated + found.control).tolist() == pytest.approx([15.0] * 4)


def test_a_bin_without_a_group_has_no_uplift_and_the_average_leaves_it_out():
    score = -torch.arange(12.0, dtype=torch.float64)
    treated = torch.tensor([1, 1, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1]).bool()
    outcome = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0]).double()
    found = uplift.by_bin(outcome, score, treated, 3)
    assert found.uplift.isnan().tolist() == found.std.isnan().tolist() == [True, False, False]
    assert found.treated.tolist() == [4, 2, 2]
    assert found.average.item() == pytest.approx((2 * (1 - 0) + 2 * (0.5 - 0.5)) / 4)


def test_a_test_that_ranks_nobody_is_refused():
    outcome, score, treated = trial()
    for rows, message in (
        (
            (outcome, score.index_fill(0, torch.tensor([3]), torch.nan), treated),
            "score: expected numbers, got 1 of 400",
        ),
        ((outcome.index_fill(0, torch.tensor([3]), torch.inf), score, treated), "outcome: expected numbers, got 1"),
        ((outcome, score, treated | True), "treated: expected treated units and others, got 400 of 400"),
        ((outcome, score, treated & False), "treated: expected treated units and others, got 0 of 400"),
    ):
        for measure in (uplift.qini, uplift.auuc, lambda *x: uplift.by_bin(*x, 10)):
            with pytest.raises(ValueError, match=message):
                measure(*rows)
    for measure in (uplift.qini, uplift.auuc):
        with pytest.raises(ValueError, match="outcome: expected some other than 0, got 0 of all 400 units"):
            measure(0 * outcome, score, treated)
    assert not uplift.by_bin(0 * outcome, score, treated, 10).uplift.any()  # nobody has an outcome in any part


def test_a_weight_counts_a_customer_that_often():
    outcome, score, treated = trial(60)
    weight = torch.poisson(torch.ones(4, 60), generator=torch.Generator().manual_seed(1))
    wanted = [uplift.qini(*(x.repeat_interleave(w.long()) for x in (outcome, score, treated))).item() for w in weight]
    area, perfect = uplift.qini_area(outcome, score, treated, weight), uplift.perfect_qini(outcome, treated, weight)
    assert (area / perfect).tolist() == pytest.approx(wanted)
    with pytest.raises(ValueError, match="expected outcomes 0 or 1"):
        uplift.auuc(2 * outcome, score, treated)


def test_hindsight_is_one_and_a_constant_nothing():
    outcome, _, treated = trial()
    best = torch.where(treated, outcome, -outcome)
    assert uplift.qini(outcome, best, treated).item() == pytest.approx(1.0)
    assert uplift.qini(outcome, torch.zeros(400), treated).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.slow
def test_resampled_differences_have_the_spread_of_new_tests():
    def one(seed):
        outcome, score, treated = trial(500, ties=False, seed=seed)
        noisy = score + 0.3 * torch.randn(500, generator=torch.Generator().manual_seed(seed + 999), dtype=torch.float64)
        return comparison.UpliftTestSet(torch.arange(500), outcome, treated, torch.stack((score, noisy)))

    anew = torch.tensor([[uplift.qini(t.outcome, s, t.treated) for s in t.scores] for t in map(one, range(200))])
    test = one(0)
    drawn = comparison.bootstrap_metrics([test, test], 500, 400, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 2, 400) and torch.equal(drawn[0], drawn[1])
    difference = drawn[0, 0] - drawn[0, 1]
    assert difference.std().item() == pytest.approx((anew[:, 0] - anew[:, 1]).std().item(), rel=0.25)
    assert difference.std() < 0.8 * drawn[0].std(1).norm()  # paired: less than of independent ones


def test_a_cost_curve_ends_at_what_was_gained_and_spent_in_all():
    outcome, score, treated = trial(4000, ties=False)
    cost = treated * 1.0
    spent, gained = uplift.cost_curve(outcome, cost, score, treated)
    effect = outcome[treated].mean() - outcome[~treated].mean()
    assert spent[-1].item() == pytest.approx(4000) and gained[-1].item() == pytest.approx(4000 * effect.item())
    areas = [
        uplift.cost_area(*uplift.cost_curve(outcome, cost, s, treated)).item()
        for s in (score, -score, torch.rand(4000, generator=torch.Generator().manual_seed(3)))
    ]
    assert areas[0] > 0.55 > 0.45 > areas[1] and areas[2] == pytest.approx(0.5, abs=0.05)


def test_drivers_are_what_the_effect_depends_on():
    g = torch.Generator().manual_seed(0)
    obs, treated = torch.randn(4000, 3, generator=g), torch.rand(4000, generator=g) < 0.5
    outcome = torch.rand(4000, generator=g) < 0.3 + 0.3 * treated * (obs[:, 1] > 0)
    lost = comparison.drivers(
        lambda x: x[:, 1] + 0.1 * x[:, 0],
        obs,
        outcome.double(),
        treated,
        {"first": [0], "second": [1], "none": [2]},
        3,
        g,
    )
    assert next(iter(lost)) == "second" and lost["second"] > 0.05 and lost["none"] == 0.0 and abs(lost["first"]) < 0.02


# ── learners ────────────────────────────────────────────────────────────────────────────────────────────────────────
def ridge(**changes):
    return Linear(**{"ridge": 1.0, "own": True, "scaled": False, **changes})


def network():
    return Network(hidden=[32], activation=torch.nn.ReLU, lr=1e-2, decay=1e-3, steps=300, batch_size=512)


def made(kind, model):
    """Make a learner."""
    extra = {"X": {"effect": ridge()}, "DR": {"effect": ridge(), "folds": 2, "floor": 0.01}}.get(kind, {})
    return getattr(effects, kind)(model=model, **extra)


def campaign(n=6000, confounded=False, seed=0):
    """Three arms, two outcomes; arm a's effect on the first is a + a·x₀, none on the second; x₁ moves both anyhow."""
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(n, 3, generator=g)
    lean = torch.sigmoid(2 * obs[:, 1:2]) if confounded else torch.full((n, 1), 0.5)
    probs = torch.cat((1 - lean, lean / 2, lean / 2), 1)
    action = torch.multinomial(probs, 1, generator=g)[:, 0]
    first = obs[:, 1] + action * (1 + obs[:, 0]) + 0.5 * torch.randn(n, generator=g)
    outcome = torch.stack((first, 2 * obs[:, 1] + 0.5 * torch.randn(n, generator=g)), 1)
    effect = torch.arange(3) * (1 + obs[:, :1])
    return obs, action, outcome, probs.gather(1, action[:, None])[:, 0], effect


@pytest.mark.long
@pytest.mark.parametrize("model", [ridge, network])
@pytest.mark.parametrize("kind", ["S", "T", "X", "DR"])
def test_learners_find_the_effects_of_several_arms(kind, model):
    obs, action, outcome, propensity, effect = campaign()
    learner = made(kind, model())
    fit = learner(obs, action, outcome, 3, torch.Generator().manual_seed(1), propensity)
    table = fit(obs)
    assert table.shape == (6000, 3, 2)
    found = table - table[:, :1]
    assert (found[:, :, 0] - effect).square().mean().sqrt() < (0.1 if model is ridge else 0.35)
    assert found[:, :, 1].abs().mean() < (0.05 if model is ridge else 0.25)
    assert (table[:, 0, 0] - obs[:, 1]).square().mean().sqrt() < 0.3
    again = learner.empty(3, 3, 2)
    again.load_state_dict(fit.state_dict())
    torch.testing.assert_close(again(obs).float(), table.float())


def test_dr_is_right_where_either_part_is():
    """Outcomes are curved in the covariate of treatment: a linear model is wrong, and propensities correct it."""
    obs, action, outcome, propensity, effect = campaign(20000, confounded=True)
    outcome = outcome + 2 * torch.relu(obs[:, 1:2])
    dr = effects.DR(model=Linear(ridge=1.0, own=False, scaled=False), effect=ridge(), folds=2, floor=0.01)
    blind = obs * torch.tensor([1.0, 0.0, 1.0])  # a model that doesn't see what treatment leaned on
    wrong = {}
    for name, learner in (("S", effects.S(model=ridge())), ("DR", dr)):
        table = learner(blind, action, outcome, 3, torch.Generator().manual_seed(0), propensity)(blind)[:, :, 0]
        wrong[name] = (table - table[:, :1] - effect).mean(0).abs().max().item()
    assert wrong["DR"] < 0.15 < 1.0 < wrong["S"], wrong
    # without propensities given, estimated ones and a right model do as well
    fit = made("DR", ridge())(obs, action, outcome - 2 * torch.relu(obs[:, 1:2]), 3, torch.Generator().manual_seed(0))
    assert ((fit(obs) - fit(obs)[:, :1])[:, :, 0] - effect).square().mean().sqrt() < 0.15


def test_pseudo_outcomes_have_the_mean_of_either_truth():
    table = torch.tensor([[[1.0], [2.0]]]).expand(2, 2, 1)
    got = effects.pseudo_outcomes(table, torch.eye(2), torch.tensor([[3.0], [5.0]]), torch.tensor([0.5, 0.25]))
    assert got[..., 0].tolist() == [[1 + 2 / 0.5, 2.0], [1.0, 2 + 3 / 0.25]]


def test_x_goes_by_whoever_there_are_more_of():
    """g·τ₀ + (1 − g)·τ₁: where most are treated, the effects on the untreated count, with the better model."""

    class Stub(torch.nn.Module):
        def __init__(self, *values):
            super().__init__()
            self.values = torch.tensor(values)

        def forward(self, x):
            return self.values.expand(len(x), 1, -1)

    fit = fitted_models.XLearnerModel(Stub(10.0), Stub(1.0), Stub(3.0), Stub(0.2, 0.8))
    torch.testing.assert_close(
        fit(torch.zeros(2, 1))[:, :, 0], torch.tensor([[10.0, 10 + 0.8 * 3 + 0.2 * 1]]).expand(2, -1)
    )


def test_no_customer_is_in_two_folds_of_dr():
    seen = []

    def model(obs, action, outcome, actions, generator):
        seen.append(set(obs[:, 0].tolist()))
        return ridge()(obs, action, outcome, actions, generator)

    cluster = torch.arange(30).repeat(4)
    learner = effects.DR(model=model, effect=ridge(), folds=3, floor=0.01)
    learner(
        cluster[:, None].float(), cluster % 2, torch.zeros(120, 1), 2, torch.Generator().manual_seed(0), None, cluster
    )
    assert len(seen) == 3 and all(len(s) == 20 for s in seen) and set.intersection(*seen) == set()


@pytest.mark.parametrize("model", [ridge, network])
@pytest.mark.parametrize("kind", ["S", "T", "X", "DR"])
def test_an_arm_that_was_never_taken_is_named(kind, model):
    obs, outcome = torch.randn(10, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(10, 1)
    with pytest.raises(ValueError, match="action 2: expected decisions to learn from, got none$"):
        made(kind, model())(obs, torch.arange(10) % 2, outcome, 3, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="action 2: expected decisions to learn from, got none$"):
        ridge()(obs, torch.arange(10) % 2, outcome, 3, torch.Generator())


@pytest.mark.parametrize("kind", ["S", "T", "X"])
def test_an_arm_of_one_row_gives_numbers(kind):
    g = torch.Generator().manual_seed(0)
    obs, action = torch.randn(200, 3, generator=g), (torch.arange(200) == 7).long()
    outcome = 1 + torch.randn(200, 1, generator=g)
    table = made(kind, ridge())(obs, action, outcome, 2, torch.Generator().manual_seed(0))(obs)
    assert table.isfinite().all() and table.abs().max() < 10
    with pytest.raises(ValueError, match="action 1: expected decisions to learn from, got none"):  # of one fold
        made("DR", ridge())(obs, action, outcome, 2, torch.Generator().manual_seed(0))


def shipped_ridges() -> set[float]:
    """The ridge penalties of the shipped configurations of learners of effects."""
    qini = composed("benchmark=uplift/qini", name="bench").benchmark
    alone = composed("benchmark=uplift/qini", "+uplift_learner=dr", name="bench")
    parts = [alone.uplift_learner.effect]
    for learner in qini.learners.values():
        parts += [learner.model, learner.get("effect", {})]
    return {float(part["ridge"]) for part in parts if "ridge" in part}


@pytest.mark.slow
@pytest.mark.parametrize("n", [2000, 20000])
@pytest.mark.parametrize("kind", ["S", "T", "X", "DR"])
def test_arms_without_an_effect_get_none(kind, n):
    """Outcomes 100 ± 1 whatever the arm, arms of 80, 15 and 5 %: a penalised constant would be an effect of −54."""
    penalties = shipped_ridges()
    assert {3.0, 300.0} <= penalties
    g = torch.Generator().manual_seed(n)
    shares = torch.tensor([0.8, 0.15, 0.05])
    obs, action = torch.randn(n, 3, generator=g), torch.multinomial(shares, n, True, generator=g)
    outcome = 100 + torch.randn(n, 1, generator=g)
    count = action.bincount().double()
    error = (1 / count[1:] + 1 / count[0]).sqrt()
    for penalty in (0.0, 1.0, *penalties):
        for own in (True, False):
            model = ridge(ridge=penalty, own=own)
            extra = {"X": {"effect": model}, "DR": {"effect": model, "folds": 2, "floor": 0.01}}.get(kind, {})
            learner = getattr(effects, kind)(model=model, **extra)
            table = learner(obs, action, outcome, 3, torch.Generator().manual_seed(0), shares[action])(obs)[..., 0]
            effect = (table[:, 1:] - table[:, :1]).double().mean(0)
            assert (effect.abs() < 3 * error).all(), (penalty, own, effect)


@pytest.mark.parametrize("kind", ["s", "t", "x", "dr"])
def test_learners_are_made_from_their_files(kind):
    learner = instantiate(
        composed("benchmark=uplift/qini", f"+uplift_learner={kind}", name="bench").uplift_learner, _convert_="all"
    )
    assert isinstance(learner, getattr(effects, kind.upper()))


def test_the_bench_finds_whom_a_mail_helps(tmp_path, capsys):
    for package in ("sklift", "pyarrow"):
        pytest.importorskip(package)
    # men's mail helps half of them, any mail both halves alike
    made_up_mailing(2400).to_parquet(tmp_path / "shop.parquet")
    config = composed(
        "benchmark=uplift/qini",
        *(f"~benchmark.learners.{kind}_network" for kind in ("S", "T", "X", "DR")),
        "~benchmark.boosters.GB",
        "~benchmark.boosters.HistGB",
        name="bench",
    ).benchmark
    config.update(
        {"path": str(tmp_path / "shop.parquet"), "splits": 2, "fold_count": 2, "replications": 40, "repeats": 1}
    )
    config.mails = {"men's": [1]}
    found = instantiate(config, _convert_="all")(tmp_path, torch.device("cpu"), 0)["mails"]["men's"]
    rows = found["rows"]
    assert set(rows) == {
        *config.learners,
        "chosen of ours",
        "S of gentle HistGB",
        "T of gentle HistGB",
        "X of gentle HistGB",
    }
    assert found["best_peer"].endswith("gentle HistGB") and next(iter(found["drivers"])) in ("mens", "womens")
    assert all(row["qini"][1] > 0.1 for row in rows.values()) and rows["chosen of ours"]["ours_less"] == [0.0, 0.0, 0.0]
    assert sum(row["times_chosen"] for row in rows.values()) == 2
    best = found["bins"][0]
    assert best["uplift"][0] > 0.25 and abs(best["uplift"][-1]) < 0.15
    assert {"qini_mens.png", "deciles_mens.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "best of the peers" in capsys.readouterr().out
    with pytest.raises(ValueError, match="benchmark.outcome: expected one of visit"):
        instantiate(config, _convert_="all", outcome="smile")(tmp_path, torch.device("cpu"), 0)


def test_a_column_that_tells_the_arms_apart_is_no_balance():
    treated = torch.arange(40) < 20
    apart = torch.where(treated, 1.0, 0.0)[:, None]
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    assert standardized_differences(apart, treated).item() == torch.inf
    assert hotelling(apart, treated) == 0.0 and hotelling(torch.cat((noise, apart), 1), treated) == 0.0
    constant = torch.full((40, 1), 0.1)
    assert standardized_differences(constant, treated).item() == 0.0
    assert hotelling(torch.cat((noise, constant), 1), treated) == pytest.approx(hotelling(noise, treated))
