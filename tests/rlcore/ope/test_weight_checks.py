"""What propensities can do to an evaluation: missing, wrong, too small for numbers; logs of too few rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope import estimators as ope
from rlcore.ope.dataset_checks import without_unknown_propensities
from rlcore.ope.estimators import Terms
from rlcore.ope.intervals import bootstrap, estimate, influence
from rlcore.ope.report import report
from rlcore.ope.weight_checks import mean_weight_warnings

ARMS = 3
WEIGHTED = ("IPS", "SNIPS", "DR", "SNDR", "DRos at 100")


def evaluator(**changes):
    config = composed("ope/model=linear", name="evaluate").ope
    return instantiate({**config, "replications": 100, "greedy": False, **changes}, _convert_="all")


def trial(n: int = 200, seed: int = 0) -> LoggedDataset:
    """Decisions among three arms at random, reward 5 plus the arm's number plus noise."""
    rng = np.random.default_rng(seed)
    action = rng.integers(ARMS, size=n)
    return LoggedDataset.from_obp(
        {
            "n_rounds": n,
            "n_actions": ARMS,
            "context": rng.normal(size=(n, 2)),
            "action": action,
            "position": None,
            "reward": 5 + action + rng.normal(size=n),
            "pscore": np.full(n, 1 / ARMS),
        }
    )


def always(log: LoggedDataset, arm: int) -> torch.Tensor:
    """The target that always takes one arm, [N, ARMS]."""
    return torch.nn.functional.one_hot(torch.full((len(log),), arm), ARMS).float()


def seasons(weeks: int, propensity: float) -> LoggedDataset:
    """100 units of so many weeks each."""
    log = trial(100 * weeks)
    unit, step = torch.arange(100).repeat_interleave(weeks), torch.arange(weeks).repeat(100)
    return replace(log, unit=unit, step=step, propensity=torch.full_like(log.propensity, propensity))


def shown(found) -> str:
    """The tables of an evaluation of the policy "target"."""
    tables = report(found, evaluator(), "log.csv", "target", str, []).parts().values()
    return "\n".join(part.to_markdown() for part in tables)


def with_propensity(log: LoggedDataset, row: int, propensity: float) -> LoggedDataset:
    return replace(log, propensity=log.propensity.index_fill(0, torch.tensor([row]), propensity))


def test_a_right_log_has_no_warning():
    log = trial()
    assert evaluator()(log, always(log, 1)).warnings == []
    assert evaluator()(log, torch.full((200, ARMS), 1 / ARMS)).warnings == []


def test_a_missing_propensity_costs_its_row_alone():
    log, rest = with_propensity(trial(), 17, math.nan), torch.arange(200) != 17
    found = evaluator()(log, always(log, 1))
    assert found.warnings == ["row 19: no propensity; left out: 1 of 200 decisions"]
    assert found.diagnostics["decisions"] == 199
    assert found.rows == evaluator()(log[rest], always(log, 1)[rest]).rows
    several = with_propensity(seasons(3, 1 / ARMS), 4, math.nan)
    found = evaluator()(several, torch.full((300, ARMS), 1 / ARMS))
    assert found.warnings == ["row 6: no propensity; left out, with the rest of their episodes: 3 of 300 decisions"]
    assert found.diagnostics["episodes"] == 99 and set(found.rows) > {"PDIS", "sequential DR"}


def test_decisions_without_a_choice_do_not_stand_for_a_log_without_propensities():
    """Nothing is possible for who is held out, so that the propensity is known to be 1; these rows value no policy."""
    log = trial()
    forced = torch.arange(200) < 20
    mask = torch.ones(200, ARMS, dtype=torch.bool)
    mask[forced] = False
    mask[forced, log.action[forced]] = True
    unknown = replace(log, action_mask=mask, propensity=torch.where(forced, 1.0, math.nan))
    target = torch.where(mask, 1.0, 0.0) / mask.sum(1, keepdim=True)
    kept, _, said = without_unknown_propensities(unknown, target)
    assert len(kept) == 200 and said == []
    known = replace(unknown, propensity=torch.where(torch.arange(200) < 100, 1.0, math.nan))
    assert len(without_unknown_propensities(known, target)[0]) == 100


def half_sent(n: int = 4000) -> tuple[LoggedDataset, torch.Tensor]:
    """Half of n decisions send, by chance, and the target sends where x > 0; its value is −1, that of the log −.5."""
    rng = np.random.default_rng(0)
    x, action = rng.normal(size=(n, 1)), rng.integers(2, size=n)
    reward = np.where(action == 1, x[:, 0] > 0, np.where(x[:, 0] > 0, 0, -3)) + 0.1 * rng.normal(size=n)
    feedback = {"n_rounds": n, "n_actions": 2, "context": x, "action": action, "position": None, "reward": reward}
    log = LoggedDataset.from_obp({**feedback, "pscore": np.full(n, 0.5)})
    sends = log.obs[:, 0] > 0
    return log, torch.stack((~sends, sends), 1).float()


