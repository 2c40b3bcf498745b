"""A policy beside its alternatives: constant actions by hand and by the evaluator, the best of them, the verdict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.alternatives import BEST, LIKELIEST, compare
from rlcore.ope.report import report
from rlcore.ope.tables import verdicts

ARMS = 3


CONFIG = composed("ope/model=linear", "ope.model.scaled=false", name="evaluate").ope


def evaluator(**changes):
    return instantiate({**CONFIG, "replications": 2, "greedy": False, **changes}, _convert_="all")


def trial(n: int = 300, seed: int = 0, steps: int = 1, gain: float = 0.3) -> LoggedDataset:
    """Decisions among three arms of unequal shares; arm 2 is better by `gain` than 1, arm 1 pays where x > 0."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.5, 0.3, 0.2])
    action = rng.choice(ARMS, size=n * steps, p=shares)
    x = rng.normal(size=(n * steps, 2))
    reward = 5 + x[:, 1] + (action == 1) * np.sign(x[:, 0]) + (action == 2) * gain + rng.normal(size=n * steps)
    log = LoggedDataset.from_obp(
        {
            "n_rounds": n * steps,
            "n_actions": ARMS,
            "context": x,
            "action": action,
            "position": None,
            "reward": reward,
            "pscore": shares[action],
        }
    )
    unit = torch.arange(n).repeat_interleave(steps)
    return replace(log, unit=unit, step=torch.arange(steps).repeat(n))


def always(log: LoggedDataset, arm: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.full((len(log),), arm), ARMS).float()


def compared(log, target, **changes):
    value = evaluator(**changes)
    return compare(value, value(log, target), "policy", str)


@pytest.mark.parametrize("steps", [1, 2])
def test_constant_actions_are_valued_as_by_an_evaluation_of_their_own(steps):
    log = trial(steps=steps)
    found = compared(log, always(log, 0)).rows
    for arm in range(ARMS):
        alone = evaluator()(log, always(log, arm)).rows
        row = found[f"always {arm}"]
        for estimator, values in row["estimators"].items():
            for kind in ("reward", "net"):
                assert values[kind][0] == pytest.approx(alone[estimator][kind], rel=1e-6), (arm, estimator)
                assert values[kind][1:] == pytest.approx(alone[estimator][f"{kind}_normal"], rel=1e-6)
        assert row["net"] == row["estimators"]["DR" if steps == 1 else "sequential DR"]["net"][0]


def test_weights_of_a_constant_action_give_its_plain_mean():
    log = trial()
    rows = compared(log, always(log, 0)).rows
    for arm in range(ARMS):
        taken = [r for r, a in zip(log.reward.tolist(), log.action.tolist()) if a == arm]
        shares = [0.5, 0.3, 0.2]
        by = rows[f"always {arm}"]["estimators"]
        assert by["SNIPS"]["net"][0] == pytest.approx(sum(taken) / len(taken), abs=1e-6)
        assert by["IPS"]["net"][0] == pytest.approx(sum(taken) / shares[arm] / len(log), abs=1e-6)
        assert rows[f"always {arm}"]["effective"] == pytest.approx(len(taken))


def test_a_policy_that_comes_with_the_log_is_valued_as_by_an_evaluation_of_its_own():
    """Decisions without a propensity are left out of the log and of the given policy alike."""
    log = trial()
    wanted = 1 + (log.obs[:, 1] > 0).long()
    unknown = torch.arange(len(log)) % 3 == 0
    log = replace(log, propensity=log.propensity.masked_fill(unknown, torch.nan), alternatives={"rule": wanted})
    found = compared(log, always(log, 0))
    assert list(found.rows)[:4] == ["policy", BEST, "as logged", "rule"]
    target = torch.nn.functional.one_hot(wanted, ARMS).float()
    alone = evaluator()(log, target).rows
    for estimator, values in found.rows["rule"]["estimators"].items():
        assert values["net"][0] == pytest.approx(alone[estimator]["net"], rel=1e-6), estimator
    assert found.rows["rule"]["elsewhere"] == 0 and not any(name == "rule" for name in found.chosen)
    assert verdicts(found, "policy")[2].startswith("policy is no better than the rule, as far as")
    both = LoggedDataset.cat([log[:100], log[100:]])
    assert torch.equal(both.alternatives["rule"], wanted)


