"""A shop's campaigns as a log, row by row, and one-line errors of a bad file."""

from __future__ import annotations

import csv

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from configs import composed
from envs.offers.logs.panel import to_panel
from envs.offers.logs.schema import COLUMNS
from rlcore.offline.log_files import read_log, write_log
from scripts import example_shop

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A made-up shop of 300 customers.

    The fixture has its folder, the environment of its customers, catalogue and rules, and the reader of its campaigns.
    """
    folder = tmp_path_factory.mktemp("shop")
    example_shop.write_shop(folder, 300, 0)
    config = composed(
        "experiment=shop", "campaigns=shop", f"hydra.searchpath=[file://{folder}]", name="import_campaigns"
    )
    return folder, instantiate(config.env, _convert_="all")(torch.device("cpu"), 0), config.campaigns


def rows_of(folder):
    with open(folder / "campaigns.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def broken(folder, tmp_path, change):
    """The shop's campaigns with rows changed."""
    rows = rows_of(folder)
    change(rows)
    with open(tmp_path / "c.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return str(tmp_path / "c.csv")


def test_a_log_says_what_the_file_does(shop, tmp_path):
    folder, env, campaigns = shop
    logs = instantiate(campaigns)(env, 0)
    rows = {(row["Customer No"], int(row["week"])): row for row in rows_of(folder)}
    assert sum(map(len, logs.values())) == len(rows) == 300 * 12
    names, channels = env.world.catalogue.offers, env.world.catalogue.channels
    value = dict(zip(names, env.world.catalogue.value.tolist()))
    cost = dict(zip(channels, env.world.catalogue.cost.tolist()))
    for split, log in logs.items():
        assert set(log.unit.tolist()) == set(env.population.customers[split].tolist())
        for k in range(0, len(log), 7):
            row = rows[env.population.ids[log.unit[k]], int(log.step[k]) + 1]
            offer, channel = divmod(int(log.action[k]), len(channels))
            assert (names[offer] if offer else "") == row["offer"] and (
                not offer or channels[channel] == row["channel"]
            )
            assert log.outcomes["trips"][k] == float(row["bought"]) and log.outcomes["redeemed"][k] == float(
                row["redeemed"]
            )
            spend = cost[row["channel"]] + value[row["offer"]] * float(row["redeemed"]) if offer else 0.0
            assert log.cost[k].item() == pytest.approx(spend, abs=1e-6)
            assert log.reward[k].item() == pytest.approx(
                float(row["margin"]) + 0.5 * float(row["bought"]) - spend, abs=1e-4
            )
            assert log.propensity[k].item() == pytest.approx(float(row["propensity"]), abs=1e-6)
        write_log(tmp_path / f"{split}.parquet", [log])
        # whole, and of the environment's columns
        again = to_panel(read_log(tmp_path / f"{split}.parquet", COLUMNS), env, "log")
        assert again.logged.all() and (again.margin[again.bought] > 0).all()
        for a, b in zip(again.state, again.next_state):
            assert (a[1:] == b[:-1]).all()
        unsubscribed = (again.state.status[:-1] == 0) & (again.state.status[1:] == 1)
        expected = sum(
            rows[env.population.ids[c], t]["unsubscribed"] == "1" for c in again.customer.tolist() for t in range(1, 12)
        )
        assert int(unsubscribed.sum()) == expected and (again.num_allowed[again.state.status == 1] == 1).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows[5].update({"Customer No": "K1"}), "row 7, column 'Customer No': expected one of K100000"),
        (lambda rows: rows[5].update(offer="tea", channel="app"), "row 7, column 'offer': expected one of coffee"),
        (
            lambda rows: rows[5].update(offer="coffee", channel=""),
            "row 7, column 'channel': expected a channel where there is an",
        ),
        (lambda rows: rows[5].update(week="13"), "row 7, column 'week': expected a week from 1 to 12"),
        (
            lambda rows: rows[5].update(week="5"),
            "row 7, column 'week': expected one row a customer and week, row 6 is of",
        ),
        (lambda rows: rows.pop(5), "customer 'K100000' has no row of week 6"),
        (lambda rows: rows[5].update(bought="2"), "row 7, column 'bought': expected 0 or 1"),
        (
            lambda rows: rows[5].update(bought="0", redeemed="1"),
            "row 7, column 'redeemed': expected 1 only of an offer",
        ),
        (lambda rows: rows[5].update(margin=""), "row 7, column 'margin': expected a number, got nothing"),
        (lambda rows: [row.pop("margin") for row in rows], "no column 'margin' (campaigns.margin)"),
        (
            lambda rows: rows[5].update(bought="1", margin="1e39"),
            "row 7, column 'margin': expected a number that float32",
        ),
        (
            lambda rows: rows[5].update(bought="0", redeemed="0", margin="4"),
            "row 7, column 'margin': expected 0 without",
        ),
        *(
            (
                lambda rows, p=p: rows[5].update(propensity=p),
                f"row 7, column 'propensity': expected a probability above 0, at most 1, or nothing, got {p}",
            )
            for p in ("0", "-0.3", "1.7")
        ),
    ],
)
def test_what_is_wrong_is_named(shop, tmp_path, change, message):
    folder, env, campaigns = shop
    with pytest.raises((ValueError, InstantiationException)) as caught:
        instantiate(campaigns, path=broken(folder, tmp_path, change))(env, 0)
    told = str(caught.value.__cause__ or caught.value)
    assert message in told and "\n" not in told


def test_a_file_without_a_decision_says_so(shop, tmp_path):
    folder, _, campaigns = shop
    (tmp_path / "c.csv").write_text(";".join(rows_of(folder)[0]) + "\n")
    with pytest.raises(InstantiationException) as caught:
        instantiate(campaigns, path=str(tmp_path / "c.csv"))
    assert "expected decisions, got no row" in str(caught.value.__cause__)


def test_no_messages_to_who_has_left(shop, tmp_path):
    folder, env, campaigns = shop

    def resume(rows):
        k = next(k for k, row in enumerate(rows) if row["unsubscribed"] == "1" and row["week"] < "9")
        rows[k + 1].update(offer="coffee", channel="letter")

    with pytest.raises(ValueError, match="column 'offer': expected nothing, for the customer had unsubscribed"):
        instantiate(campaigns, path=broken(folder, tmp_path, resume))(env, 0)