@pytest.mark.parametrize("known", [0.0, 0.05])
def test_a_log_of_propensities_of_sends_alone_does_not_select_the_decisions(known):
    """Half of the decisions send, and hardly any of the others has a propensity: what is left would be sends."""
    log, target = half_sent()
    is_unknown = (log.action == 0) & (torch.arange(len(log)) % 100 >= 100 * known)
    found = evaluator()(replace(log, propensity=log.propensity.masked_fill(is_unknown, math.nan)), target)
    assert set(found.rows) == {"as logged", "DM"} and found.weights is None
    assert found.rows["as logged"]["net"] == pytest.approx(-0.5, abs=0.1)
    assert found.warnings[0].startswith("without the episodes that lack a propensity, decisions would be selected by")
    nothing = log.action == 0
    assert f"'0' ({int((nothing & ~is_unknown).sum())} of {int(nothing.sum()):,} left)" in found.warnings[0]


def test_propensities_that_are_missing_by_chance_select_nothing():
    log, target = half_sent()
    unknown = torch.rand(len(log), generator=torch.Generator().manual_seed(1)) < 0.7
    found = evaluator()(replace(log, propensity=log.propensity.masked_fill(unknown, math.nan)), target)
    assert found.diagnostics["decisions"] == int((~unknown).sum())
    for estimator in ("IPS", "SNIPS", "DR"):
        assert found.rows[estimator]["net"] == pytest.approx(-1.0, abs=0.15)


def test_seasons_without_a_propensity_of_silent_weeks_are_not_reduced_to_seasons_of_sends():
    """1,000 units of 12 weeks, but for 60 of one week: without silent weeks, sends of the 60 alone would be left."""
    weeks = torch.where(torch.arange(1000) < 60, 1, 12)
    log = trial(int(weeks.sum()))
    step = torch.cat([torch.arange(k) for k in weeks.tolist()])
    log = replace(log, unit=torch.arange(1000).repeat_interleave(weeks), step=step)
    sends = torch.arange(len(log)) % 2 == 1  # so that no unit of 12 weeks sends in all of them
    log = replace(log, action=sends.long(), propensity=torch.where(sends, 0.5, math.nan).double())
    kept, _, said = without_unknown_propensities(log, always(log, 1), lambda action: ("nothing", "send", "")[action])
    assert len(kept) == len(log) and "'nothing' (0 of 5,670 left)" in said[0]


def test_a_logging_policy_without_propensities_is_left_out_as_a_whole_whatever_it_did():
    log = trial(2000)
    rule = torch.arange(2000) % 2
    action = torch.where(rule == 1, 2, log.action)
    unknown = replace(log, action=action, policy=rule, policies=("drawn", "ruled"))
    unknown = replace(unknown, propensity=torch.where(rule == 1, math.nan, 1 / ARMS).double())
    kept, _, said = without_unknown_propensities(unknown, always(unknown, 1))
    assert len(kept) == 1000 and said[0].endswith("no propensity; left out: 1,000 of 2,000 decisions")


def test_support_is_that_of_the_decisions_that_are_left():
    """All 8 decisions of an action lack a propensity: too few to tell by what they are selected, but none is left."""
    log = trial(600)
    rare = (log.action == 2) & (torch.cumsum(log.action == 2, 0) > 8)
    log = log[~rare]
    log = replace(log, propensity=log.propensity.masked_fill(log.action == 2, math.nan))
    found = evaluator()(log, torch.full((len(log), ARMS), 1 / ARMS))
    assert found.diagnostics["unsupported"] == pytest.approx(1 / ARMS)
    assert "33.3% of what the target does is never done in the log" in found.warnings


def test_weights_whose_mean_is_not_one_are_said():
    log = trial()
    for propensity, shown in ((0.5, "0.6"), (1e-78, "1e+78|2e+78|3e+7")):
        wrong = replace(log, propensity=torch.full_like(log.propensity, propensity))
        (warning,) = evaluator()(wrong, always(log, 1)).warnings
        assert warning.startswith("the mean weight of a decision is ") and "should be about 1" in warning
        assert any(part in warning for part in shown.split("|")), warning
    uniform = torch.full((200, ARMS), 1 / ARMS)
    same = replace(log, propensity=torch.full_like(log.propensity, 1e-78))
    assert "mean weight of a decision is 3.33e+77" in evaluator()(same, uniform).warnings[0]


def test_the_mean_weight_of_right_logs_is_seldom_doubted():
    generator = torch.Generator().manual_seed(0)
    hit = torch.rand(1000, 200, generator=generator, dtype=torch.float64) < 1 / ARMS
    unit = torch.arange(200)
    doubted = sum(bool(mean_weight_warnings(ARMS * row.double(), unit, "decision")) for row in hit)
    assert 0 < doubted < 25  # about 10 of 1,000
    wrong = sum(bool(mean_weight_warnings(2 * row.double(), unit, "decision")) for row in hit)
    assert wrong > 950  # a propensity of 1/2 written where 1/3 drew


