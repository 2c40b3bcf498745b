"""From a shop's files to a plan: what fits, and the one line for what does not."""

from __future__ import annotations

import re

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from envs.live.plan.arms import BAU, RL, Arms
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.run import make_plan
from envs.live.plan.why import why
from envs.offers.logs import send_log
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.send_log import Calendar
from plan_files import write_plan
from stand_in_package import (
    CATALOGUE,
    RULES,
    StandInExported,
    arrow_table,
    customers_of,
    plan_of,
    request,
    setting,
    table,
)

POLICY = StandInExported()


def rows_of(planned) -> list[dict]:
    return planned.table().to_pylist()


def test_a_csv_file_a_parquet_file_and_a_table_give_one_plan(tmp_path):
    given = arrow_table(300)
    pq.write_table(given, tmp_path / "c.parquet")
    pa_csv.write_csv(given, str(tmp_path / "c.csv"))
    tables = (given, str(tmp_path / "c.parquet"), str(tmp_path / "c.csv"))
    plans = [rows_of(make_plan(POLICY, request(customers=x, out=str(tmp_path / "week=3.parquet")))) for x in tables]
    assert plans[0] == plans[1] == plans[2]
    direct = plan_of(customers_of(table(300), POLICY), POLICY, setting(40.0, arms=make_arms()))
    assert [row["decision"] for row in plans[0]] == direct.columns["decision"].tolist()
    assert [row["reason"] for row in plans[0]] == direct.columns["reason"].take(np.arange(300))


