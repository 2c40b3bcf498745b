"""The plan's files, the past weeks of the log, the correction of the forecast, the page, and one customer's ladder."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
pytest.importorskip("jinja2")
import pyarrow.parquet as pq
from markupsafe import escape

from envs.live.plan import run
from envs.live.plan.arms import RL
from envs.live.plan.forecast import (
    Forecast,
    Tally,
    corrections,
)
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.live.plan.output.page import write_page
from envs.live.plan.output.plan_file import COLUMNS, decision_ids, read_facts, write_plan
from envs.live.plan.output.summary import rule_cost, summary
from envs.live.plan.run import Planned, locked
from envs.live.plan.why import explain, planned_row
from envs.offers.logs import send_log
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.send_log import Calendar
from envs.offers.world.catalogue import Catalogue
from stand_in_package import CATALOGUE, StandInPackage, customers_of, plan_of, setting, table

NO_CORRECTION = Forecast(np.ones(12), np.zeros(12), np.zeros(12), 0)


def planned(path, *, n=300, money=40.0, package=None, past=None, ids=None, segment=None, **changes) -> Planned:
    """A plan of the stand-in's customers, not yet written."""
    package = package or StandInPackage()
    given = table(n, ids=ids)
    customers = customers_of(given, package, past)
    chosen = setting(money, **changes)
    plan = plan_of(customers, package, chosen)
    segments = None if segment is None else given.columns[segment]
    return Planned(package, customers, chosen, NO_CORRECTION, plan, path, segment, segments, "2026-05-10", 1, False)


def log_of(tmp_path, ids, weeks=5, dates=True, **cells):
    """A log of sends on disk; `cells` are (week, customer) → value by field."""
    log = CustomerWeeks.empty(tuple(ids), weeks)
    log.first[:], log.last[:] = 0, weeks - 1
    for name, values in cells.items():
        for (week, customer), value in values.items():
            log.cells((name,))[name][week, customer] = value
    path = tmp_path / "log.parquet"
    send_log.write(path, log, Calendar(dates, 20_458 if dates else 0, 20_490, None, True, 1.0, 0.0), *names())
    return path