def test_a_propensity_near_nothing_does_not_pass_silently():
    log = trial()
    row = int((log.action == 1).nonzero()[0])
    found = evaluator()(with_propensity(log, row, 1e-300), always(log, 1))
    assert found.diagnostics["effective"] == pytest.approx(1.0)
    assert "the weights are worth 1 of 200 decisions" in found.warnings[0]
    text = shown(found)
    numbers = [cell for cell in text.split("|") if any(letter.isdigit() for letter in cell)]
    assert max(map(len, numbers)) < 30  # none of 300 digits


def test_infinite_weights_leave_estimators_undefined():
    log = trial()
    row = int((log.action == 1).nonzero()[0])
    found = evaluator()(with_propensity(log, row, 1e-320), always(log, 1))
    for name in WEIGHTED:
        assert math.isnan(found.rows[name]["reward"]) and all(map(math.isnan, found.rows[name]["reward_ci"])), name
    for name in ("as logged", "DM", "IPS, clipped at 20"):
        assert math.isfinite(found.rows[name]["reward"]) and all(map(math.isfinite, found.rows[name]["reward_ci"])), (
            name
        )
    (warning, _) = found.warnings
    assert all(name in warning for name in WEIGHTED)
    assert (
        "1 of 200 decisions have an infinite weight, the least propensity is" in warning
    )  # 0 where denormals are flushed
    assert "undefined" in shown(found)


def test_products_of_many_weeks_leave_estimators_undefined():
    log = seasons(60, 1e-6)
    found = evaluator(folds=2)(log, torch.full((6000, ARMS), 1 / ARMS))
    for name in ("PDIS", "weighted PDIS", "sequential DR", "weighted DR"):
        assert math.isnan(found.rows[name]["reward"]), name
    assert math.isfinite(found.rows["FQE"]["reward"])
    assert "100 of 100 episodes have an infinite weight, the least propensity is 1e-06" in found.warnings[0]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_log_of_too_few_rows_is_refused(rows):
    log = trial()[:rows]
    with pytest.raises(ValueError, match=f"^expected decisions of at least 4 units, 2 in each fold.*, got {rows}$"):
        evaluator()(log, torch.full((rows, ARMS), 1 / ARMS))


def test_a_feature_far_from_all_others_is_said():
    log = trial()
    obs = log.obs.clone()
    obs[5, 1] = 1e38
    found = evaluator()(replace(log, obs=obs), always(log, 1))
    assert found.warnings[0].startswith("'feature_1': 1e+38 is far from the other values (mean 0.0")
    named = evaluator()(replace(log, obs=obs), always(log, 1), obs_names=["age", "basket"])
    assert named.warnings[0].startswith("'basket': 1e+38 is far from the other values")
    assert found.warnings[1].startswith("DM, DR, ") and found.warnings[1].endswith("than numbers can hold")
    assert math.isnan(found.rows["DR"]["reward"]) and math.isfinite(found.rows["IPS"]["reward"])


def test_infinite_sums_are_not_hidden_as_nothing():
    infinite = torch.tensor([1.0, math.inf]).double()[:, None]
    terms = Terms(plain=torch.zeros(2).double(), numerator=infinite, weight=infinite)
    assert math.isnan(estimate(terms)) and influence(terms).isnan().any()
    assert bootstrap([terms], None, 50, torch.Generator().manual_seed(0)).isnan().any()
    nothing = Terms(plain=torch.ones(2).double(), numerator=0 * infinite.nan_to_num(), weight=0 * infinite.nan_to_num())
    assert estimate(nothing) == 1 and not influence(nothing).any()


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_the_effective_sample_size_has_no_unit(scale):
    w = torch.tensor([0.5, 3.0, 1.0, 0.0], dtype=torch.float64)
    assert ope.effective_sample_size(w * scale).item() == pytest.approx(4.5**2 / 10.25)
    assert ope.effective_sample_size(0 * w).item() == 0 and ope.effective_sample_size(w / 0).isnan()


@pytest.mark.slow
def test_an_action_that_a_fold_lacks_is_predicted_as_the_others_on_average():
    """Arm 2 has one row: one of two folds is valued by a model that never saw it."""
    log = trial()
    kept = (log.action < 2) | (torch.arange(200) == int((log.action == 2).nonzero()[0]))
    few = log[kept]
    found = evaluator()(few, always(few, 2))
    assert all(math.isfinite(found.rows[name]["reward"]) for name in found.rows)
    assert 5 < found.rows["DM"]["reward"] < 8  # arm 1 earns 6, the row of arm 2 about 7