def make_arms(random=0.01, bau=0.0):
    return Arms(7, 0.05, random, bau)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"customers": None}, "customers: expected the path of a CSV or Parquet file"),
        ({"today": None}, "today: expected the planned week's first day, from which its offers are valid, as in"),
        ({"today": "2026-12"}, "today: expected a date, year-month-day, got 2026-12"),
        ({"today": 20261207}, "today: expected a date, year-month-day, got 20261207"),
        ({"money": None}, "money: expected the week's money, as in money=5000"),
        ({"week": None}, "week: expected the number of the week, or a log=… that the week follows"),
        ({"out": "plan.csv"}, "out: expected a name that ends in .parquet, got plan.csv"),
        ({"segment": "Region"}, "customers: no column 'Region' (segment); there are id, Rate, Keen, Age, Tier, App"),
        ({"id": "Number"}, "customers: no column 'Number' (id); there are id, Rate, Keen, Age, Tier, App"),
        ({"log": "no.parquet"}, "no.parquet: expected a log that scripts/import_sends.py wrote"),
        ({"rule": "hoped"}, "rule: expected expected, buffered or reserved, got 'hoped'"),
    ],
)
def test_a_request_that_does_not_fit_is_one_line(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make_plan(POLICY, request(**{"customers": arrow_table(5), **changes}))
    assert "\n" not in str(error.value)


def moves_said(folder, week, *, rules=RULES, customers=300, **changes):
    """Plan a week into a folder; return what the plan warns of arms, and each customer's arm."""
    arms = {"salt": 7, "holdout": 0.05, "random": 0.1, "bau": 0.5, **changes}
    out = str(folder / f"week={week}.parquet")
    made = make_plan(StandInExported(rules), request(customers=arrow_table(customers), week=week, arms=arms, out=out))
    made.write()
    return [x for x in made.plan.warnings if "another arm" in x], {row["customer"]: row["arm"] for row in rows_of(made)}


def test_a_plan_whose_arms_are_not_those_of_the_newest_plan_says_how_many_customers_moved(tmp_path):
    (said, _), (said_of_10, before) = moves_said(tmp_path, 9), moves_said(tmp_path, 10)
    assert said == said_of_10 == []
    said, after = moves_said(tmp_path, 11, bau=0.2, customers=200)
    moved = sum(before[name] != after[name] for name in after)
    assert moved > 0 and said == [
        f"{moved} of 200 customers have another arm than in week 10 (arms.bau 0.5 -> 0.2): a comparison of arms over "
        "both weeks leaves them out"
    ]
    assert moves_said(tmp_path, 12, bau=0.2)[0] == []
    assert "arms.salt 7 -> 8" in moves_said(tmp_path, 13, bau=0.2, salt=8)[0][0]


def test_arms_that_move_without_a_setting_are_told_too(tmp_path):
    """The package's own holdout, of another salt than the arms', grows; a plan's arms were drawn otherwise."""
    _, before = moves_said(tmp_path, 3, salt=8)
    (said,), after = moves_said(tmp_path, 4, salt=8, rules={**RULES, "holdout": {"share": 0.3, "salt": 7}})
    moved = sum(before[name] != after[name] for name in after)
    assert 20 < moved < 150 and said.startswith(f"{moved} of 300 customers have another arm than in week 3 (no arms.*")
    ids = arrow_table(300)["id"].to_pylist()
    write_plan(tmp_path, 5, {name: (BAU, RL)[k % 2] for k, name in enumerate([*ids, "gone"])}, Arms(7, 0.05, 0.1, 0.5))
    (said,), after = moves_said(tmp_path, 6)
    moved = sum(after[name] != ("bau", "rl")[k % 2] for k, name in enumerate(ids))
    assert said.startswith(f"{moved} of 300 customers have another arm than in week 5 (no arms.*")


def test_offers_end_valid_days_after_the_first_day_of_the_week_with_a_log_and_without(tmp_path):
    planned = make_plan(POLICY, request(customers=arrow_table(300), valid_days=7, out=str(tmp_path / "week=3.parquet")))
    lines = planned.write()[1].read_text().splitlines()
    assert len(lines) > 1 and all(line.endswith(',"2026-12-13"') for line in lines[1:])


def test_who_left_before_the_planned_week_is_sent_nothing():
    dates = ["2026-12-06", "2026-12-07", "2026-12-08", "", "2020-01-01"]
    given = arrow_table(5).append_column("Left", pa.array(dates))
    rows = rows_of(make_plan(POLICY, request(customers=given, left="Left", today="2026-12-07")))
    gone = [row["reason"].startswith("left the shop") for row in rows]
    assert gone == [True, False, False, False, True]
    assert not any(row["offer"] for row in rows if row["reason"].startswith("left the shop"))
    nobody = arrow_table(5).append_column("Left", pa.nulls(5))
    rows = rows_of(make_plan(POLICY, request(customers=nobody, left="Left", today="2026-12-07")))
    assert not any(row["reason"].startswith("left the shop") for row in rows)


def test_the_tables_dates_of_leaving_overrule_the_logs(tmp_path):
    """By the log both left after week 0; the table knows of one alone, and without its dates the log decides."""
    log = CustomerWeeks.empty(tuple(arrow_table(3)["id"].to_pylist()), 4)
    log.last[:] = [0, 0, 3]
    path = tmp_path / "log.parquet"
    calendar = Calendar(True, 20_458, 20_490, None, True, 1.0, 0.0)
    send_log.write(path, log, calendar, list(CATALOGUE.offers), list(CATALOGUE.channels))
    given = arrow_table(3).append_column("Left", pa.array(["2026-01-10", "", ""]))
    asked = {"customers": given, "log": str(path), "week": 4, "out": str(tmp_path / "week=4.parquet")}

    def gone(**changes):
        rows = rows_of(make_plan(POLICY, request(**asked, **changes)))
        return [row["reason"].startswith("left the shop") for row in rows]

    assert gone() == [True, True, False] and gone(left="Left") == [True, False, False]
    chosen = request(**asked, left="Left")
    make_plan(POLICY, chosen).write()
    assert "the rules allow no contact, so there is no ladder" in why(POLICY, chosen, log.ids[0])


def test_who_joins_after_the_planned_week_is_sent_nothing_and_takes_no_money():
    dates = ["2026-12-13", "2026-12-14", "2027-06-01", "", "2020-01-01"]
    given = arrow_table(5).append_column("Joined", pa.array(dates))
    planned = make_plan(POLICY, request(customers=given, joined="Joined", today="2026-12-07"))
    rows = rows_of(planned)
    later = [row["reason"].startswith("joins later") for row in rows]
    assert later == [False, True, True, False, False]
    assert not any(row["offer"] for row, is_later in zip(rows, later) if is_later)
    assert not planned.customers.eligible[1:3].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joined": "Came"}, "customers: no column 'Came' (joined); there are id, Rate"),
        ({"left": "Gone"}, "customers: no column 'Gone' (left); there are id, Rate"),
        ({"left": "Tier", "today": "2026-12-07"}, "customers: column 'Tier': expected dates, year-month-day"),
        ({"left": "Age", "today": "2026-12-07"}, "customers: column 'Age': expected dates, year-month-day"),
    ],
)
def test_a_column_of_leaving_that_does_not_fit_is_one_line(changes, message):
    given = arrow_table(5).append_column("Left", pa.array(["2026-12-06"] * 5))
    with pytest.raises(ValueError, match=re.escape(message)):
        make_plan(POLICY, request(**{"customers": given, **changes}))


