"""A shop's sends as a log: what the log says is what happened, month by month, and one-line errors of a bad file."""

from __future__ import annotations

import csv
import datetime as dt
import random
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from configs import composed
from envs.offers.logs import send_log
from envs.offers.logs.customer_dates import later_features
from envs.offers.logs.customer_weeks import (
    ARMS,
    CustomerWeeks,
    Rows,
    put_later_outcomes,
    put_purchases,
    put_sends,
    second_of_a_cell,
    staying,
)
from envs.offers.logs.planned_weeks import PlannedWeek
from envs.offers.logs.send_checks import changed_ids
from scripts import example_shop

pq = pytest.importorskip("pyarrow.parquet")
MONDAY = dt.date(2025, 1, 6)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A made-up shop of 300 customers whose view is the history: its folder, environment and reader of sends."""
    folder = tmp_path_factory.mktemp("shop")
    example_shop.write_shop(folder, 300, 0)
    config = composed(
        "experiment=shop",
        "sends=shop",
        "sends.start=null",
        "env/observation=history",
        f"hydra.searchpath=[file://{folder}]",
        name="import_sends",
    )
    return folder, instantiate(config.env, _convert_="all")(torch.device("cpu"), 0), config.sends


def rows_of(folder, name):
    with open(folder / f"{name}.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def write_rows(path, rows, names=None):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names or rows[0], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def names_of(env):
    return list(env.world.catalogue.offers), list(env.world.catalogue.channels)


def weeks_there(row):
    """Count the weeks of the shop's first 48 in which a customer is there, by the dates of the customer table."""
    first = max(0, (dt.date.fromisoformat(row["Joined"]) - dt.date(2026, 1, 5)).days // 7)
    last = (dt.date.fromisoformat(row["Left"]) - dt.date(2026, 1, 5)).days // 7 if row["Left"] else 47
    return last - first + 1


MAY_BE_SILENT = {"in_table": np.array(True), "has_everyone": True, "lists_silence": False}


def rl_arm(customers):
    """The arm rl for each customer."""
    return np.full(len(customers), ARMS.index("rl"))


def imported(shop, old=None, **changes):
    _, env, sends = shop
    return instantiate(sends, **changes)(env, old)


# ── round trip ──────────────────────────────────────────────────────────────────────────────────────────────────────
def life(env, weeks, rng):
    """Simulate a shop's months with joiners, leavers and gaps.

    Returns {(id, week): what happened} of every week in which a customer was there, and the rows of its files.
    """
    offers, channels = names_of(env)
    happened, sends, purchases, stays = {}, [], [], {}
    for k, name in enumerate(env.population.ids):
        first = rng.choice((0, 0, 5, 30, weeks - 1)) if k % 3 else 0
        last = rng.choice((weeks - 1, weeks - 1, min(first + 8, weeks - 1)))
        stays[name] = (first, last)
        gone = False
        for week in range(first, last + 1):
            monday = MONDAY + dt.timedelta(weeks=week)
            sent = not gone and week % 13 != 7 and rng.random() < 0.3  # in each quarter a week without any send
            offer, channel = (rng.randrange(1, len(offers)), rng.randrange(len(channels))) if sent else (0, 0)
            times = rng.choice((0, 0, 1, 2))
            money = [round(rng.uniform(0, 30), 2) for _ in range(times)]
            redeemed = sent and times > 0 and rng.random() < 0.5
            left = sent and rng.random() < 0.01
            p = round(rng.uniform(0.05, 0.5), 3)
            cell = {"offer": offer, "channel": channel, "bought": times > 0, "redeemed": redeemed,
                    "margin": sum(money), "unsubscribed": left, "propensity": p if sent else None}  # fmt: skip
            happened[name, week] = cell
            if sent:
                sends.append(
                    {
                        "Customer No": name,
                        "date": str(monday + dt.timedelta(days=rng.randrange(7))),
                        "offer": offers[offer],
                        "channel": channels[channel],
                        "propensity": p,
                        "redeemed": int(redeemed),
                        "unsubscribed": int(left),
                    }
                )
            for amount in money:
                day = str(monday + dt.timedelta(days=rng.randrange(7)))
                purchases.append({"Customer No": name, "date": day, "margin": amount})
            gone = gone or left
    rng.shuffle(sends)
    rng.shuffle(purchases)
    return happened, sends, purchases, stays


def check_same(log, happened):
    index = {name: k for k, name in enumerate(log.ids)}
    present = sum(log.is_present(week) for week in range(log.weeks))
    assert int(present.sum()) == len(happened)
    for (name, week), cell in happened.items():
        k = index[name]
        assert log.first[k] <= week <= log.last[k]
        for key in ("offer", "channel", "bought", "redeemed", "unsubscribed"):
            assert getattr(log, key)[week, k] == cell[key], (name, week, key)
        assert log.margin[week, k] == pytest.approx(cell["margin"])
        p = log.propensity[week, k]
        assert (p == cell["propensity"]) if cell["propensity"] else np.isnan(p)


@pytest.fixture(scope="module")
def long_shop(tmp_path_factory):
    """18 months of a shop whose customer table says when customers came and went."""
    folder = tmp_path_factory.mktemp("long")
    example_shop.write_shop(folder, 120, 1)
    overrides = ["experiment=shop", "sends=shop", "env/observation=history"]
    options = ["sends.start=null", "sends.propensity_of_nothing=null"]
    customers = rows_of(folder, "customers")
    write_rows(folder / "customers.csv", [row | {"Joined": "2025-01-06", "Left": "2025-01-06"} for row in customers])
    config = composed(*overrides, *options, f"hydra.searchpath=[file://{folder}]", name="import_sends")
    env = instantiate(config.env, _convert_="all")(torch.device("cpu"), 0)
    happened, sends, purchases, stays = life(env, 78, random.Random(3))
    for row in customers:
        first, last = stays[row["Customer No"]]
        row["Joined"] = str(MONDAY + dt.timedelta(weeks=first, days=2))
        row["Left"] = "" if last == 77 else str(MONDAY + dt.timedelta(weeks=last, days=3))
    write_rows(folder / "customers.csv", customers)
    env = instantiate(config.env, _convert_="all")(torch.device("cpu"), 0)
    return folder, env, config.sends, happened, sends, purchases


@pytest.mark.long
def test_the_log_of_18_months_says_what_happened(long_shop, tmp_path):
    _, env, sends_config, happened, sends, purchases = long_shop
    files = {
        "path": write_rows(tmp_path / "s.csv", sends),
        "purchases": {**sends_config.purchases, "path": write_rows(tmp_path / "p.csv", purchases)},
    }
    whole = instantiate(sends_config, **files)(env, None)
    check_same(whole.log, happened)
    path = tmp_path / "log.parquet"
    assert send_log.write(path, whole.log, whole.calendar, *names_of(env)) == len(happened)
    again, calendar = send_log.read(path, *names_of(env))
    check_same(again, happened)
    assert calendar == whole.calendar and not calendar.week_of(np.array([int(np.datetime64(MONDAY, "D").astype(int))]))


@pytest.mark.long
def test_month_by_month_makes_the_same_log_as_all_at_once(long_shop, tmp_path):
    """The months end in the midst of weeks; every export holds all that came before, too."""
    _, env, sends_config, happened, sends, purchases = long_shop
    path, months = tmp_path / "log.parquet", [dt.date(2025, m, 1) for m in range(2, 13)] + [dt.date(2027, 1, 1)]
    for end in months:
        files = {}
        for name, rows in (("s", sends), ("p", purchases)):
            found = [row for row in rows if row["date"] < str(end)]
            files[name] = write_rows(tmp_path / f"{name}.csv", found, rows[0])
        old = send_log.read(path, *names_of(env)) if path.exists() else None
        changes = {"path": files["s"], "purchases": {**sends_config.purchases, "path": files["p"]}}
        now = instantiate(sends_config, **changes)(env, old)
        send_log.write(path, now.log, now.calendar, *names_of(env))
    check_same(send_log.read(path, *names_of(env))[0], happened)
    again = instantiate(sends_config, **changes)(env, send_log.read(path, *names_of(env)))
    assert not again.is_changed and again.calendar == now.calendar
    check_same(again.log, happened)
    dearer = instantiate(sends_config, **changes, price=7.5)(env, send_log.read(path, *names_of(env)))
    assert dearer.is_changed and dearer.calendar.price == 7.5


@pytest.mark.long
# ── the shop's own files ────────────────────────────────────────────────────────────────────────────────────────────
def test_decisions_are_what_the_log_and_the_rules_say(shop, tmp_path):
    folder, env, _ = shop
    found = imported(shop)
    path = tmp_path / "log.parquet"
    send_log.write(path, found.log, found.calendar, *names_of(env))
    offers, channels = names_of(env)
    value = dict(zip(offers, env.world.catalogue.value.tolist()))
    cost = dict(zip(channels, env.world.catalogue.cost.tolist()))
    sends = {(row["Customer No"], row["date"]): row for row in rows_of(folder, "sends")}
    bought: dict = {}
    for row in rows_of(folder, "purchases"):
        day = dt.date.fromisoformat(row["date"])
        bought[row["Customer No"], str(day - dt.timedelta(days=day.weekday()))] = float(row["margin"])
    total = 0
    in_file = pq.read_table(path, columns=["customer", "week"]).to_pylist()
    for split in ("train", "test"):
        log = env.read_log(str(path), split)
        total += len(log)
        assert set(log.unit.tolist()) <= set(env.population.customers[split].tolist())
        assert log.action_mask.gather(1, log.action[:, None]).all()
        assert (log.propensity[log.action_mask.sum(1) == 1] == 1).all() and not log.propensity.isnan().any()
        assert log.terminated[log.step == 11].all() and not log.truncated.any()
        for k in range(0, len(log), 5):
            name = env.population.ids[log.unit[k]]
            week = int(12 * log.episode[k] + log.step[k])
            assert in_file[log.row[k] - 2] == {"customer": name, "week": week}
            monday = str(dt.date(2026, 1, 5) + dt.timedelta(weeks=week))
            row = sends.get((name, monday))
            offer, channel = divmod(int(log.action[k]), len(channels))
            spend = 0.0
            if row is None:
                assert not offer
            else:
                assert (offers[offer], channels[channel]) == (row["offer"], row["channel"])
                assert log.propensity[k].item() == pytest.approx(float(row["propensity"]))
                spend = cost[row["channel"]] + value[row["offer"]] * float(row["redeemed"])
            margin = bought.get((name, monday))
            assert log.outcomes["trips"][k] == (margin is not None)
            expected = (margin or 0.0) - spend  # money, and nothing for the purchase itself
            assert log.reward[k].item() == pytest.approx(expected, abs=1e-4)
        assert torch.equal(log.obs[:, : env.static_dim], env.population.features[log.unit].float())
        # one of the pairs that the rules allow, in half of the weeks but in a twelfth, which are gaps
        sent = log.action >= len(channels)
        chance = log.propensity[sent] * (log.action_mask[sent].sum(1) - 1)
        assert (chance - 11 / 24).abs().max() < 1e-4
        free = ~sent & (log.action_mask.sum(1) > 1)
        assert (log.propensity[free] - 13 / 24).abs().max() < 1e-4
    assert total == sum(weeks_there(row) for row in rows_of(folder, "customers"))


@pytest.mark.slow
def test_a_history_goes_on_from_season_to_season(long_shop, tmp_path):
    """The reference counts contacts and purchases of the log with the halving weights, by hand."""
    _, env, sends_config, happened, sends, purchases = long_shop
    files = {
        "path": write_rows(tmp_path / "s.csv", sends),
        "purchases": {**sends_config.purchases, "path": write_rows(tmp_path / "p.csv", purchases)},
    }
    found = instantiate(sends_config, **files)(env, None)
    path = tmp_path / "log.parquet"
    send_log.write(path, found.log, found.calendar, *names_of(env))
    log = env.read_log(str(path), "train")
    half_life = env.codec.half_lives[0]
    names = list(env.obs_names)
    columns = {kind: names.index(f"{kind}, halving in {half_life:g} weeks") for kind in ("contacts", "purchases")}
    decay = 0.5 ** (1 / half_life)
    for k in range(0, len(log), 37):
        name, week = env.population.ids[log.unit[k]], int(12 * log.episode[k] + log.step[k])
        for kind, key in (("contacts", "offer"), ("purchases", "bought")):
            past = [bool(happened[name, w][key]) for w in range(week) if (name, w) in happened]
            expected = sum((1 - decay) * decay**age for age, true in enumerate(reversed(past)) if true)
            assert log.obs[k, columns[kind]].item() == pytest.approx(expected, abs=1e-5)
        season = [happened[name, w]["bought"] for w in range(week - int(log.step[k]), week) if (name, w) in happened]
        sums = env.codec.counts.scale * sum(season)
        assert log.obs[k, names.index("purchases")].item() == pytest.approx(sums, abs=1e-5)


@pytest.mark.slow
def test_a_view_of_states_is_refused(shop, tmp_path):
    folder, env, _ = shop
    found = imported(shop)
    send_log.write(tmp_path / "log.parquet", found.log, found.calendar, *names_of(env))
    view = "env/observation=state"
    config = composed("experiment=shop", view, f"hydra.searchpath=[file://{folder}]", name="import_sends")
    seeing = instantiate(config.env, _convert_="all")(torch.device("cpu"), 0)
    with pytest.raises(
        ValueError, match="no habit, fatigue or expectation: expected env/observation=history or belief"
    ):
        seeing.read_log(str(tmp_path / "log.parquet"), "train")
    with pytest.raises(ValueError, match="column 'offer': expected one of nothing, tea, got '"):
        send_log.read(tmp_path / "log.parquet", ["nothing", "tea"], ["app"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows[5].update(offer="tea"), "row 7, column 'offer': expected one of coffee, five_off, wine"),
        (lambda rows: rows[5].update(channel=""), "row 7, column 'channel': expected a channel where there is an"),
        (lambda rows: rows[5].update(channel="fax"), "row 7, column 'channel': expected one of app, newsletter, l"),
        (lambda rows: rows[5].update(date=""), "row 7, column 'date': expected a date, got nothing"),
        (lambda rows: rows[5].update(date="5.1.2026"), "row 7, column 'date': expected a date, year-month-day, got '5"),
        (lambda rows: rows[5].update({"Customer No": ""}), "row 7, column 'Customer No': expected an id, got nothing"),
        (lambda rows: rows[5].update(redeemed="2"), "row 7, column 'redeemed': expected 0 or 1, got 2"),
        (lambda rows: rows[5].update(redeemed=""), "row 7, column 'redeemed': expected a number, got nothing"),
        (lambda rows: [row.pop("redeemed") for row in rows], "no column 'redeemed' (named in sends)"),
        (
            lambda rows: rows[6].update(rows[5] | {"offer": "coffee", "channel": "letter"}),
            "row 8, column 'date': expected one row a customer and week, row 7 is of the same",
        ),
        (lambda rows: [row.update({"Customer No": "X"}) for row in rows], "row 2, column 'Customer No': expected an"),
        *(
            (
                lambda rows, p=p: rows[5].update(propensity=p),
                f"row 7, column 'propensity': expected a probability above 0, at most 1, or nothing, got {p}",
            )
            for p in ("0", "-0.3", "1.7")
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(shop, tmp_path, change, message):
    folder, _, _ = shop
    rows = rows_of(folder, "sends")
    change(rows)
    with pytest.raises((ValueError, InstantiationException)) as caught:
        imported(shop, path=write_rows(tmp_path / "s.csv", rows))
    told = str(caught.value.__cause__ or caught.value)
    assert message in told and "\n" not in told


def test_purchases_on_the_sends_rows_and_weeks_by_number(shop, tmp_path):
    """A file that lists weeks without a send, from the week of joining on; numbers of weeks need not begin at 1."""
    _, env, sends = shop
    ids = env.population.ids[:2]
    made = [
        {"Customer No": ids[k], "date": week, "offer": ("", "coffee")[week % 2], "channel": ("", "letter")[week % 2],
         "propensity": 0.25, "bought": int(week == 33), "redeemed": 0, "margin": 7.5 * (week == 33), "unsubscribed": 0}
        for k in range(2) for week in range(31 + 3 * k, 43)
    ]  # fmt: skip
    by_number = {"purchases": {**sends.purchases, "path": None}, "joined": None, "left": None}
    changes = {"path": write_rows(tmp_path / "s.csv", made), **by_number}
    found = imported(shop, **changes, lists_silence=True)
    log, k = found.log, [found.log.ids.index(name) for name in ids]
    assert log.weeks == 12 and log.first[k].tolist() == [0, 3] and log.last[k].tolist() == [11, 11]
    assert (log.last >= log.first).sum() == 2 and not found.warnings
    assert log.bought[:, k[0]].nonzero()[0].tolist() == [2] and log.margin[2, k[0]] == 7.5
    assert (log.propensity[3:, k] == 0.25).all()
    only_sent = imported(shop, **{**changes, "path": write_rows(tmp_path / "o.csv", [r for r in made if r["offer"]])})
    stays = only_sent.log
    assert stays.first[k].tolist() == [0, 0] and (stays.last >= stays.first).sum() == 2  # nothing is known of others
    assert any("weeks that the file does not list count as weeks without a purchase" in x for x in only_sent.warnings)


def test_the_first_of_several_sends_is_the_weeks_decision(shop, tmp_path):
    _, env, sends = shop
    name, (offers, channels) = env.population.ids[0], names_of(env)
    made = [
        {"Customer No": name, "date": day, "offer": offer, "channel": channel, "propensity": p, "bought": bought,
         "redeemed": 0, "margin": 4 * bought, "unsubscribed": gone}
        for day, offer, channel, p, bought, gone in (
            (1, "coffee", "letter", 0.1, 1, 0), (2, "coffee", "app", 0.2, 0, 0), (2, "five_off", "letter", 0.3, 1, 1),
        )
    ]  # fmt: skip
    by_number = {"purchases": {**sends.purchases, "path": None}, "joined": None, "left": None}
    changes = {"path": write_rows(tmp_path / "s.csv", made), **by_number}
    log = imported(shop, **changes, several="first").log
    k = log.ids.index(name)
    assert (offers[log.offer[1, k]], channels[log.channel[1, k]]) == ("coffee", "app")
    assert log.propensity[1, k] == 0.2 and log.bought[1, k] and log.margin[1, k] == 4 and log.unsubscribed[1, k]
    with pytest.raises(ValueError, match="row 4, column 'date': expected one row a customer and week, row 3 is of the"):
        imported(shop, **changes)


def test_a_date_far_from_all_others_is_named(shop, tmp_path):
    folder, _, _ = shop
    rows = rows_of(folder, "sends")
    rows[4]["date"] = "2926-01-05"
    with pytest.raises(ValueError, match="row 6, column 'date': expected .* of at most 1,040 weeks, got 46,9"):
        imported(shop, path=write_rows(tmp_path / "s.csv", rows))
    with pytest.raises(ValueError, match="sends.until: expected a log of at most 1,040 weeks, got 5,2"):
        imported(shop, until="2126-01-05")


def test_an_opt_out_beside_an_earlier_message_counts_from_the_last_message_on(shop, tmp_path):
    """A customer uses the link of an old mail after the next one went out: both went out, and no week is refused."""
    folder, _, _ = shop
    rows = rows_of(folder, "sends")
    gone = next(row for row in rows if row["unsubscribed"] == "1" and row["date"] < "2026-03-01")
    later = gone | {"date": "2026-03-23", "unsubscribed": "0", "redeemed": "0"}
    week = (dt.date.fromisoformat(gone["date"]) - dt.date(2026, 1, 5)).days // 7
    path = write_rows(tmp_path / "s.csv", [*rows, later])
    usual, found = imported(shop), imported(shop, path=path)
    k = found.log.ids.index(gone["Customer No"])
    assert np.flatnonzero(usual.log.unsubscribed[:, k]).tolist() == [week]
    assert np.flatnonzero(found.log.unsubscribed[:, k]).tolist() == [11] and found.log.offer[11, k]
    others = np.arange(len(found.log.ids)) != k
    np.testing.assert_array_equal(found.log.unsubscribed[:, others], usual.log.unsubscribed[:, others])
    said = "1 customers were sent something after the message beside which 'unsubscribed' is 1"
    assert [x for x in found.warnings if "opt-out" in x] == [f"{said}: their opt-out counts from their last message on"]
    again = imported(shop, (found.log, found.calendar), path=path)
    assert not again.is_changed and not [x for x in again.warnings if "opt-out" in x]


def test_a_week_in_which_nothing_was_sent(shop, tmp_path):
    """Files that end, or are empty: the log stays, or goes on to the week up to which they are complete."""
    folder = shop[0]
    found = imported(shop)
    old = (found.log, found.calendar)
    names = list(rows_of(folder, "sends")[0])
    empty = write_rows(tmp_path / "empty.csv", [], names)
    last = np.datetime64(found.calendar.sends_to, "D")
    for changes in ({}, {"path": empty}, {"until": str(last)}, {"until": "2026-01-05"}):
        same = imported(shop, old, **changes)
        assert not same.is_changed and same.calendar == found.calendar and same.log.has_equal_cells(found.log)
    longer = imported(shop, old, path=empty, until=str(last + 14))
    assert longer.is_changed and longer.log.weeks == found.log.weeks + 2
    assert not longer.log.offer[-2:].any() and longer.log.is_present(found.log.weeks + 1).sum() > 150
    assert longer.log.offer[: found.log.weeks].sum() == found.log.offer.sum()
    with pytest.raises(ValueError, match="expected a send to begin a log with, got a file without rows"):
        imported(shop, path=empty)
    for wrong in ("soon", 2025, "2025", "2025-11", "NaT"):
        with pytest.raises(ValueError, match=f"sends.until: expected null or a date, year-month-day, got {wrong}"):
            imported(shop, old, until=wrong)


@pytest.mark.parametrize("by_number", [False, True])
def test_what_is_later_than_the_files_are_complete_waits_for_the_next_import(shop, tmp_path, by_number):
    """An export at noon of the day after `until` has half of that day: one send, and every other purchase."""
    first = dt.date(2026, 1, 5)

    def moved(row, days):  # to another day of the row's week; by number there is but one
        week = (dt.date.fromisoformat(row["date"]) - first).days // 7
        return row | {"date": week if by_number else str(first + dt.timedelta(weeks=week, days=days))}

    sends, purchases = (
        [moved(row, k % 3) for k, row in enumerate(rows_of(shop[0], x))] for x in ("sends", "purchases")
    )
    until, day = (39, 40) if by_number else ("2026-10-11", "2026-10-12")
    sends_of_day = [row for row in sends if row["date"] == day]
    bought = [row for row in purchases if row["date"] <= until]
    bought_that_day = [row for row in purchases if row["date"] == day]
    half = bought_that_day[::2]
    assert sends_of_day and len(bought_that_day) > 3

    def of(old, name, sends, purchases, until=None):
        table = {**shop[2].purchases, "path": write_rows(tmp_path / f"p{name}.csv", purchases)}
        path = write_rows(tmp_path / f"s{name}.csv", sends)
        return imported(shop, old, path=path, purchases=table, until=until, joined=None, left=None)

    early = [row for row in sends if row["date"] <= until]
    noon = of(None, "noon", [*early, sends_of_day[0]], [*bought, *half], until)
    assert (noon.log.weeks, noon.calendar.describe(noon.calendar.sends_to).endswith(str(until))) == (40, True)
    assert f"1 of {len(early) + 1:,} sends lie after sends.until: left out" in noon.warnings
    all_bought = len(bought) + len(half)
    assert f"{len(half)} of {all_bought:,} purchases lie after sends.until: left out" in noon.warnings
    assert not any("week of the last send" in x for x in noon.warnings)
    known = of(None, "known", early, bought, until)
    assert known.log.has_equal_cells(noon.log) and known.calendar == noon.calendar
    later, at_once = of((noon.log, noon.calendar), "all", sends, purchases), of(None, "all", sends, purchases)
    assert later.log.has_equal_cells(at_once.log) and later.calendar == at_once.calendar
    assert later.log.margin[40].sum() > sum(float(row["margin"]) for row in half)
    with pytest.raises(ValueError, match=f"expected a send up to sends.until, {until}, to begin a log with, got none"):
        of(None, "day", sends_of_day, half, until)
    strangers = [row | {"customer": f"new {k}"} for k, row in enumerate(sends_of_day)]  # the customer table lacks them
    new = of((known.log, known.calendar), "new", strangers, bought, until)
    n = len(strangers)
    assert f"{n} of {n} sends lie after sends.until: left out" in new.warnings
    assert new.log.has_equal_cells(known.log) and not any("customer table lacks" in x for x in new.warnings)


@pytest.mark.parametrize(
    ("lists_silence", "with_table", "knows"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_a_log_tells_whether_it_knows_purchases_of_weeks_without_a_send(
    shop, tmp_path, lists_silence, with_table, knows
):
    """One listed silent week with a purchase does not make a list of all of them; nor does a later table."""
    row = {"Customer No": shop[1].population.ids[0], "date": 1, "offer": "coffee", "channel": "app", "propensity": 0.5,
           "redeemed": 0, "unsubscribed": 0, "bought": 1, "margin": 4}  # fmt: skip
    rows = [row, row | {"date": 2, "offer": "", "channel": ""}]
    table = write_rows(tmp_path / "p.csv", [{"Customer No": row["Customer No"], "date": 2, "margin": 4}])
    changes = {"path": write_rows(tmp_path / "s.csv", rows), "joined": None, "left": None}
    paths = [{**shop[2].purchases, "path": path} for path in (None, table)]
    found = imported(shop, **changes, lists_silence=lists_silence, purchases=paths[with_table])
    assert found.log.bought[2 - 1].any() and found.calendar.knows_silence is knows
    path = tmp_path / "log.parquet"
    send_log.write(path, found.log, found.calendar, *names_of(shop[1]))
    old = send_log.read(path, *names_of(shop[1]))
    assert old[1] == found.calendar
    assert imported(shop, old, **changes, purchases=paths[1]).calendar.knows_silence is knows
    assert not imported(shop, old, **changes, purchases=paths[0]).calendar.knows_silence


def test_a_log_of_another_version_is_refused(shop, tmp_path):
    found = imported(shop)
    path = tmp_path / "log.parquet"
    send_log.write(path, found.log, found.calendar, *names_of(shop[1]))
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({send_log.KEY: b'{"start": 1}'}), path)
    with pytest.raises(ValueError, match=r"log\.parquet: expected a log of this version .*: import all sends anew"):
        send_log.read(path, *names_of(shop[1]))


def test_what_came_later_of_old_sends_changes_the_log(shop, tmp_path):
    rows = rows_of(shop[0], "sends")
    found = imported(shop)
    unredeemed = next(row for row in rows if row["offer"] and row["redeemed"] == "0" and row["unsubscribed"] == "0")
    unredeemed["redeemed"] = "1"
    later = imported(shop, (found.log, found.calendar), path=write_rows(tmp_path / "s.csv", rows))
    assert later.is_changed and later.log.redeemed.sum() == found.log.redeemed.sum() + 1


def test_a_send_that_an_older_export_lacked_is_added(shop, tmp_path):
    """So that caps count it, and its redemption is known; the week stays the one in which it was sent."""
    rows = rows_of(shop[0], "sends")
    at = next(k for k, row in enumerate(rows) if row["offer"] and row["redeemed"] == "1")
    whole = imported(shop)
    found = imported(shop, path=write_rows(tmp_path / "s.csv", [*rows[:at], *rows[at + 1 :]]))
    assert (found.log.offer > 0).sum() == (whole.log.offer > 0).sum() - 1
    later = imported(shop, (found.log, found.calendar))
    assert f"1 sends of weeks that the log has were not in it, such as row {at + 2}: added" in later.warnings
    assert f"{len(rows) - 1:,} of {len(rows):,} sends are in the log already: left out" in later.warnings
    assert later.is_changed and later.log.has_equal_cells(whole.log)
    again = imported(shop, (later.log, later.calendar))
    assert not again.is_changed and not [x for x in again.warnings if "added" in x]


def monday_of(week):
    """The first day of a week of the shop's log, as in its files."""
    return str(dt.date(2026, 1, 5) + dt.timedelta(weeks=week))


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_a_late_send_in_a_week_without_a_plan_leaves_nobody_certain(shop, tmp_path, is_cut_off):
    """The log had no send of the week, so that nothing was certain; or its last week went on after the export."""
    folder, env, sends = shop
    rows, log = rows_of(folder, "sends"), imported(shop).log
    last = log.weeks - 1
    week, planned = (last, last - 1) if is_cut_off else (last - 1, last - 2)
    offer, channel = (log.cells((name,))[name][planned].astype(np.int64) for name in ("offer", "channel"))
    chance = np.full(len(log.ids), 0.25)
    plan = PlannedWeek("week.parquet", planned, list(log.ids), offer, channel, chance, rl_arm(log.ids))
    silent = {row["Customer No"] for row in rows if row["date"] == monday_of(week)}
    barred = next(x for x in log.ids if x not in silent and log.is_present(week)[log.ids.index(x)])
    listed = {**rows[0], "Customer No": barred, "date": monday_of(week), "offer": "", "channel": "", "propensity": 1,
              "redeemed": 0, "unsubscribed": 0}  # fmt: skip
    rows = [row | {"date": str(dt.date.fromisoformat(row["date"]) + dt.timedelta(days=1))} for row in [*rows, listed]]
    before = [row for row in rows if row["date"][:10] < monday_of(week) or row["date"] > monday_of(week + 1)]
    until = monday_of(week) if is_cut_off else None
    changes = {"path": write_rows(tmp_path / "early.csv", before), "until": until}
    early = instantiate(sends, **changes)(env, None, iter([plan]))
    there = early.log.is_present(week)
    assert early.log.weeks == log.weeks and (early.log.propensity[week, there] == 1).all()
    path = write_rows(tmp_path / "all.csv", rows)
    later = instantiate(sends, path=path)(env, (early.log, early.calendar), iter([plan]))
    whole = instantiate(sends, path=path)(env, None, iter([plan]))
    assert later.log.has_equal_cells(whole.log)
    nothing = there & (later.log.offer[week] == 0)
    assert nothing.sum() > 9 and np.isnan(later.log.propensity[week, nothing]).sum() == nothing.sum() - 1
    assert later.log.propensity[week, log.ids.index(barred)] == 1  # the file says so
    said = f"week {week} has sends and no plan: its decisions have only the propensities that the sends' file gives"
    assert [x for x in later.warnings if f"week {week} " in x] == [said]
    again = instantiate(sends, path=path)(env, (later.log, later.calendar), iter([plan]))
    assert not again.is_changed and (is_cut_off or said not in again.warnings)


@pytest.mark.parametrize("has_plans", [False, True])
def test_who_comes_back_into_the_log_has_the_purchases_of_the_weeks_between(shop, tmp_path, monkeypatch, has_plans):
    """By the table of the first import some had left after week 3, by that of the second nobody of them had."""
    folder, env, sends = shop
    whole_log = imported(shop).log
    away = [
        name
        for k, name in enumerate(whole_log.ids)
        if whole_log.first[k] == 0 and whole_log.last[k] == whole_log.weeks - 1 and whole_log.bought[4:7, k].any()
    ][:20]
    assert len(away) == 20
    rows = [row for row in rows_of(folder, "sends") if row["Customer No"] not in away or row["date"] < monday_of(4)]
    bought = rows_of(folder, "purchases")
    given = env.population.given
    left = given.dates["Left"].copy()
    left[[given.ids.index(name) for name in away]] = np.datetime64(monday_of(3))
    plans = []
    if has_plans:
        offer, channel = (whole_log.cells((name,))[name][2].astype(np.int64) for name in ("offer", "channel"))
        chance, ids = np.full(len(offer), 0.25), whole_log.ids
        plans = [PlannedWeek("week=2.parquet", 2, list(ids), offer, channel, chance, rl_arm(ids))]

    def of(end, old):
        files = {
            name: write_rows(tmp_path / f"{name}.csv", [row for row in found if row["date"] < end], found[0])
            for name, found in (("s", rows), ("p", bought))
        }
        changes = {"path": files["s"], "purchases": {**sends.purchases, "path": files["p"]}}
        return instantiate(sends, **changes)(env, old, iter(plans))

    with monkeypatch.context() as patch:
        patch.setitem(given.dates, "Left", left)
        first = of(monday_of(7), None)
    columns = [first.log.ids.index(name) for name in away]
    assert (first.log.last[columns] == 3).all()
    second, at_once = of("2099", (first.log, first.calendar)), of("2099", None)
    assert second.log.bought[4:7, columns].any(0).all()
    assert second.log.has_equal_cells(at_once.log)
    assert not of("2099", (second.log, second.calendar)).is_changed


@pytest.mark.parametrize("given", ["17", "17.0", " 00017", " K1", "K1.0"])
def test_an_id_that_changed_its_text_is_refused_and_customers_whom_the_table_lacks_are_counted(given):
    ids = ["00017", "K1", "1001"]
    known = CustomerWeeks.empty((*ids, "00018"), 1)  # the last one is in the log in no week
    known.last[:3] = 0
    with pytest.raises(ValueError, match=f"expected the log's customer '.*', got '{given}': ids must keep their text"):
        changed_ids(known, ["1001", given])
    assert changed_ids(known, [*ids, "18"]) == []
    for others in (["18"], ["18", "k1"]):  # ids that differ in case alone are two customers
        assert changed_ids(known, ["1001", *others]) == [
            "2 customers of the log are not in the customer table, such as '00017'"
        ]


def test_numbers_of_weeks_that_begin_anew_each_year_are_refused(shop, tmp_path):
    name = shop[1].population.ids[0]
    plain = {"Customer No": name, "offer": "coffee", "channel": "app", "propensity": 0.5, "redeemed": 0,
             "unsubscribed": 0, "bought": 0, "margin": 0}  # fmt: skip
    changes = {"purchases": {**shop[2].purchases, "path": None}, "joined": None, "left": None}

    def of(old, *weeks):
        rows = [{**plain, "date": week} for week in weeks]
        return imported(shop, old, path=write_rows(tmp_path / "s.csv", rows), **changes)

    with pytest.raises(ValueError, match="row 3, column 'date': expected a whole week, .* 2026-W05, got 202601"):
        of(None, 52, 202601)
    found = of(None, 51, 52)
    assert of((found.log, found.calendar), 53).log.weeks == 3
    expected = "expected a week that goes on from 52, the log's last, or a send that the log has: numbers of weeks must"
    with pytest.raises(ValueError, match=f"row 2, column 'date': {expected} .*, got 1"):
        of((found.log, found.calendar), 1, 2)
    with pytest.raises(ValueError, match=f"row 4, column 'date': {expected} .*, got 1"):
        of((found.log, found.calendar), 51, 52, 1)
    year = of(None, 0, *range(3, 53))
    with pytest.raises(ValueError, match=f"row 4, column 'date': {expected} .*, got 1"):
        of((year.log, year.calendar), 51, 52, 1)  # a send of the log's week 1 seems to come late


def test_numbers_of_weeks_may_lie_long_before_the_logs_last_week(shop, tmp_path):
    """Sends that the log has, a late one of half a year, and those before a log that begins at `sends.start`."""
    name = shop[1].population.ids[0]
    plain = {"Customer No": name, "offer": "coffee", "channel": "app", "propensity": 0.5, "redeemed": 0,
             "unsubscribed": 0, "bought": 0, "margin": 0}  # fmt: skip
    changes = {"purchases": {**shop[2].purchases, "path": None}, "joined": None, "left": None}

    def of(old, *weeks, **more):
        rows = [{**plain, "date": week} for week in weeks]
        return imported(shop, old, path=write_rows(tmp_path / "s.csv", rows), **changes, **more)

    silent = of(None, 1, 2, until=60)  # nothing was sent for more than half a year
    again = of((silent.log, silent.calendar), 1, 2)
    assert not again.is_changed and "2 of 2 sends are in the log already: left out" in again.warnings
    late = of((silent.log, silent.calendar), 1, 2, 34)
    assert late.log.offer[33].any() and any("such as row 4: added" in x for x in late.warnings)
    started = of(None, 1, 2, 40, 41, start=40)
    longer = of((started.log, started.calendar), 1, 2, 40, 41, 70, start=40)
    assert longer.log.weeks == 31 and "2 of 5 sends lie before the log's first week: left out" in longer.warnings


def test_late_sends_to_customers_whom_the_log_does_not_have_then_are_counted(shop, tmp_path):
    """The table has the customer from the second import on: the sends of the log's weeks have no place in it."""
    rows = rows_of(shop[0], "sends")
    found = imported(shop)
    k = found.log.ids.index(rows[0]["Customer No"])
    of_customer = [row for row in rows if row["Customer No"] == rows[0]["Customer No"]]
    second = sorted(row["date"] for row in of_customer)[1]
    first = found.log.first.copy()
    first[k] = (dt.date.fromisoformat(second) - dt.date(2026, 1, 5)).days // 7
    path = tmp_path / "log.parquet"
    send_log.write(path, replace(found.log, first=first), found.calendar, *names_of(shop[1]))
    later = imported(shop, send_log.read(path, *names_of(shop[1])))
    n = len(rows)
    assert f"1 of {n:,} sends lie in weeks in which the customer is not in the log: left out" in later.warnings
    assert f"{n - 1:,} of {n:,} sends are in the log already: left out" in later.warnings
    assert not any("added" in x for x in later.warnings)


def test_the_first_row_that_repeats_a_cell():
    rng = random.Random(0)
    for _ in range(200):
        keys = [rng.randrange(12) for _ in range(rng.randrange(1, 9))]
        expected = next(((k, keys[:k].index(x)) for k, x in enumerate(keys) if x in keys[:k]), None)
        found = second_of_a_cell(np.array(keys))
        assert (found and found[0]) == (expected and expected[0])
        if found:
            assert keys[found[0]] == keys[found[1]] and found[1] < found[0]


def test_customers_whom_the_table_lacks_are_left_out_however_many_a_week(shop, tmp_path):
    rows = rows_of(shop[0], "sends")
    unknown = [{**rows[0], "Customer No": f"nobody {k}"} for k in range(3)]
    found = imported(shop, path=write_rows(tmp_path / "s.csv", rows + unknown))
    assert any("3 of" in x and "went to customers whom the customer table lacks" in x for x in found.warnings)


def one_cell(log: CustomerWeeks, **changes) -> Rows:
    """Rows of customer 0 in week 1, all columns alike but `changes`."""
    count = max(len(x) for x in changes.values())
    default = {"offer": 1, "channel": 0, "propensity": 0.5, "bought": False, "redeemed": False, "margin": 0.0}
    values = {"customer": 0, "week": 1, "unsubscribed": False, **default, **changes}
    return Rows(**{name: np.broadcast_to(np.asarray(x), count).copy() for name, x in values.items()})


def test_a_redemption_is_counted_of_the_weeks_decision_alone():
    log = CustomerWeeks.empty(("a",), 3)
    put_sends(log, one_cell(log, offer=[2, 1], bought=[False, True], redeemed=[False, True], margin=[0.0, 5.0]))
    assert log.offer[1, 0] == 2 and not log.redeemed[1, 0] and log.bought[1, 0] and log.margin[1, 0] == 5.0


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("opts_out", [False, True])
def test_what_comes_later_of_several_sends_counts_as_if_it_had_come_at_once(channel, opts_out):
    """The second send of the week has the decision's offer, through its channel or another."""
    at_once, later = CustomerWeeks.empty(("a",), 3), CustomerWeeks.empty(("a",), 3)
    sent = {"offer": [2, 2], "channel": [0, channel]}
    known = one_cell(at_once, **sent, redeemed=[False, True], unsubscribed=[False, opts_out])
    put_sends(at_once, known)
    put_sends(later, one_cell(later, **sent))
    put_later_outcomes(later, known)
    assert later.has_equal_cells(at_once)
    assert bool(later.redeemed[1, 0]) == (channel == 0) and bool(later.unsubscribed[1, 0]) == opts_out
    nothing = CustomerWeeks.empty(("a",), 3)
    put_later_outcomes(nothing, known)  # of a send that the log lacks
    assert nothing.has_equal_cells(CustomerWeeks.empty(("a",), 3))


def test_a_purchase_on_a_sends_row_that_comes_later_counts_as_if_it_had_come_at_once():
    at_once, later = CustomerWeeks.empty(("a",), 3), CustomerWeeks.empty(("a",), 3)
    whole = one_cell(at_once, bought=[True], redeemed=[True], margin=[20.0])
    put_sends(at_once, whole)
    put_sends(later, one_cell(later, bought=[False]))
    for _ in range(2):  # a third export changes nothing
        put_later_outcomes(later, whole)
        assert later.has_equal_cells(at_once) and later.margin[1, 0] == 20.0
    put_later_outcomes(later, one_cell(later, bought=[True], redeemed=[True], margin=[25.0]))  # the week went on
    assert later.margin[1, 0] == 25.0


@pytest.mark.parametrize("margins", [[12.0, 12.0], [0.0, 12.0], [-3.0, -3.0]])
def test_the_margin_of_a_week_with_several_rows_is_the_weeks_not_the_rows_together(margins):
    log = CustomerWeeks.empty(("a",), 3)
    bought = [x != 0 for x in margins]
    put_sends(log, one_cell(log, offer=[1, 2], bought=bought, margin=margins))
    assert log.margin[1, 0] == margins[1] and log.bought[1, 0]


def test_purchases_of_a_table_of_their_own_add_up():
    log = CustomerWeeks.empty(("a",), 3)
    week = np.array([1, 1, 2])
    put_purchases(log, Rows.of_purchases(np.zeros(3, dtype=np.int64), week, np.array([5.0, 7.0, -2.0])))
    assert log.margin[:, 0].tolist() == [0, 12, -2] and log.bought[:, 0].tolist() == [False, True, False]


def test_one_row_without_an_offer_changes_nobody_elses_stay(shop, tmp_path):
    """A message that was suppressed: the customers who were never written to stay in the log."""
    rows = rows_of(shop[0], "sends")
    silent = next(k for k, row in enumerate(rows) if row["date"] > "2026-03-01")
    suppressed = {**rows[silent], "offer": "", "channel": "", "propensity": "0.5", "redeemed": 0, "unsubscribed": 0}
    path = write_rows(tmp_path / "s.csv", [*rows[:silent], suppressed, *rows[silent + 1 :]])
    changes = {"joined": None, "left": None}
    whole, found = imported(shop, **changes), imported(shop, **changes, path=path)
    np.testing.assert_array_equal(found.log.first, whole.log.first)
    np.testing.assert_array_equal(found.log.last, whole.log.last)
    assert (found.log.first == 0).all()
    listed = imported(shop, **changes, path=path, lists_silence=True).log
    sent = [name for name in listed.ids if any(row["Customer No"] == name for row in rows)]
    assert (listed.last >= listed.first).sum() == len(sent) < len(listed.ids)


# ── money ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("trips", [0.0, 0.5])
@pytest.mark.parametrize("price", [1.0, 3.0])
def test_at_price_one_net_is_profit_which_is_margin_less_spend(shop, tmp_path, price, trips):
    """A purchase of 10.00 with a coffee of 1.50 through the app: 8.50; each unit of price more takes 1.50 more."""
    _, env, sends = shop
    name = env.population.ids[int(env.population.customers["train"][0])]
    row = {"Customer No": name, "date": 1, "offer": "coffee", "channel": "app", "propensity": 0.5, "bought": 1,
           "redeemed": 1, "margin": 10, "unsubscribed": 0}  # fmt: skip
    found = imported(
        shop,
        path=write_rows(tmp_path / "s.csv", [row]),
        purchases={**sends.purchases, "path": None},
        joined=None,
        left=None,
        price=price,
        trips=trips,
    )
    path = tmp_path / "log.parquet"
    send_log.write(path, found.log, found.calendar, *names_of(env))
    decision = env.read_log(str(path), "train")
    assert len(decision) == 1
    assert decision.gross_reward.item() == pytest.approx(8.5 + trips)
    assert decision.net_reward.item() == pytest.approx(10 + trips - price * 1.5)
    seen = env.decode_price(decision.obs).item()  # a policy observes λ, and knows no lower one than in training
    assert seen == pytest.approx(max(price - 1, env.price_range[0]), rel=1e-4)


# ── a customer table of today ───────────────────────────────────────────────────────────────────────────────────────
def test_who_was_sent_what_the_rules_forbid_now_could_have_been_sent_something_in_silent_weeks(shop, tmp_path):
    """All consents are withdrawn after the log: silent weeks keep the propensity with which they were drawn."""
    _, env, _ = shop
    found = imported(shop)
    path = tmp_path / "log.parquet"
    send_log.write(path, found.log, found.calendar, *names_of(env))
    before = env.read_log(str(path), "train")
    columns = [*dict.fromkeys(before.unit[before.action > 0].tolist())]
    who, quiet = columns[0], next(k for k in before.unit.unique().tolist() if k not in columns)
    now = copy(env)
    now.contact_rules = copy(env.contact_rules)
    policy_of = env.contact_rules.policy

    def forbidding(sample):
        policy = policy_of(sample)
        mask = policy.static_mask.clone()
        mask[torch.isin(sample.row, torch.tensor([who, quiet])), 1:] = False
        return replace(policy, static_mask=mask)

    now.contact_rules.policy = forbidding
    after = now.read_log(str(path), "train")
    its = (after.unit == who) & (after.action == 0)
    np.testing.assert_array_equal(after.propensity[its], before.propensity[its])
    assert (after.propensity[its] < 1).any() and (after.action_mask[:][its].sum(1) == 1).all()
    assert (after.propensity[after.unit == quiet] == 1).all()  # nothing says that this customer could have been sent


def test_dates_of_the_customer_table_that_come_after_the_log_began_are_warned_of(shop, tmp_path):
    _, env, _ = shop
    found = imported(shop)
    given = copy(env.population.given)
    start = np.datetime64("2026-01-05")
    last_visit = np.full(len(given.ids), start + 3)
    last_visit[:4] = start + 100
    given.dates = {"Last Visit": last_visit, "Left": last_visit}
    (said,) = later_features(given, ["Age", "Last Visit"], found.log, found.calendar)
    assert said.startswith("column 'Last Visit' of the customer table is a feature, and for ")
    there = sum(found.log.first[found.log.ids.index(name)] < 14 for name in given.ids[:4])
    assert f"for {there} customers" in said
    given.dates = {"Last Visit": np.full(len(given.ids), start)}
    assert later_features(given, ["Last Visit"], found.log, found.calendar) == []


def test_a_listed_week_without_a_propensity_is_warned_of_by_its_row(shop, tmp_path):
    rows = rows_of(shop[0], "sends")
    unsent = {**rows[5], "offer": "", "channel": "", "propensity": "", "redeemed": 0, "unsubscribed": 0}
    found = imported(shop, path=write_rows(tmp_path / "s.csv", [*rows[:5], unsent, *rows[6:]]))
    assert any(
        x.startswith("1 rows without a send have no propensity, such as row 7: they get") for x in found.warnings
    )
    assert not any("such as row" in x for x in imported(shop).warnings)


def test_who_joins_in_the_week_that_an_export_cut_off_is_there_from_that_week():
    old = CustomerWeeks.empty(("a",), 3)
    old.last[:] = 2
    log = old.extended(("a", "b", "c"), 5)
    rows = one_cell(log, customer=[1, 2], week=[2, 3], offer=[1, 1])
    stays = staying(log, 3, rows, None, None, **MAY_BE_SILENT)
    assert stays.first.tolist() == [0, 2, 3] and stays.last.tolist() == [4, 4, 4]
    unknown = np.full(3, np.nan)
    assert staying(log, 3, rows, unknown, None, **MAY_BE_SILENT).first.tolist() == [0, 2, 3]
    absent = staying(
        log.extended(("a", "b", "c", "d"), 5),
        3,
        rows,
        np.full(4, np.nan),
        None,
        in_table=np.ones(4, dtype=bool),
        has_everyone=False,
        lists_silence=False,
    )
    assert (absent.last < absent.first)[3]  # in no row, and no table says of purchases that there were none


def test_a_date_of_leaving_that_comes_late_takes_no_send_out_of_the_log():
    old = CustomerWeeks.empty(("a", "b"), 6)
    old.last[:] = 5
    old.offer[4, 0] = 1
    left = np.array([2.0, 2.0])
    nothing = one_cell(old, customer=[0]).take(slice(0, 0))
    stays = staying(old.extended(("a", "b"), 8), 6, nothing, None, left, **MAY_BE_SILENT)
    assert stays.last.tolist() == [4, 2]


def test_who_left_is_in_the_log_again_once_the_table_has_no_earlier_date_of_leaving():
    """By the log all left after week 0; the import is of weeks 3 and 4."""
    old = CustomerWeeks.empty(("corrected", "leaves now", "gone", "not in the table", "a message"), 3)
    nan = np.nan
    rows = one_cell(old, customer=[4], week=[4], offer=[1])
    left = np.array([nan, 3.0, 0.0, nan, nan])
    keys = {**MAY_BE_SILENT, "in_table": np.array([True, True, True, False, False])}
    stays = staying(replace(old, last=old.last + 1).extended(old.ids, 5), 3, rows, None, left, **keys)
    assert stays.first.tolist() == [0] * 5 and stays.last.tolist() == [4, 3, 0, 0, 4]
    without = staying(replace(old, last=old.last + 1).extended(old.ids, 5), 3, rows, None, None, **keys)
    assert without.last.tolist() == [0, 0, 0, 0, 4]  # no table says who is there


def test_a_planned_week_has_the_plans_propensities_and_a_second_import_changes_nothing(shop):
    _, env, sends = shop
    log = imported(shop).log
    week = log.weeks - 1
    there = np.flatnonzero(log.is_present(week))
    offer, channel = (x[week, there].astype(np.int64) for x in (log.offer, log.channel))
    offer[0] = 3 - offer[0] if offer[0] else 1  # not what was sent
    ids = [log.ids[k] for k in there]
    plan = PlannedWeek("week.parquet", week, ids, offer, channel, np.full(len(there), 0.25), rl_arm(there))
    first = instantiate(sends)(env, None, iter([plan]))
    expected = log.propensity.copy()
    expected[week, there] = [np.nan, *[0.25] * (len(there) - 1)]
    np.testing.assert_array_equal(first.log.propensity, expected)
    again = instantiate(sends)(env, (first.log, first.calendar), iter([plan]))
    assert not again.is_changed and again.planned == first.planned and len(first.planned) == 1


def test_who_could_be_sent_nothing_is_not_left_alone_of_an_arm_that_draws_no_lot(shop, tmp_path):
    """By turns the customers are in the arms rl and bau; a week later something is sent without a plan."""
    _, env, sends = shop
    log = imported(shop).log
    last = log.weeks - 1
    arm = np.where(np.arange(len(log.ids)) % 2, ARMS.index("bau"), ARMS.index("rl"))
    offer, channel = (x[last - 1].astype(np.int64) for x in (log.offer, log.channel))
    chance = np.where(arm == ARMS.index("bau"), 1.0, 0.25)
    plan = PlannedWeek("week.parquet", last - 1, list(log.ids), offer, channel, chance, arm)
    assert log.offer[last].any()
    found = instantiate(sends, propensity=None, propensity_of_nothing=0.5)(env, None, iter([plan]))
    path = tmp_path / "log.parquet"
    send_log.write(path, found.log, found.calendar, *names_of(env))
    data = env.read_log(str(path), "train")
    week, forced = 12 * data.episode + data.step, data.action_mask.sum(1) == 1
    by_arm = {name: (week == last - 1) & (data.policy == k) for k, name in enumerate(data.policies)}
    assert (by_arm["bau"] & forced).any() and (by_arm["rl"] & forced).any()
    assert data.propensity[by_arm["bau"]].isnan().all()
    assert (data.propensity[by_arm["rl"] & forced] == 1).all()
    assert (data.propensity[by_arm["rl"] & ~forced] == 0.25).all()
    assert ((week == last) & forced).any() and data.propensity[week == last].isnan().all()
    assert (data.propensity[(week < last - 1) & forced] == 1).all()


def test_a_week_between_plans_that_lacks_one_is_warned_of_and_gets_no_propensity_of_nothing(shop):
    _, env, sends = shop
    log = imported(shop).log
    last = log.weeks - 1
    skipped = next(week for week in range(last - 1, 0, -1) if log.offer[week].any())

    def plan_of(week):
        offer, channel = (x[week].astype(np.int64) for x in (log.offer, log.channel))
        return PlannedWeek(
            f"week={week}.parquet", week, list(log.ids), offer, channel, np.full(len(log.ids), 0.25), rl_arm(log.ids)
        )

    plans = [plan_of(week) for week in (*range(skipped), *range(skipped + 1, last + 1))]
    found = instantiate(sends)(env, None, iter(plans))
    assert [x for x in found.warnings if "no plan" in x] == [
        f"week {skipped} has sends and no plan: its decisions have only the propensities that the sends' file gives"
    ]
    without = log.is_present(skipped) & (log.offer[skipped] == 0)
    sent = log.offer[skipped] > 0
    assert without.any() and np.isnan(found.log.propensity[skipped, without]).all()
    np.testing.assert_array_equal(found.log.propensity[skipped, sent], log.propensity[skipped, sent])
    from_then = instantiate(sends)(env, None, iter(plans[skipped:]))  # the weeks before the first plan are as ever
    assert not [x for x in from_then.warnings if "no plan" in x]
    np.testing.assert_array_equal(from_then.log.propensity[: skipped + 1], log.propensity[: skipped + 1])