def test_differences_are_paired():
    """The reference is the plain formula: mean and deviation of the differences of doubly robust terms."""
    log = trial()
    value = evaluator(gamma=1.0)
    target = torch.stack(((log.obs[:, 0] <= 0), (log.obs[:, 0] > 0), torch.zeros(len(log))), 1).float()
    policy = value(log, target).terms["net"]["DR"].plain
    rival = value(log, always(log, 2)).terms["net"]["DR"].plain
    each = (policy - rival).numpy()
    row = compare(value, value(log, target), "policy", str).rows["always 2"]
    middle, low, high = row["policy_less"]["net"]
    assert middle == pytest.approx(each.mean())
    assert (high - low) / 2 == pytest.approx(1.959964 * each.std(ddof=1) / len(each) ** 0.5, rel=1e-6)
    assert (high - low) / 2 < (row["net_ci"][1] - row["net_ci"][0]) / 2 * 1.3  # unpaired: √2


def test_the_best_constant_action_is_chosen_on_the_other_fold():
    log = trial(120, gain=0.0, seed=3)
    value = evaluator()
    evaluation = value(log, always(log, 0))
    found = compare(value, evaluation, "policy", str)
    fold = evaluation.layout.fold.tolist()
    singles = {arm: value(log, always(log, arm)).terms["net"]["DR"].plain.tolist() for arm in range(ARMS)}
    best = []
    for k in range(2):
        means = {}
        for arm in range(ARMS):
            taken = [r for r, a, f in zip(log.reward.tolist(), log.action.tolist(), fold) if a == arm and f != k]
            means[arm] = sum(taken) / len(taken)
        best.append(max(means, key=lambda arm: means[arm]))
    assert found.chosen == tuple(f"always {arm}" for arm in best)
    by_hand = sum(singles[best[f]][i] for i, f in enumerate(fold)) / len(log)
    assert found.rows[BEST]["net"] == pytest.approx(by_hand)


def test_what_is_no_better_is_said_to_be_no_better():
    log = trial(3000)
    first, second, third = (log.obs[:, 0] <= 0), (log.obs[:, 0] > 0), torch.zeros(len(log))
    good = torch.stack((first, second, third), 1).float()
    bad = torch.stack((second, first, third), 1).float()
    for target, said in ((good, "better than"), (bad, "worse than"), (always(log, 2), "no better than")):
        lines = verdicts(compared(log, target), "policy")
        assert lines[0].startswith(f"policy is {said} the best constant action"), lines
    assert "as far as this log can tell" in lines[0]


def test_a_policy_without_merit_is_seldom_said_to_be_better():
    wins = 0
    for seed in range(20):
        log = trial(200, seed=seed, gain=0.0)
        log = replace(log, reward=log.reward - torch.where(log.action == 1, log.obs[:, 0].sign(), 0.0))  # no effects
        row = compared(log, torch.full((200, ARMS), 1 / ARMS)).rows[BEST]
        wins += row["policy_less"]["net"][1] > 0
    assert wins <= 3  # 2.5 % expected


def test_where_an_action_is_not_possible_the_first_possible_one_is_taken():
    log = trial()
    mask = torch.ones(len(log), ARMS, dtype=torch.bool)
    mask[:, 2] = log.obs[:, 0] > 0
    log = replace(log, action_mask=mask)[mask.gather(1, log.action[:, None])[:, 0]]
    found = compared(log, always(log, 0))
    row = found.rows["always 2"]
    target = torch.where(log.action_mask[:, 2:], always(log, 2), always(log, 0))
    assert row["net"] == pytest.approx(evaluator()(log, target).rows["DR"]["net"], rel=1e-6)
    assert row["elsewhere"] == pytest.approx((log.obs[:, 0] <= 0).double().mean().item())
    value = evaluator()
    tables = report(value(log, always(log, 0)), value, "log.csv", "policy", str, []).parts()
    assert list(tables) == ["diagnostics", "estimators", "alternatives"]
    assert "the first possible one is taken: always 2" in tables["alternatives"].caption