def test_a_file_of_customers_that_cannot_be_read_names_the_plans_own_keys(tmp_path):
    (tmp_path / "c.csv").write_text("id;Rate\nx;1\n")
    expected = re.escape("c.csv: row 1: expected columns separated by ',', got semicolons (separator)")
    with pytest.raises(ValueError, match=expected):
        make_plan(POLICY, request(customers=str(tmp_path / "c.csv")))
    with pytest.raises(ValueError, match=r"no\.csv: no such file$"):
        make_plan(POLICY, request(customers=str(tmp_path / "no.csv")))


def test_a_customer_twice_is_refused_with_both_rows():
    given = arrow_table(5)
    double = pa.concat_tables([given, given.slice(2, 1)])
    with pytest.raises(ValueError, match="row 7, column 'id': id 'K100002' is that of row 4 too"):
        make_plan(POLICY, request(customers=double))


def test_a_rule_on_a_column_that_is_missing_is_one_line():
    with pytest.raises(ValueError, match="names a column 'Tier' that is not in the table"):
        make_plan(POLICY, request(customers=arrow_table(5).drop_columns(["Tier"])))


def test_ids_that_are_numbers_are_the_texts_of_a_csv_file(tmp_path):
    given = arrow_table(40)
    numbers = given.set_column(0, "id", pa.array(np.arange(40)))
    pa_csv.write_csv(numbers, str(tmp_path / "c.csv"))
    both = [rows_of(make_plan(POLICY, request(customers=x))) for x in (numbers, str(tmp_path / "c.csv"))]
    assert both[0] == both[1] and both[0][7]["customer"] == "7"


@pytest.mark.parametrize(
    ("shop", "fault"),
    [
        (
            "customer,offer,channel\nK100001,coffee,pigeon\n",
            "row 2, column 'channel': expected one of app, newsletter, letter, got 'pigeon'",
        ),
        ("customer,offer,channel\nK100001,coffee,app\nK100001,coffee,app\n", "row 3: customer 'K100001' comes twice"),
        ("customer,offer\nK100001,coffee\n", "no column 'channel'"),
        ("customer,offer,channel\n", "expected decisions, got no row"),
    ],
)
def test_a_file_of_the_shops_own_decisions_that_does_not_fit_is_one_line(tmp_path, shop, fault):
    path = tmp_path / "own.csv"
    path.write_text(shop)
    with pytest.raises(ValueError, match=re.escape(fault)):
        make_plan(POLICY, request(customers=arrow_table(5), shop_rule={"decisions": str(path), "separator": ","}))


def test_a_rule_of_money_says_what_it_promises():
    assert {MoneyRule(x, 1.0).meaning() for x in ("expected", "buffered", "reserved")} == {
        "expected spend meets the money; in about half of all weeks the spend passes it",
        "expected spend is 1 standard deviations below the money",
        "face value and message of every send are covered: the spend cannot pass the money",
    }