def names():
    return list(CATALOGUE.offers), list(CATALOGUE.channels)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_written_plan_has_the_columns_and_says_what_was_planned(tmp_path):
    made = planned(tmp_path / "week=3.parquet")
    paths = made.write()
    rows = pq.read_table(paths[0])
    assert rows.column_names == list(COLUMNS)
    kinds = {name: str(rows.schema.field(name).type) for name in ("decision", "propensity", "price", "spend", "season")}
    assert kinds == {"decision": "int64", "propensity": "double", "price": "float", "spend": "float", "season": "int32"}
    assert rows["customer"].to_pylist() == made.customers.ids
    offers = [CATALOGUE.offers[k // 3] if k else "" for k in made.plan.action.tolist()]
    channels = [CATALOGUE.channels[k % 3] if k else "" for k in made.plan.action.tolist()]
    assert rows["offer"].to_pylist() == offers and rows["channel"].to_pylist() == channels
    assert set(rows["week"].to_pylist()) == {3} and set(rows["season"].to_pylist()) == {0}
    nothing = [k for k, offer in enumerate(offers) if not offer]
    assert all(rows["own_price"][k].as_py() is None for k in nothing)
    lines = paths[1].read_text().splitlines()
    assert lines[0] == '"decision","customer","offer","channel","face","valid_until"'
    assert len(lines) == 1 + len(made.plan.sent)
    assert lines[1].startswith(str(rows["decision"][int(made.plan.sent[0])].as_py())) and "2026-05-10" in lines[1]
    facts = read_facts(paths[0])
    assert facts["price"] == made.plan.cleared.price and facts["week"] == 3


def test_the_same_week_written_twice_is_the_same_bytes(tmp_path):
    first = [path.read_bytes() for path in planned(tmp_path / "a" / "week=3.parquet").write()]
    second = [path.read_bytes() for path in planned(tmp_path / "b" / "week=3.parquet").write()]
    assert first == second


def test_another_plan_of_the_week_is_refused_unless_it_may_replace_the_older_one(tmp_path):
    path = tmp_path / "week=3.parquet"
    planned(path).write()
    before = path.read_bytes()
    assert planned(path).replaces() == ""
    planned(path).write()
    more = planned(path, money=60.0)
    with pytest.raises(
        ValueError, match=r"week=3.parquet: this week is planned already, with money 40.0 -> 60.0: both"
    ):
        more.write()
    with pytest.raises(ValueError, match=r"week=3.parquet: has the plan of week 3: out= needs another name for week 4"):
        planned(path, past=PastWeeks.none(300, 4)).write()
    with pytest.raises(ValueError, match="with other decisions, by other customers or another log"):
        planned(path, n=200).write()
    assert path.read_bytes() == before
    allowed = replace(more, replace=True)
    assert allowed.replaces() == "money 40.0 -> 60.0"
    allowed.write()
    assert read_facts(path)["money"] == 60.0


def test_a_senders_file_lies_only_beside_its_own_plan_and_page(tmp_path, monkeypatch):
    path = tmp_path / "week=3.parquet"
    planned(path).write()
    more = replace(planned(path, money=60.0), replace=True)

    def full(*_):
        raise OSError("disk full")

    for part in ("write_plan", "write_sends"):
        with monkeypatch.context() as patched:
            patched.setattr(run, part, full)
            with pytest.raises(OSError, match="disk full"):
                more.write()
        assert not path.with_suffix(".csv").exists()
        more.write()
        assert path.with_suffix(".csv").exists()


def test_decision_ids_differ_by_week_and_customer_and_depend_on_nothing_else():
    ids = [f"c{k}" for k in range(5000)]
    weeks = np.concatenate([decision_ids(ids, week) for week in range(20)])
    assert len(np.unique(weeks)) == 100_000 and weeks.min() >= 0
    assert (decision_ids(ids[::-1], 7)[::-1] == decision_ids(ids, 7)).all()
    with pytest.raises(ValueError, match="one decision id"):
        decision_ids(["a", "a"], 0)


def test_a_disk_that_is_full_is_one_line_and_leaves_the_old_plan(tmp_path):
    made = planned(tmp_path / "week=3.parquet")
    made.write()
    before = made.path.read_bytes()
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(OSError, match="not written: .*; what was there before is kept"):
            write_plan(made.path, made.plan.columns, {"other": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert made.path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_writer_killed_at_any_instant_leaves_a_whole_plan_or_none(tmp_path):
    path = tmp_path / "week=3.parquet"
    made = planned(path, n=2000)
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05):
        child = os.fork()
        if not child:
            try:
                while True:
                    write_plan(path, made.plan.columns, made.facts)
            finally:
                os._exit(1)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if path.exists():
            assert pq.read_table(path).num_rows == 2000
    made.write()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["week=3.csv", "week=3.html", "week=3.parquet"]


def test_two_plans_at_once_are_one(tmp_path):
    with locked(tmp_path):
        with pytest.raises(ValueError, match="another plan is being made in this folder"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


# ── the log ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_log_gives_contacts_opt_outs_and_memory(tmp_path):
    given = table(40)
    sent = {(2, 0): 1, (4, 0): 2, (4, 1): 1, (1, 2): 1}
    path = log_of(tmp_path, given.ids[:3], offer=sent, unsubscribed={(3, 2): True})
    past = PastWeeks.read(str(path), given.ids, None, CATALOGUE)
    assert past.week == 5 and past.known.sum() == 3
    package = StandInPackage()
    customers = customers_of(given, package, past)
    policy, mask = customers.contact_policy, customers.options.action_mask
    allowed = [k for k in range(3) if "holdout" not in policy.reasons(k, 1, 0, True, [])]
    assert 0 in allowed and not mask[0, 1:].any() and customers.options.caps_left[0, 0] == 0
    assert customers.options.caps_left[1, 0] == 0.5 and not customers.subscribed[2]
    plan = plan_of(customers, package, setting(20.0))
    reasons = plan.columns["reason"].take(np.arange(3))
    assert reasons[0] == "cap: 2 contacts in 4 weeks" and reasons[2] in ("not subscribed", "holdout")
    assert past.first_day() == np.datetime64(20_458 + 35, "D")

    from envs.live.plan.deciding import memory_of

    features = memory_of(package, past, slice(0, 40), given.numbers, given.levels)
    assert features[:, 0].tolist() == [2.0, 1.0, 1.0] + [0.0] * 37


def test_who_has_left_is_sent_nothing_and_the_reason_says_so(tmp_path):
    given = table(40)
    path = log_of(tmp_path, given.ids, offer={(0, 0): 1})
    past = PastWeeks.read(str(path), given.ids, None, CATALOGUE)
    past.log.last[:20] = 3  # the last week of the log is 4
    package = StandInPackage()
    customers = customers_of(given, package, past)
    assert not customers.options.action_mask[:20, 1:].any() and customers.subscribed.all()
    plan = plan_of(customers, package, setting(1e6))
    reasons = plan.columns["reason"].take(np.arange(40))
    assert set(reasons[:20]) <= {"left the shop", "holdout"} and "left the shop" not in reasons[20:]
    assert (plan.action[:20] == 0).all() and (plan.action[20:] > 0).any()


def test_a_week_that_is_planned_again_knows_who_joined_after_it(tmp_path):
    given = table(40)
    past = PastWeeks.read(str(log_of(tmp_path, given.ids, offer={(0, 0): 1})), given.ids, 2, CATALOGUE)
    past.log.first[:10], past.log.first[10:20] = 3, 2  # after the planned week, and in it
    customers = customers_of(given, StandInPackage(), past)
    reasons = plan_of(customers, StandInPackage(), setting(1e6)).columns["reason"].take(np.arange(40))
    assert set(reasons[:10]) <= {"joins later", "holdout"} and "joins later" not in reasons[10:]


def test_a_rule_that_bars_from_everything_is_the_reason(tmp_path):
    """Not the rule of the pair that the policy would have sent."""
    given = table(40)
    sent = {(week, k): 1 for week in (2, 4) for k in range(40)}
    path = log_of(tmp_path, given.ids, offer=sent)
    customers = customers_of(given, StandInPackage(), PastWeeks.read(str(path), given.ids, None, CATALOGUE))
    plan = plan_of(customers, StandInPackage(), setting(20.0))
    assert set(plan.columns["reason"].take(np.arange(40))) <= {"cap: 2 contacts in 4 weeks", "holdout"}


def test_memory_starts_when_a_customer_joins_and_sums_start_anew_with_a_season(tmp_path):
    given = table(2)
    sent = {(week, customer): 1 for week in range(14) for customer in (0, 1)}
    path = log_of(tmp_path, given.ids, weeks=14, offer=sent)
    past = PastWeeks.read(str(path), given.ids, None, CATALOGUE)
    past.log.first[1] = 13

    from envs.live.plan.deciding import memory_of

    memory = memory_of(StandInPackage(), past, slice(0, 2), given.numbers, given.levels)
    assert memory[:, 0].tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("ids", "week", "message"),
    [
        (["K1", "K2"], 7, "the log ends with week 4, and week 7 is planned"),
        (["1", "2"], None, "knows none of the customers: ids in the log are such as 'K1', in the table such as '1'"),
    ],
)
def test_a_log_that_does_not_fit_is_one_line(tmp_path, ids, week, message):
    path = log_of(tmp_path, ["K1", "K2"], offer={(0, 0): 1})
    with pytest.raises(ValueError, match=re.escape(message)):
        PastWeeks.read(str(path), ids, week, CATALOGUE)


def test_an_id_of_another_text_stops_a_plan_only_if_its_customer_was_in_the_log(tmp_path):
    log = CustomerWeeks.empty(("K1", "00017", "k2"), 5)
    log.last[:] = (4, -1, 4)  # 00017 was in a customer table of the time, and never in the log
    path = tmp_path / "log.parquet"
    send_log.write(path, log, Calendar(True, 20_458, 20_490, None, True, 1.0, 0.0), *names())
    assert PastWeeks.read(str(path), ["K1", "17", "K2"], None, CATALOGUE).row.tolist() == [0, -1, -1]
    with pytest.raises(ValueError, match="expected the log's customer 'k2', got 'k2.0': ids must keep their text"):
        PastWeeks.read(str(path), ["K1", "17", "k2.0"], None, CATALOGUE)


def test_an_older_week_reads_only_what_came_before_it(tmp_path):
    path = log_of(tmp_path, ["K1"], offer={(4, 0): 1, (3, 0): 2})
    past = PastWeeks.read(str(path), ["K1"], 4, CATALOGUE)
    assert [x.tolist() for x in past.contacted(9)] == [[False], [False], [False], [True]]


# ── the forecast ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_correction_is_what_was_redeemed_beside_what_was_forecast(tmp_path):
    made = planned(tmp_path / "week=3.parquet", n=400, money=80.0)
    made.write()
    ids, sent = made.customers.ids, made.plan.sent
    action = made.plan.action
    codec = CATALOGUE.action_codec
    redeemed = sent[::2]
    path = log_of(
        tmp_path,
        ids,
        offer={(3, k): codec.offer_of(int(action[k])) for k in sent},
        channel={(3, k): codec.channel_of(int(action[k])) for k in sent},
        redeemed={(3, k): True for k in redeemed},
        bought={(3, k): True for k in redeemed},
    )
    past = PastWeeks.read(str(path), ids, None, CATALOGUE)

    def of(past, version="stand-in", redemptions=10.0, late=0):
        keys = {"redemptions": redemptions, "common": 4.0, "reported_after": late}
        return corrections(tmp_path, past, CATALOGUE, version, **keys)

    found = of(past)
    assert found.weeks == of(past, late=1).weeks == 1 and of(past, late=2).weeks == 0  # the log has week 4
    sent = sent[made.plan.arm[sent] == RL]
    redeemed = np.intersect1d(redeemed, sent)
    assert 0 < len(sent) < len(made.plan.sent)  # the others are those of the arm `random`
    forecast = {}
    for k in range(1, 12):
        rows = sent[action[sent] == k]
        face, message = float(CATALOGUE.value[k // 3]), float(CATALOGUE.cost[k % 3])
        forecast[k] = ((made.plan.spend[rows] - message) / face).sum() if len(rows) else 0.0
    of_all = (len(redeemed) + 4.0) / (sum(forecast.values()) + 4.0)
    for k in range(1, 12):
        expected = (np.isin(sent[action[sent] == k], redeemed).sum() + 10.0 * of_all) / (forecast[k] + 10.0)
        assert found.factor[k] == pytest.approx(expected, rel=1e-6)
    assert (found.factor != 1).any()
    assert (of(past, redemptions=None).factor == 1).all()
    assert (of(PastWeeks.none(3, 5)).factor == 1).all()
    other = of(past, "another package")
    assert (other.factor == 1).all()
    assert other.warnings == ("1 past plans are of other packages than this one: none corrects its forecast",)


def test_redemptions_that_nobody_reported_do_not_correct_and_few_are_warned_of(tmp_path):
    """Of two plans the log has no redemption of the first; of the second it has few, as where the till reports late."""
    cells = {"offer": {}, "channel": {}, "redeemed": {}}
    for week in (1, 2):
        past = PastWeeks.none(2000, week)
        ids = [f"K{100000 + k}" for k in range(2000)]
        made = planned(tmp_path / f"week={week}.parquet", n=2000, money=400.0, past=past, ids=ids)
        made.write()
        sent = made.plan.sent.tolist()
        cells["offer"] |= {(week, k): CATALOGUE.action_codec.offer_of(int(made.plan.action[k])) for k in sent}
        cells["channel"] |= {(week, k): CATALOGUE.action_codec.channel_of(int(made.plan.action[k])) for k in sent}
    policys = [k for k in sent if made.plan.arm[k] == RL]
    cells["redeemed"] = {(2, k): True for k in policys[:2]}
    past = PastWeeks.read(str(log_of(tmp_path, ids, **cells)), ids, None, CATALOGUE)
    found = corrections(tmp_path, past, CATALOGUE, "stand-in", redemptions=10.0, common=4.0, reported_after=1)
    assert found.weeks == 1 and found.redeemed.sum() == 2 and found.forecast.sum() > 15
    *untold, few = found.warnings
    assert untold[0].startswith("the log has no redemption of week 1's plan, which forecast ")
    ratio = 2 / found.forecast.sum()
    assert few.startswith(f"past plans were redeemed {ratio:.2g} times as often as forecast (2 of ")
    (tmp_path / "week=2.csv").unlink()
    nothing = corrections(tmp_path, past, CATALOGUE, "stand-in", redemptions=10.0, common=4.0, reported_after=1)
    assert nothing.weeks == 0 and (nothing.factor == 1).all() and len(nothing.warnings) == 1


def test_plans_of_few_forecast_redemptions_each_correct_nothing_if_none_of_all_was_reported(tmp_path):
    """Each plan forecasts less than the 15 of which none may be missing, and no pair more over all plans."""
    cells = {"offer": {}, "channel": {}}
    ids = [f"K{100000 + k}" for k in range(60)]
    for week in range(1, 5):
        path = tmp_path / f"week={week}.parquet"
        made = planned(path, n=60, money=12.0, past=PastWeeks.none(60, week), ids=ids)
        made.write()
        sent, action = made.plan.sent.tolist(), made.plan.action
        cells["offer"] |= {(week, k): CATALOGUE.action_codec.offer_of(int(action[k])) for k in sent}
        cells["channel"] |= {(week, k): CATALOGUE.action_codec.channel_of(int(action[k])) for k in sent}
    policys = [k for k in sent if made.plan.arm[k] == RL]

    def of(redeemed):
        path = log_of(tmp_path, ids, weeks=9, **cells, redeemed={(4, k): True for k in redeemed})
        past = PastWeeks.read(str(path), ids, None, CATALOGUE)
        return corrections(tmp_path, past, CATALOGUE, "stand-in", redemptions=10.0, common=4.0, reported_after=0)

    told = of(policys[:1])
    assert told.weeks == 4 and 15 < told.forecast.sum() < 4 * 15 and told.forecast.max() < 15
    (few,) = told.warnings
    assert few.startswith(f"past plans were redeemed {1 / told.forecast.sum():.2g} times as often as forecast (1 of ")
    untold = of([])
    assert untold.weeks == 0 and (untold.factor == 1).all()
    (said,) = untold.warnings
    assert said.startswith(
        f"the log has no redemption of 4 past plans, which forecast {told.forecast.sum():,.0f}: they"
    )


def test_a_warning_judges_redemptions_per_forecast_one_and_not_the_factor_that_stays_near_one():
    """The factor of all pairs is within 0.5 and 2 in each case: 33/45, 85/55 and 40/40 with v = 25."""
    for redeemed, forecast, ratio in ((8, 20, "0.4"), (70, 30, "2.3"), (16, 7, "2.3"), (20, 25, None), (7, 3, None)):
        tally = Tally.none(CATALOGUE)
        tally.redeemed[1], tally.forecast[1] = redeemed, forecast
        assert 0.5 <= tally.of_all(25.0) <= 2
        said = [
            f"past plans were redeemed {ratio} times as often as forecast ({redeemed} of {forecast}), which corrects"
        ]
        assert [x.split(" the forecast:")[0] for x in tally.unusual()] == (said if ratio else [])


def test_a_pair_of_which_nothing_was_reported_has_the_factor_of_all_pairs(tmp_path):
    """The redemptions of one pair are never in the export; half of the others are redeemed."""
    ids = [f"K{100000 + k}" for k in range(3000)]
    made = planned(tmp_path / "week=1.parquet", n=3000, money=600.0, past=PastWeeks.none(3000, 1), ids=ids)
    made.write()
    action, sent = made.plan.action, made.plan.sent
    untold = int(np.bincount(action[sent]).argmax())
    cells = {
        "offer": {(1, k): CATALOGUE.action_codec.offer_of(int(action[k])) for k in sent},
        "channel": {(1, k): CATALOGUE.action_codec.channel_of(int(action[k])) for k in sent},
        "redeemed": {(1, k): True for k in sent[action[sent] != untold][::2]},
    }
    past = PastWeeks.read(str(log_of(tmp_path, ids, **cells)), ids, None, CATALOGUE)
    found = corrections(tmp_path, past, CATALOGUE, "stand-in", redemptions=10.0, common=4.0, reported_after=0)
    of_all = (found.redeemed.sum() + 4.0) / (found.forecast.sum() + 4.0)
    assert found.factor[untold] == pytest.approx(of_all) and found.forecast[untold] == 0
    assert any(x.startswith("the log has no redemption of ") and "of which past plans" in x for x in found.warnings)


def test_the_factor_of_a_pair_goes_from_that_of_all_pairs_to_its_own():
    none = Tally.none(CATALOGUE)
    assert (none.factor(200.0, 25.0) == 1).all()
    few, many = (
        none._replace(forecast=n * np.ones(12), redeemed=n * np.array([1.2] * 6 + [1.6] * 6)) for n in (1, 1e9)
    )
    factor = few.factor(200.0, 25.0)
    of_all = (12 * 1.4 + 25) / (12 + 25)  # 17 redemptions in all say something of all pairs, and little of each
    assert factor == pytest.approx([of_all] * 12, abs=0.004) and factor[0] < factor[-1]
    assert many.factor(200.0, 25.0) == pytest.approx([1.2] * 6 + [1.6] * 6, rel=1e-6)


def test_redemptions_of_an_offer_of_face_value_0_which_has_no_forecast_do_not_count():
    tally = Tally.none(replace(CATALOGUE, value=torch.tensor([0.0, 0.0, *CATALOGUE.value[2:].tolist()])))
    action, yes = np.array([3, 3, 6]), np.ones(3, dtype=bool)  # two sends of the first offer, one of the second
    tally.add(action, CATALOGUE.cost[0].item() + np.array([0.0, 0.0, CATALOGUE.value[2].item() / 4]), np.ones(12), yes)
    assert tally.redeemed.sum() == tally.redeemed[6] == 1 and tally.forecast.sum() == pytest.approx(0.25)


def test_a_corrected_forecast_moves_the_price_until_the_corrected_spend_meets_the_money():
    package = StandInPackage()
    customers = customers_of(table(3000), package)
    plain = plan_of(customers, package, setting(300.0))
    factor = torch.full((12,), 1.4, dtype=torch.float64)
    more = plan_of(customers, package, setting(300.0), factor)
    assert more.cleared.price > plain.cleared.price
    assert more.arms["rl"].expected == pytest.approx(more.arms["rl"].money, rel=1e-3)


# ── what a reader gets ──────────────────────────────────────────────────────────────────────────────────────────────
def test_the_summary_says_the_price_the_rule_and_what_the_rule_costs(tmp_path):
    expected, reserved = (
        planned(tmp_path / "x.parquet", n=1500, money=150.0, rule=x) for x in ("expected", "reserved")
    )
    text = "\n".join(summary(reserved))
    cost = rule_cost(reserved)
    assert f"money costs {reserved.plan.cleared.price:.3g}" in text and "no log: every customer starts fresh" in text
    assert f"{cost.worth_lost:.1%} of what `expected` buys is given up" in text
    assert 0.2 < cost.worth_lost < 1 and cost.spend_share < 0.6
    assert rule_cost(expected).worth_lost == 0 and rule_cost(expected).spend_share == pytest.approx(1, abs=1e-3)


def test_the_page_is_static_and_names_are_text(tmp_path):
    catalogue = Catalogue.build(
        offers={"<script>alert(1)</script>": {"value": 1.5}, "a&b": {"value": 5.0}, "wine": {"value": 4.0}},
        channels={
            name: {"cost": 0.1, "attention": 0.2, "opt_out": 0.004, "fatigue_steps": 1} for name in ("'x'", "y", "z")
        },
    )
    rules = {
        "eligible": {},
        "age": {"column": None, "limits": {}},
        "consent": {},
        "caps": [],
        "holdout": {"share": 0.05, "salt": 7},
    }
    package = StandInPackage(rules)
    package.catalogue = catalogue
    made = planned(tmp_path / "week=3.parquet", package=package, money=1e5, segment="Tier")
    path = tmp_path / "page.html"
    write_page(path, made)
    text = path.read_text()
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", text)
    assert "lowest price of money" in text and "by Tier" in text and "gold" in text
    for warning in made.plan.warnings:
        assert str(escape(warning)) in text
    assert text.count('<tr><td data-name="customer">') == 10


def test_the_page_of_a_plan_that_sends_nothing(tmp_path):
    made = planned(tmp_path / "week=3.parquet", money=0.0)
    write_page(tmp_path / "page.html", made)
    assert "Nothing is sent." in (tmp_path / "page.html").read_text()


def test_why_shows_every_step_and_what_rules_refuse(tmp_path):
    made = planned(tmp_path / "week=3.parquet", n=300)
    made.write()
    columns = made.plan.columns
    row = next(k for k in made.plan.sent.tolist() if columns["arm"].take(np.array([k])) == ["rl"])
    name = made.customers.ids[row]
    decided = planned_row(made.path, name)
    lines = explain(made.package, made.customers.take(row), torch.ones(12), read_facts(made.path), decided)
    text = "\n".join(lines)
    assert lines[0] == f"{name}, week 3, arm rl: {decided['reason']}"
    assert f"{decided['own_price']:.3g}  {decided['channel']} {decided['offer']}" in text and "<- sent" in text
    prices = [float(line.split()[0]) for line in lines if re.match(r" +[\d.]+  \w", line)]
    assert prices == sorted(prices, reverse=True) and len(prices) >= 1
    refused = {k for k in range(3, 12) if made.customers.contact_policy.reasons(row, k // 3, k % 3, True, [])}
    assert text.count("  refused  ") == len(refused)
    older = tmp_path / "week=2.parquet"
    write_plan(older, columns, {key: x for key, x in read_facts(made.path).items() if key != "fees"})
    with pytest.raises(ValueError, match="week=2.parquet: expected a plan of this version"):
        planned_row(older, name)
    with pytest.raises(ValueError, match="has no customer 'nobody'"):
        planned_row(made.path, "nobody")
    with pytest.raises(ValueError, match="no such plan; make the plan first"):
        planned_row(tmp_path / "week=4.parquet", name)


def test_a_file_that_is_no_plan_is_one_line(tmp_path):
    other = tmp_path / "week=1.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    with pytest.raises(ValueError, match="expected a plan that scripts/plan.py wrote"):
        read_facts(other)