def test_an_action_that_hardly_an_episode_follows_is_named_and_not_valued():
    log = trial(400, steps=4)
    found = compared(log, always(log, 0))
    assert set(found.unsupported) == {"always 1", "always 2"} and "always 0" in found.rows
    assert found.unsupported["always 2"] < 10


def test_only_the_most_logged_actions_are_compared():
    found = compared(trial(), always(trial(), 0), constant_actions=2)
    assert {"always 0", "always 1"} < set(found.rows) and "always 2" not in found.rows and found.left_out == 1


def test_without_propensities_a_model_alone_speaks_and_is_marked():
    log = replace(trial(), propensity=torch.full((300,), torch.nan, dtype=torch.float64))
    value = evaluator()
    shown = report(value(log, always(log, 2)), value, "log.csv", "policy", str, [])
    assert {row["estimator"] for row in shown.comparison.rows.values()} == {"DM", "as logged"}
    said = verdicts(shown.comparison, "policy")
    assert "can't be compared with the best constant action" in said[0] and "by a model alone" in said[1]
    assert BEST not in shown.comparison.rows  # the model would be fitted to what the choice was made on
    assert shown.alternatives.rows["policy"]["group"].startswith("model only")
    assert shown.rows["DM"]["group"].startswith("model only") and list(shown.rows)[-1] == "DM"
    assert "none" in shown.diagnostics.to_markdown()


def test_without_propensities_the_headline_is_the_model_s_and_never_the_log_s_own():
    log = replace(trial(), propensity=torch.full((300,), torch.nan, dtype=torch.float64))
    value = evaluator()
    best = torch.where(log.action == 0, log.reward + 3, log.reward - 3)  # the worst policy is worth less than the log
    shown = report(value(replace(log, reward=best), always(log, 1)), value, "log.csv", "policy", str, [])
    assert shown.rows["DM"]["net"] < shown.rows["as logged"]["net"]
    assert shown.result("policy").of == "DM" and shown.result(None).value == shown.rows["DM"]["net"]


def test_the_likeliest_action_of_the_log_is_the_rule_behind_it():
    log = trial()
    probs = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(len(log), ARMS)
    found = compared(replace(log, probs=probs), always(log, 2)).rows
    assert found[LIKELIEST]["net"] == found["always 0"]["net"]
    uniform = torch.full((len(log), ARMS), 1 / ARMS, dtype=torch.float64)
    log = replace(log, probs=uniform, propensity=uniform[:, 0])
    assert LIKELIEST not in compared(log, always(log, 2)).rows


def test_forced_decisions_name_no_likeliest_action_and_one_that_few_episodes_follow_is_not_valued():
    log = trial()
    forced = torch.arange(len(log)) % 10 < 8
    mask = torch.ones(len(log), ARMS, dtype=torch.bool)
    mask[forced, 1:] = False
    probs = mask / mask.sum(1, keepdim=True).double()  # uniform over what is allowed: of a forced decision, certain
    log = replace(log, probs=probs, action_mask=mask, action=torch.where(forced, 0, log.action))
    log = replace(log, propensity=probs.gather(1, log.action[:, None])[:, 0])
    assert LIKELIEST not in compared(log, always(log, 0)).rows
    seasons = trial(400, steps=4)
    rare = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64).expand(len(seasons), ARMS)
    found = compared(replace(seasons, probs=rare), always(seasons, 0))  # the likeliest is "always 2"
    assert LIKELIEST not in found.rows and found.unsupported[LIKELIEST] < 10


def test_propensities_that_did_not_draw_the_decisions_are_seen_before_the_estimates():
    log = trial(2000)
    wrong = torch.where(log.obs[:, 0] > 0, log.propensity * 0.8, log.propensity / 0.8)
    value = evaluator()
    for propensity, is_right in ((log.propensity, True), (wrong, False)):
        this = replace(log, propensity=propensity)
        table = report(value(this, always(log, 0)), value, "log.csv", "policy", str, ["x", "y"]).diagnostics
        assert ("decisions differ by what was known before" not in table.caption) == is_right
        assert is_right or "(x)" in table.rows["propensity balance, greatest z"]["found"]
