"""A log that nobody simulates: columns by name, plain means, sequences, learning, one-line errors."""

from __future__ import annotations

import csv
import json
import random
import statistics

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

import script_runner
from configs import composed
from rlcore.ope.dataset_checks import without_unknown_propensities

pytest.importorskip("pyarrow")
ARMS = {"": 0.5, "letter": 0.3, "call": 0.2}  # and their shares
ROLES = ["env.actions=[arm]", "env.reward=profit", "env.customer=donor", "env.propensity=share", "env.cost=cost"]


def trial(rows: int, seed: int = 0) -> list[dict]:
    """Draw a randomised test in which a letter pays for donors of kind a alone."""
    rng = random.Random(seed)
    found = []
    for k in range(rows):
        kind, age = rng.choice("ab"), rng.randrange(18, 80)
        arm = rng.choices(list(ARMS), list(ARMS.values()))[0]
        gain = {"": 0.0, "letter": 2.0 if kind == "a" else -2.0, "call": -0.5}[arm]
        found.append(
            {
                "donor": f"d{k}",
                "age": "" if rng.random() < 0.1 else age,
                "kind": kind,
                "arm": arm,
                "share": ARMS[arm],
                "profit": round(1 + 0.02 * age + gain + rng.gauss(0, 0.5), 4),
                "cost": {"": 0.0, "letter": 0.25, "call": 1.0}[arm],
            }
        )
    return found


def write(path, rows, names=None) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def build(path, *overrides, algo="bandit"):
    """Return the composed configuration and the environment of a log."""
    cfg = composed("env=log", f"algo={algo}", f"log={path}", *ROLES, *overrides)
    return cfg, instantiate(cfg.env, _convert_="all")(torch.device("cpu"), 0)


@pytest.mark.slow
def test_columns_are_found_by_name_in_any_order(tmp_path):
    rows = trial(300)
    _, env = build(write(tmp_path / "a.csv", rows))
    shuffled = [row | {"more": "x"} for row in rows]
    names = ["more", *reversed(rows[0])]
    _, other = build(write(tmp_path / "b.csv", shuffled, names), "env.ignore=[more]")
    other.load_fitted(env.state_dict())
    assert other.obs_names == env.obs_names == ["age", "age: missing", "kind: a", "kind: b"]
    assert env.nvec == (3,) and env.action_names.choices == (("", "call", "letter"),)
    for split in ("train", "test"):
        log, again = env.read_log(str(tmp_path / "a.csv"), split), other.read_log(str(tmp_path / "b.csv"), split)
        for name in ("obs", "action", "action_mask", "reward", "cost", "propensity", "terminated"):
            assert torch.equal(getattr(log, name), getattr(again, name)), name
    train = env.read_log(str(tmp_path / "a.csv"), "train").row.tolist()
    assert sorted(train + log.row.tolist()) == list(range(2, 302))


@pytest.mark.slow
def test_weights_of_constant_arms_give_the_plain_means(tmp_path):
    """The references are means of the rows of each arm, taken by hand."""
    path = write(tmp_path / "a.csv", trial(400))
    cfg, env = build(path, "env.evaluation.off_policy.replications=20", "env.evaluation.off_policy.model.steps=5")
    evaluator = env.evaluation(env)
    log = evaluator.held_out
    shares = {k: ARMS[name] for k, name in enumerate(env.action_names.choices[0])}
    for arm, share in shares.items():
        target = torch.nn.functional.one_hot(torch.full((len(log),), arm), 3).float()
        rows = evaluator.off_policy(log, target).rows
        profits = [x for x, a in zip(log.reward.tolist(), log.action.tolist()) if a == arm]
        assert rows["SNIPS"]["profit"] == pytest.approx(statistics.fmean(profits), abs=1e-6)
        assert rows["IPS"]["profit"] == pytest.approx(sum(profits) / share / len(log), abs=1e-6)
    assert cfg.env.evaluation.path == path


@pytest.mark.long
@pytest.mark.parametrize("algo", ["bandit", "bcq"])
def test_what_pays_for_whom_is_learned(tmp_path, algo):
    path = write(tmp_path / "a.csv", trial(3000))
    sizes = {"bandit": ["algo.total_steps=80000"], "bcq": ["algo.total_steps=150000", "algo.batch_size=512"]}[algo]
    cfg, env = build(path, *sizes, algo=algo)
    learner = instantiate(cfg.algo, _convert_="all")(env, 0)
    learner.set_dataset(env.read_log(path, "train"))
    for k in range(learner.iterations):
        learner.iterate(k / learner.iterations)
        learner.iteration += 1
    log = env.read_log(path, "test")
    chosen = learner.policy.act(log.obs, log.action_mask)[0][:, 0]
    is_a = log.obs[:, env.obs_names.index("kind: a")] > 0
    names = env.action_names.choices[0]
    best = torch.where(is_a, names.index("letter"), names.index(""))
    assert (chosen == best).float().mean() > 0.95
    assert (
        learner.make_evaluator().validate(learner)["validation/net_per_decision"] > 2.4
    )  # nothing for all: 1.98; a letter: 1.73


