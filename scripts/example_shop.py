"""Write a made-up shop into a folder, with customers, sends, purchases and configuration.

Usage:

    python scripts/example_shop.py FOLDER
    python scripts/train.py -cd FOLDER experiment=shop
"""

from __future__ import annotations

import argparse
import datetime
import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import OmegaConf

from envs.configuration import CONF
from envs.offers.populations.base import hash_uniform

SEASON = OmegaConf.load(CONF / "env/world/full.yaml").season
FIRST_MONDAY = datetime.date(2026, 1, 5)
WEEKS, LATER_WEEKS = 12, 4  # of the first files, and of those of the month that follows
SENDS = ("date", "Customer No", "offer", "channel", "propensity", "redeemed", "unsubscribed")
PURCHASES = ("Customer No", "date", "margin")
SALT, HELD = 7, 0.05  # salt and share of the holdout
VALUES = {"coffee": 1.5, "five_off": 5.0, "wine_tasting": 4.0}
SEEN = {"app": 0.20, "newsletter": 0.25, "letter": 0.60}

CONFIG = {
    "env/population/shop.yaml": """\
defaults:
  - customer_table
  - _self_
path: {folder}/customers.csv
separator: ";"
id: Customer No
rate: Weekly Rate
spend: Basket
margin: Gross Margin
text: [Postcode]
ignore: [Postcode, Age]  # too many, and none of a discount's business; rules may read them all the same
""",
    "env/catalogue/shop.yaml": """\
_target_: envs.offers.world.catalogue.Catalogue.build
offers:
  coffee: {{value: 1.5}}
  five_off: {{value: 5.0}}
  wine_tasting: {{value: 4.0}}
channels:
  app: {{cost: 0.00, attention: 0.20, opt_out: 0.004, fatigue_steps: 1}}
  newsletter: {{cost: 0.01, attention: 0.25, opt_out: 0.003, fatigue_steps: 1}}
  letter: {{cost: 0.90, attention: 0.60, opt_out: 0.001, fatigue_steps: 1}}
""",
    "env/contact_rules/shop.yaml": """\
defaults:
  - none
  - _self_
eligible:
  five_off: Tier in ['gold', 'silver'] and Basket >= 20
age:
  column: Age
  limits: {{wine_tasting: [18, null]}}
consent:
  app: "`App Installed` == 'yes'"
  newsletter: "`Newsletter` == 'yes'"
caps:
  - {{weeks: 4, contacts: 2}}
holdout: {{share: 0.05, salt: 7}}
""",
    "experiment/shop.yaml": """\
# @package _global_
defaults:
  - override /env/population: shop
  - override /env/catalogue: shop
  - override /env/contact_rules: shop
""",
    "sends/shop.yaml": """\
defaults:
  - default
  - _self_
path: {folder}/sends.csv
separator: ";"
customer: Customer No
propensity_of_nothing: 0.5
purchases:
  path: {folder}/purchases.csv
  separator: ";"
  customer: Customer No
""",
}


def customers(n: int, seed: int) -> list[dict]:
    """Draw rows with the columns of this shop's export; some ages are missing."""
    rng = random.Random(seed)
    rows = []
    for k in range(n):
        tier = rng.choices(("gold", "silver", "basic"), (1, 3, 6))[0]
        rate = rng.betavariate(*{"gold": (6, 3), "silver": (4, 5), "basic": (2, 7)}[tier])
        rows.append(
            {
                "Customer No": f"K{100000 + k}",
                "Weekly Rate": f"{rate:.4f}",
                "Basket": f"{rng.lognormvariate(3.6, 0.5):.2f}",
                "Gross Margin": f"{rng.uniform(0.2, 0.4):.3f}",
                "Age": "" if rng.random() < 0.04 else str(rng.randint(16, 88)),
                "Tier": tier,
                "Postcode": f"{rng.randrange(1000, 99999):05d}",
                "Region": rng.choices(("north", "south", "east", "islands"), (50, 30, 19, 1))[0],
                "Visits": str(round(52 * rate * rng.uniform(1.0, 1.6))),
                "Complaints": str(min(rng.getrandbits(2), 2)),
                "App Installed": rng.choice(("yes", "no")),
                "Newsletter": rng.choices(("yes", "no"), (7, 3))[0],
            }
        )
    return rows


