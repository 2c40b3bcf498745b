"""The made-up shop: its files keep the shop's rules, its customers the world's equations, and its truth is theirs."""

from __future__ import annotations

import csv
import datetime as dt
import math
import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from envs.offers.example_shop.yaml_files import config_files
from scripts import example_shop

pytest.importorskip("pyarrow")
ROOT = Path(__file__).parents[2]
MONDAY = dt.date(2026, 1, 5)
CPU = torch.device("cpu")
COFFEE = 1.5  # what a coffee costs


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A made-up shop of 1,500 customers: its folder."""
    folder = tmp_path_factory.mktemp("shop")
    example_shop.write_shop(folder, 1500, 3)
    return folder


def rows_of(folder, name):
    with open(folder / f"{name}.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def week_of(day: str) -> int:
    return (dt.date.fromisoformat(day) - MONDAY).days // 7


def stay_of(row) -> range:
    """Return the weeks in which a customer is there."""
    return range(max(0, week_of(row["Joined"])), week_of(row["Left"]) + 1 if row["Left"] else 60)


def test_sends_keep_the_shops_rules(shop):
    """Each send is checked against rules that are written out here, for a customer who is there and subscribed."""
    customers = {row["Customer No"]: row for row in rows_of(shop, "next_quarter")}
    sent, left = {}, {}
    for row in rows_of(shop, "sends") + rows_of(shop, "sends_4"):
        who, week = customers[row["Customer No"]], week_of(row["date"])
        assert week in stay_of(who) and row["Customer No"] not in left
        if row["offer"] == "five_off":
            assert who["Tier"] != "basic" and float(who["Basket"]) >= 20
        if row["offer"] == "wine_tasting":
            assert int(who["Age"]) >= 18
        assert row["channel"] == "letter" or "yes" == who[{"app": "App Installed"}.get(row["channel"], "Newsletter")]
        weeks = sent.setdefault(row["Customer No"], [])
        weeks.append(week)
        assert sum(week - 4 < x <= week for x in weeks) <= 2
        if row["unsubscribed"] == "1":
            left[row["Customer No"]] = week
    assert len(left) > 20 and len(sent) > 1000
    weeks = {week_of(row["date"]) for row in rows_of(shop, "sends")}
    assert weeks < set(range(48)) and len(weeks) > 36  # some weeks are gaps


def test_customers_come_and_go_and_months_follow(shop):
    table, later = rows_of(shop, "customers"), rows_of(shop, "next_quarter")
    assert [row["Customer No"] for row in later[: len(table)]] == [row["Customer No"] for row in table]
    assert len(table) == 1500 and len(later) == 1800
    joined = [week_of(row["Joined"]) for row in later]
    assert max(joined[:1500]) < 48 <= min(joined[1500:]) and 0.2 < sum(x > 0 for x in joined[:1500]) / 1500 < 0.4
    stays = {row["Customer No"]: stay_of(row) for row in later}
    assert sum(bool(row["Left"]) for row in later) > sum(bool(row["Left"]) for row in table) > 100
    months = [rows_of(shop, f"purchases_{k}") for k in (2, 3, 4)]
    assert months[1][: len(months[0])] == months[0] and months[2][: len(months[1])] == months[1]
    bought = {}
    for row in rows_of(shop, "purchases") + months[2]:
        week = week_of(row["date"])
        assert week in stays[row["Customer No"]] and float(row["margin"]) >= 0
        bought.setdefault(row["Customer No"], set()).add(week)
    for row in later:  # an account is closed at a quarter's end only without a purchase in the whole quarter
        stay = stays[row["Customer No"]]
        silent = [
            quarter
            for quarter in range(5)
            if set(range(12 * quarter, 12 * quarter + 12)) <= set(stay)
            and not bought.get(row["Customer No"], set()) & set(range(12 * quarter, 12 * quarter + 12))
        ]
        assert not silent or stay[-1] == 12 * silent[0] + 11


def test_the_first_week_follows_the_worlds_equations(shop):
    """Purchases of those who got nothing in the first week, against b = α + κ·h/5 − ξ·d/2 written out here."""
    truth = {row["customer"]: {key: float(x) for key, x in row.items() if key != "customer"} for row in
             rows_of(shop / "truth", "customers")}  # fmt: skip
    sent = {row["Customer No"] for row in rows_of(shop, "sends") if row["date"] == str(MONDAY)}
    bought = {row["Customer No"] for row in rows_of(shop, "purchases") if week_of(row["date"]) == 0}
    expected = variance = found = 0.0
    for row in rows_of(shop, "customers"):
        if 0 not in stay_of(row) or row["Customer No"] in sent:
            continue
        c = truth[row["Customer No"]]
        chances = [
            1 / (1 + math.exp(-(c["alpha"] + c["kappa"] * h / 5 - c["xi"] * d / 2))) for h in range(6) for d in range(2)
        ]
        p = sum(chances) / 12
        expected, variance = expected + p, variance + p * (1 - p)
        found += row["Customer No"] in bought
    assert abs(found - expected) < 4 * variance**0.5 and variance > 50


def test_the_mailing_is_randomised_and_its_discounts_are_what_was_paid(shop):
    with open(shop / "test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    mailed = [row for row in rows if row["arm"] == "letter"]
    assert len(rows) > 300 and abs(len(mailed) - len(rows) / 2) < 2 * len(rows) ** 0.5
    for row in rows:
        paid = {0.0, COFFEE} if row["arm"] == "letter" and row["bought"] == "1" else {0.0}
        assert float(row["discount"]) in paid and (float(row["margin"]) > 0) == (row["bought"] == "1")
    assert {float(row["discount"]) for row in mailed} == {0.0, COFFEE}


def test_margins_of_the_mailing_tell_nobodys_true_parameter(shop):
    with open(shop / "truth" / "customers.csv", newline="", encoding="utf-8-sig") as file:
        truth = {row["customer"]: float(row["margin"]) for row in csv.DictReader(file, delimiter=";")}
    with open(shop / "test.csv", newline="") as file:
        bought = [row for row in csv.DictReader(file) if row["bought"] == "1"]
    same = [abs(float(row["margin"]) - truth[row["customer"]]) < 0.01 for row in bought]
    assert len(bought) > 30 and sum(same) < 0.1 * len(same)


def population(folder, *overrides):
    config = composed("experiment=shop", f"hydra.searchpath=[file://{folder}]", *overrides)
    return instantiate(config.env, _convert_="all")(CPU, 0).population


def test_a_population_has_the_parameters_of_a_file(shop, tmp_path):
    path = shop / "truth" / "customers.csv"
    found = population(shop, f"env.population.parameters={path}")
    truth = {row["customer"]: row for row in rows_of(shop / "truth", "customers")}
    sample = found.draw(200, torch.Generator().manual_seed(1), "test")
    for k, row in enumerate(sample.row.tolist()):
        expected = truth[found.ids[row]]
        assert sample.customers.kappa[k].item() == float(expected["kappa"])
        assert sample.customers.omega[2, k].item() == float(expected["omega.letter"])
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    short = tmp_path / "short.csv"
    short.write_text("\n".join(lines[:40]))
    with pytest.raises(Exception, match="short.csv: no parameters of customer 'K100039'") as caught:
        population(shop, f"env.population.parameters={short}")
    assert "\n" not in str(caught.value.__cause__ or caught.value)
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("\n".join([lines[0], lines[1].replace(lines[1].split(";")[2], "", 1), *lines[2:]]))
    with pytest.raises(Exception, match="wrong.csv: row 2, column 'kappa': expected a number"):
        population(shop, f"env.population.parameters={wrong}")


def test_the_page_on_a_shops_files_shows_what_the_made_up_shop_writes():
    page = (ROOT / "docs" / "shop_files.md").read_text()
    shown = dict(re.findall(r"`shop/([\w/]+\.yaml)`:\n\n```yaml\n(.*?)```", page, re.DOTALL))
    written = config_files("shop")
    assert set(shown) == {name for name in written if "shop_" not in name}
    assert all(shown[name] == written[name] for name in shown)