@pytest.mark.slow
def test_a_customers_decisions_follow_each_other(tmp_path):
    rng = random.Random(1)
    rows = [
        {
            "donor": f"d{k % 40}",
            "month": 10 + 3 * (k // 40),
            "x": rng.random(),
            "arm": rng.choice(["a", "b"]),
            "profit": k,
        }
        for k in range(200)
        if rng.random() < 0.8
    ]
    rng.shuffle(rows)
    path = write(tmp_path / "a.csv", rows)
    cfg, env = build(path, "env.week=month", "env.propensity=null", "env.cost=null")
    log = env.read_log(path, "train")
    fitted = env.transform.numbers["x"]
    by_profit = {row["profit"]: row for row in rows}
    for k in range(len(log)):
        row = by_profit[int(log.reward[k])]
        later = [r for r in rows if r["donor"] == row["donor"] and r["month"] > row["month"]]
        assert bool(log.terminated[k]) == (not later)
        if later:
            expected = (min(later, key=lambda r: r["month"])["x"] - fitted["mean"]) / fitted["sd"]
            assert log.next_obs[k, 0].item() == pytest.approx(expected, abs=1e-5)
    assert log.propensity.isnan().all() and cfg.env.week == "month"


@pytest.mark.slow
def test_features_of_a_customer_table_and_what_is_allowed(tmp_path):
    rows = trial(200)
    kinds = [{"id": row["donor"], "kind": row.pop("kind")} for row in rows]
    random.Random(0).shuffle(kinds)
    rows = [row for row in rows if row["arm"] != "call" or row["age"] == "" or row["age"] >= 30]
    options = [
        f"env.customer_table.path={write(tmp_path / 'kinds.csv', kinds)}",
        "+env.allowed={arm: {call: 'age >= 30'}}",
    ]
    rows = [row for row in rows if row["arm"] != "call" or row["age"] != ""]  # a condition excludes an unknown age
    path = write(tmp_path / "a.csv", rows)
    _, env = build(path, *options)
    kind_of = {row["id"]: row["kind"] for row in kinds}
    for split in ("train", "test"):
        log = env.read_log(path, split)
        for k in range(len(log)):
            row = rows[log.row[k] - 2]
            assert log.obs[k, env.obs_names.index("kind: a")] == (kind_of[row["donor"]] == "a")
            assert log.action_mask[k].tolist() == [True, row["age"] != "" and row["age"] >= 30, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, overrides, message",
    [
        (lambda rows: rows[3].update(profit=""), [], "row 5, column 'profit': expected a number, got nothing"),
        (lambda rows: rows[3].update(profit="dear"), [], "row 5, column 'profit': expected a number, got 'dear'"),
        (lambda rows: rows[3].update(donor=""), [], "row 5, column 'donor': expected an id, got nothing"),
        (lambda rows: rows[3].update(age="1e39"), [], "row 5, column 'age': expected a number that float32 can hold"),
        (
            lambda rows: rows[3].update(share=1.5),
            [],
            "row 5, column 'share': expected a probability above 0, at most 1",
        ),
        (lambda rows: None, ["env.reward=gain"], "no column 'gain' (env.reward); there are donor, age, kind"),
        (
            lambda rows: [row.update(net=row["profit"]) for row in rows],
            ["env.reward=net"],
            "env.reward: expected a column of another name than net, estimator",
        ),
        (lambda rows: None, ["env.ignore=[age,kind]"], "expected columns of features beside those that env names"),
        (lambda rows: None, ["env.actions=[]"], "env.actions: expected the columns of an action"),
        (lambda rows: None, ["env.ignore=[agee]"], "no column 'agee' (env.ignore)"),
        (lambda rows: [row.update(arm="a") for row in rows], [], "env.actions: expected at least 2 actions in arm"),
        (lambda rows: None, ["+env.allowed={arm: {fax: 'age > 3'}}"], "env.allowed.arm: the log has no 'fax'"),
        (
            lambda rows: None,
            ["+env.allowed={arm: {letter: \"kind == 'z'\"}}"],
            "'letter' is not possible by env.allowed",
        ),
        (lambda rows: None, ["env.week=age", "env.ignore=[share]"], "column 'age': expected a number, got nothing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, overrides, message):
    rows = trial(150)
    change(rows)
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises((ValueError, InstantiationException)) as caught:
        _, env = build(path, *overrides)
        env.read_log(path, "train")
        env.read_log(path, "test")
    assert message in str(caught.value) and "\n" not in str(caught.value)


NAMELESS = ["env.customer=null", "env.ignore=[donor]"]


def donors(log, rows) -> set:
    """The donors of the decisions of a log that was read of a file of `rows`."""
    return {rows[k - 2]["donor"] for k in log.row.tolist()}


@pytest.mark.slow
def test_without_customers_a_decision_keeps_its_side_in_every_file_and_new_ones_are_all_tested(tmp_path):
    rows, new = trial(300), [row | {"donor": f"new {row['donor']}"} for row in trial(100, seed=1)]
    path = write(tmp_path / "a.csv", rows)
    _, env = build(path, *NAMELESS)
    learned, held_out = (donors(env.read_log(path, side), rows) for side in ("train", "test"))
    assert not learned & held_out and len(learned | held_out) == 300 and 80 < len(held_out) < 160
    mixed = [*rows[::-1], *new]
    columns = ["cost", "kind", "age", "profit", "share", "arm", "donor"]
    later = write(tmp_path / "b.csv", [{name: row[name] for name in columns} for row in mixed])
    _, again = build(later, *NAMELESS)  # as for a checkpoint whose own file is gone
    again.load_fitted(env.state_dict())
    found = donors(again.read_log(later, "test"), mixed)
    assert found == held_out | {row["donor"] for row in new}
    again.read_log(later, "train")  # a run that goes on with the new file has learned from these, too
    assert donors(again.read_log(later, "test"), mixed) < found


@pytest.mark.slow
@pytest.mark.parametrize("side", ["train", "test"])
def test_an_action_of_one_row_ends_no_run(tmp_path, side):
    """On the test side it is possible in its own row alone, for nothing was learned of it."""
    rows = trial(300)
    path = write(tmp_path / "a.csv", rows)
    _, env = build(path)
    rows[env.read_log(path, side).row[0].item() - 2]["arm"] = "test print"
    write(path, rows)
    _, env = build(path)
    log = env.read_log(path, "test")
    rare = env.action_names.choices[0].index("test print")
    assert log.action_mask[:, rare].sum() == (1 if side == "test" else len(log))
    assert (log.action == rare).sum() == (side == "test")
    assert len(env.read_log(path, "train")) + len(log) == 300


@pytest.mark.slow
def test_rows_of_a_side_are_named_by_their_place_in_the_file(tmp_path):
    rows = [row | {"month": 1} for row in trial(300)]
    path = write(tmp_path / "a.csv", rows)
    _, env = build(path, "env.week=month")
    first, second, third = sorted(env.read_log(path, "test").row.tolist())[5:8]
    rows[first - 2]["share"] = ""
    write(path, rows)
    log = env.read_log(path, "test")
    _, _, (sentence,) = without_unknown_propensities(log, torch.ones(len(log), 3) / 3)
    assert sentence == f"row {first}: no propensity; left out: 1 of {len(log)} decisions"
    rows[third - 2]["donor"] = rows[second - 2]["donor"]
    write(path, rows)
    with pytest.raises(ValueError, match=f"rows {second}, {third}, column 'month': expected one decision a customer"):
        env.read_log(path, "test")
    rows[second - 2]["arm"] = "fax"
    write(path, rows)
    with pytest.raises(ValueError, match=f"row {second}, column 'arm': expected one of call, letter, got 'fax'"):
        env.read_log(path, "test")


@pytest.mark.long
def test_nothing_is_simulated(tmp_path):
    _, env = build(write(tmp_path / "a.csv", trial(100)))
    for act in (env.reset, lambda: env.step(torch.zeros(1, 1))):
        with pytest.raises(ValueError, match="env=log: nothing is simulated"):
            act()
    with pytest.raises((ValueError, InstantiationException), match="log: expected the path of the log"):
        build("null")
    _, env = build(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="nowhere.csv: no such file"):
        env.read_log(str(tmp_path / "nowhere.csv"), "train")


@pytest.mark.long
def test_a_log_is_learned_from_and_valued_from_the_command_line(tmp_path):
    write(tmp_path / "test.csv", trial(1500))
    later = trial(900, seed=5)
    write(tmp_path / "later.csv", later)
    write(tmp_path / "rule.csv", [{"donor": row["donor"], "arm": "letter"} for row in later[::-1]])
    quick = ["algo.total_steps=80000", "env.evaluation.off_policy.model.steps=50"]
    done = script_runner.run(
        tmp_path, "train", "algo=bandit", "env=log", "log=test.csv", *ROLES, *quick, "device=cpu", "hydra.run.dir=out"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["estimators"]["SNIPS"]["net"] > result["estimators"]["as logged"]["net"] + 0.3
    (tmp_path / "test.csv").unlink()  # a checkpoint has all that it needs
    asked = ("checkpoint=out/checkpoint.pt", "log=later.csv", "shop_rule.decisions=rule.csv", "ope.model.steps=50")
    done = script_runner.run(tmp_path, "evaluate", *asked, "hydra.run.dir=v")
    assert done.returncode == 0, done.stderr[-2000:]
    later = json.loads((tmp_path / "v" / "metrics.json").read_text())
    assert later["estimators"]["SNIPS"]["net"] > later["estimators"]["as logged"]["net"] + 0.3
    constants = {"always nothing", "always letter", "always call"}
    rows = later["alternatives"]
    assert {"bandit", "as logged", "best constant action", "shop's own rule", *constants} == set(rows)
    assert rows["shop's own rule"] == rows["always letter"]
    assert later["verdicts"][2].startswith("bandit is better than the shop's own rule")
    assert later["verdicts"][0].startswith("bandit is better than the best constant action")
    shown = done.stdout
    assert shown.index("effective sample size") < shown.index("SNIPS") < shown.index("best constant action")
