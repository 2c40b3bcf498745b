"""The shop's own rule on a log: joined by customer and week, by row, and refused in one line."""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from envs.offers.env import OffersEnv
from envs.shop_rule import NAME, with_shop_rule
from rlcore.offline.logged_dataset import LoggedDataset

pytest.importorskip("pyarrow")


def write(path, rows) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def rule(path, *columns) -> dict:
    return {"decisions": str(path), "separator": ",", "columns": list(columns)}


def weekly(rows=120) -> list[dict]:
    """Decisions of 40 customers over three weeks, given as dates, in a random order."""
    rng = random.Random(0)
    found = [
        {
            "who": f"c{k % 40}",
            "month": f"2026-0{1 + k // 40}-01",
            "age": rng.random(),
            "arm": rng.choice(["", "letter"]),
            "size": rng.choice([1, 2]),
            "gain": k,
            "own": rng.choice(["", "letter"]),
            "own_size": rng.choice([1, 2]),
        }
        for k in range(rows)
    ]
    rng.shuffle(found)
    return found


def of_columns(path, *overrides):
    """The environment of a log with parts arm and size, and its decisions of the test side."""
    keys = ["env.actions=[arm,size]", "env.reward=gain", "env.propensity=null"]
    env = instantiate(composed("env=log", "algo=bandit", f"log={path}", *keys, *overrides).env, _convert_="all")
    env = env(torch.device("cpu"), 0)
    return env, env.read_log(str(path), "test")


@pytest.mark.slow
def test_a_rule_is_joined_by_the_columns_that_name_a_decision(tmp_path):
    rows = weekly()
    log = write(tmp_path / "log.csv", rows)
    env, dataset = of_columns(log, "env.customer=who", "env.week=month", "env.ignore=[own,own_size]")
    stated = [{"size": row["own_size"], "month": row["month"], "arm": row["own"], "who": row["who"]} for row in rows]
    random.Random(1).shuffle(stated)
    more = {"size": 1, "month": "2026-09-01", "arm": "letter", "who": "stranger"}
    found, warnings = with_shop_rule(dataset, env, log, rule(write(tmp_path / "rule.csv", [more, *stated])))
    by_row, _ = with_shop_rule(dataset, env, log, rule(log, "own", "own_size"))
    for given in (found.alternatives[NAME], by_row.alternatives[NAME]):
        for row, wanted in zip((dataset.row - 2).tolist(), given.tolist()):
            assert env.action_name(wanted) == f"{rows[row]['own'] or 'nothing'} {rows[row]['own_size']}"
    assert not warnings and torch.equal(found.action, dataset.action)
    with pytest.raises(
        ValueError, match=r"rule.csv: expected each decision .* by who and month, got none of c\d+, 2026"
    ):
        with_shop_rule(dataset, env, log, rule(write(tmp_path / "rule.csv", stated[:60])))


@pytest.mark.slow
def test_a_log_without_customers_is_joined_row_by_row(tmp_path):
    rows = weekly()
    log = write(tmp_path / "log.csv", rows)
    env, dataset = of_columns(log, "env.ignore=[who,month,own,own_size]")
    stated = [{"arm": row["own"], "size": row["own_size"]} for row in rows]
    found, _ = with_shop_rule(dataset, env, log, rule(write(tmp_path / "rule.csv", stated)))
    names = [env.action_name(k) for k in found.alternatives[NAME].tolist()]
    assert names == [f"{rows[k]['own'] or 'nothing'} {rows[k]['own_size']}" for k in (dataset.row - 2).tolist()]
    write(tmp_path / "rule.csv", stated[:-1])
    with pytest.raises(ValueError, match="rule.csv: expected the log's 120 rows, since it names no customers; got 119"):
        with_shop_rule(dataset, env, log, rule(tmp_path / "rule.csv"))


def sends() -> tuple[OffersEnv, LoggedDataset]:
    """An environment of two weeks a season, and a log of two customers in four weeks."""
    env = OffersEnv.__new__(OffersEnv)
    catalogue = SimpleNamespace(offers=("nothing", "tea", "5"), channels=("app", "letter"))
    env.world = SimpleNamespace(weeks=2, catalogue=catalogue)
    n = 8
    dataset = LoggedDataset.from_obp(
        {"n_rounds": n, "n_actions": 6, "context": [[0.0]] * n, "action": [0] * n, "reward": [0.0] * n}
    )
    week = torch.arange(n) // 2
    return env, replace(dataset, unit=torch.arange(n) % 2, episode=week // 2, step=week % 2, unit_names=("x", "01"))


def test_a_shops_rule_counts_weeks_as_the_log_of_sends_and_sends_nothing_where_it_says_nothing(tmp_path):
    env, dataset = sends()
    stated = [
        {"customer": "01", "week": 3, "offer": "tea", "channel": "letter"},
        {"customer": "x", "week": 2, "offer": "5", "channel": "app"},
        {"customer": "01", "week": 0, "offer": "", "channel": ""},
        {"customer": "1", "week": 0, "offer": "tea", "channel": "app"},  # another customer
    ]
    found, warnings = with_shop_rule(dataset, env, "log", rule(write(tmp_path / "rule.csv", stated)))
    # rows are x and 01 in week 0, x and 01 in week 1 …; flat actions are offer · 2 + channel
    assert found.alternatives[NAME].tolist() == [0, 0, 0, 0, 4, 0, 0, 3]
    assert warnings == [f"{tmp_path}/rule.csv lacks 5 of 8 decisions: the shop's own rule does nothing there"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: [row.pop("week") for row in rows], "rule.csv: no column 'week' .named in shop_rule.; there are"),
        (lambda rows: [row.pop("channel") for row in rows], "rule.csv: no column 'channel' .named in shop_rule."),
        (
            lambda rows: rows[1].update(offer="fax"),
            "rule.csv: row 3, column 'offer': expected one of tea, 5, got 'fax'",
        ),
        (lambda rows: rows[1].update(rows[0], offer="5"), "rule.csv: row 3: another decision of x, 0 stands above"),
        (
            lambda rows: [row.update(week=9) for row in rows],
            "rule.csv: expected decisions that are in log, by customer a",
        ),
    ],
)
def test_a_table_that_does_not_say_what_the_rule_does_is_refused(tmp_path, change, message):
    env, dataset = sends()
    rows = [{"customer": "x", "week": k, "offer": "tea", "channel": "app"} for k in range(2)]
    change(rows)
    with pytest.raises(ValueError, match=message):
        with_shop_rule(dataset, env, "log", rule(write(tmp_path / "rule.csv", rows)))


def test_a_log_that_names_nothing_is_refused():
    with pytest.raises(ValueError, match="shop_rule.decisions: expected a policy of env=log or of a shop's customers"):
        with_shop_rule(sends()[1], SimpleNamespace(), "log", rule("rule.csv"))