def weeks_of_customers(rows: list[dict], seed: int) -> list[dict]:
    """Draw a season and a month of weeks that keep the shop's rules: a message in half of them, any that is allowed.

    Customers respond by tier, region and visits, and tire of messages; their response differs from the twin's
    equations.
    """
    rng, log = random.Random(seed), []
    held = (hash_uniform([row["Customer No"] for row in rows], SALT) < HELD).tolist()
    for row, kept in zip(rows, held):
        subscribed, liking = True, rng.gauss(0, 0.3)
        sent: list[bool] = []
        base = math.log(max(float(row["Weekly Rate"]), 0.01) / max(1 - float(row["Weekly Rate"]), 0.01))
        keen = {"gold": 0.4, "silver": 0.7, "basic": 1.0}[row["Tier"]] + 0.3 * (row["Region"] == "north") + liking
        offers = [
            "coffee",
            *(["five_off"] if row["Tier"] != "basic" and float(row["Basket"]) >= 20 else []),
            *(["wine_tasting"] if row["Age"] and int(row["Age"]) >= 18 else []),
        ]
        channels = [
            *(["app"] if row["App Installed"] == "yes" else []),
            *(["newsletter"] if row["Newsletter"] == "yes" else []),
            "letter",
        ]
        pairs = [(offer, channel) for offer in offers for channel in channels]
        for week in range(1, WEEKS + LATER_WEEKS + 1):
            index = SEASON[(week - 1) % len(SEASON)]
            free = subscribed and not kept and sum(sent[-3:]) < 2
            sends = free and rng.random() < 0.5
            offer, channel = rng.choice(pairs) if sends else ("", "")
            seen = sends and rng.random() < SEEN[channel] * 0.8 ** sum(sent[-4:])
            lift = keen * math.log1p(VALUES[offer]) if seen else 0.0
            bought = rng.random() < 1 / (1 + math.exp(-(base + lift + 2 * math.log(index))))
            redeemed = bought and seen and rng.random() < 0.7
            left = sends and rng.random() < 0.004 * (1 + sum(sent[-4:]))
            margin = (
                float(row["Basket"]) * float(row["Gross Margin"]) * rng.lognormvariate(-0.08, 0.4) if bought else 0.0
            )
            log.append(
                {
                    "Customer No": row["Customer No"],
                    "week": str(week),
                    "offer": offer,
                    "channel": channel,
                    "propensity": f"{(0.5 / len(pairs) if sends else 0.5) if free else 1.0:.6f}",
                    "bought": str(int(bought)),
                    "redeemed": str(int(redeemed)),
                    "margin": f"{margin:.2f}",
                    "unsubscribed": str(int(left)),
                }
            )
            subscribed, sent = subscribed and not left, [*sent, sends]
    return log


def sends_and_purchases(weeks: list[dict]) -> tuple[list[dict], list[dict]]:
    """Return the rows of the files that a shop has of its weeks: what was sent, and what was bought.

    Sends go out on Mondays; the day of a purchase depends on the week's number alone.
    """
    sends, purchases = [], []
    for row in weeks:
        monday = FIRST_MONDAY + datetime.timedelta(weeks=int(row["week"]) - 1)
        if row["offer"]:
            sends.append({**{key: row[key] for key in SENDS[1:]}, "date": str(monday)})
        if row["bought"] == "1":
            day = monday + datetime.timedelta(days=int(row["week"]) % 7)
            purchases.append({"Customer No": row["Customer No"], "date": str(day), "margin": row["margin"]})
    return sends, purchases


def next_quarter(n: int, seed: int) -> list[dict]:
    """Draw a later export of the table, in which three of ten customers are new."""
    return [row | {"Customer No": f"K{int(row['Customer No'][1:]) + 3 * n // 10}"} for row in customers(n, seed + 1)]


def write_table(path: Path, names: tuple[str, ...], rows: list[dict]) -> None:
    """Write rows as a CSV file with semicolons, Windows line ends and a byte-order mark."""
    lines = [";".join(names), *(";".join(row[name] for name in names) for row in rows)]
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode("utf-8-sig"))


def write_shop(folder: Path, n: int, seed: int) -> None:
    """Write customers, sends and purchases, a later month and quarter of them, and the configuration beside them."""
    table = customers(n, seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "customers.csv", tuple(table[0]), table)
    write_table(folder / "next_quarter.csv", tuple(table[0]), next_quarter(n, seed))
    weeks = weeks_of_customers(table, seed)
    for ending, is_later in (("", False), ("_2", True)):
        sends, purchases = sends_and_purchases([row for row in weeks if (int(row["week"]) > WEEKS) == is_later])
        write_table(folder / f"sends{ending}.csv", SENDS, sends)
        write_table(folder / f"purchases{ending}.csv", PURCHASES, purchases)
    for name, text in CONFIG.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.format(folder=folder))


def main() -> None:
    """Write the shop that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="example_shop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write into; made where it is missing")
    parser.add_argument("--customers", type=int, default=10_000, help="number of customers (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")
    arguments = parser.parse_args()
    if arguments.customers < 1:
        parser.error(f"--customers: expected at least 1, got {arguments.customers}")
    write_shop(arguments.folder, arguments.customers, arguments.seed)
    print(f"{arguments.folder}/: customers.csv, sends.csv, purchases.csv, later ones and {', '.join(CONFIG)}")


if __name__ == "__main__":
    main()
