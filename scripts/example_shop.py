"""Write a made-up shop into a folder: customers, a year of sends and purchases, an A/B test, e-mails, configuration.

Usage:

    python scripts/example_shop.py FOLDER
    python scripts/train.py -cd FOLDER experiment=shop

Customers respond by the world's equations. FOLDER/truth/ has their parameters, which no shop sees: to judge by only.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import random
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from hydra.utils import instantiate
from torch import Tensor

from envs.offers.example_shop.customers import customer_rows
from envs.offers.example_shop.life import Shop, Week, shipped
from envs.offers.example_shop.yaml_files import FIRST_MONDAY, config_files
from envs.offers.populations.true_parameters import parameter_table

YEAR = 48  # weeks of the first files: four quarters of twelve weeks
LATER_MONTHS = (52, 56, 60)  # weeks up to which the files of each later month go
JOINING = 0.3  # share of the customers who join in the course of the year
NEW = 5  # one new customer in the next quarter for so many old ones
LONGEST_STAY = 1800  # days before the first week that a customer may have joined
MAILS = 1.5  # a customer
SENDS = ("date", "Customer No", "offer", "channel", "propensity", "redeemed", "unsubscribed")
PURCHASES = ("Customer No", "date", "margin")


class MadeUp(NamedTuple):
    """A shop that has lived, and the rows of its customers."""

    rows: list[dict[str, str]]
    weeks: list[Week]
    shop: Shop
    test: list[dict[str, str]]


def make_up(n: int, seed: int, *, first_weeks: int, weeks: int) -> MadeUp:
    """Let a shop of n customers live through its first weeks, test a mailing, and go on with new customers too.

    `weeks` is the number of all its weeks.
    """
    new = max(n // NEW, 1)
    rows = customer_rows(0, n, seed, younger=False) + customer_rows(n, new, seed + 1, younger=True)
    rng = random.Random(seed)
    first = [rng.randrange(1, first_weeks) if rng.random() < JOINING else 0 for _ in range(n)]
    first += [rng.randrange(first_weeks, weeks) for _ in range(new)]
    shop = Shop(rows, torch.tensor(first), seed)
    lived = [shop.live() for _ in range(first_weeks)]
    test = rows_of_test(rows, *shop.mailing("coffee", "letter"))
    lived += [shop.live() for _ in range(weeks - first_weeks)]
    for row, joined in zip(rows, first):
        earlier = -rng.randrange(LONGEST_STAY)
        row["Joined"] = str(day(joined, rng.randrange(7)) if joined else FIRST_MONDAY + datetime.timedelta(earlier))
    return MadeUp(rows, lived, shop, test)


def day(week: int, weekday: int) -> datetime.date:
    """Return a day of a week of the shop's life."""
    return FIRST_MONDAY + datetime.timedelta(weeks=week, days=weekday)


def export(made: MadeUp, weeks: int) -> list[dict[str, str]]:
    """Return the customer table as it is after so many weeks: who has joined, and the date of who has left."""
    stay = made.shop.stay
    return [
        row | {"Left": str(day(last, 6)) if last < weeks else ""}
        for row, first, last in zip(made.rows, stay.first.tolist(), stay.last.tolist())
        if first < weeks
    ]


def sends_and_purchases(made: MadeUp, start: int, end: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Return the rows that the shop has of the weeks from `start` to before `end`; sends go out on Mondays."""
    rng = random.Random(seed)
    offers, channels = made.shop.catalogue.offers, made.shop.catalogue.channels
    sends, purchases = [], []
    for week in range(start, end):
        seen, monday = made.weeks[week], str(day(week, 0))
        for k in (seen.offer > 0).nonzero()[:, 0].tolist():
            sends.append(
                {
                    "date": monday,
                    "Customer No": made.rows[k]["Customer No"],
                    "offer": offers[seen.offer[k]],
                    "channel": channels[seen.channel[k]],
                    "propensity": f"{seen.propensity[k]:.6f}",
                    "redeemed": str(int(seen.redeemed[k])),
                    "unsubscribed": str(int(seen.unsubscribed[k])),
                }
            )
        for k in seen.bought.nonzero()[:, 0].tolist():
            purchases.append(
                {
                    "Customer No": made.rows[k]["Customer No"],
                    "date": str(day(week, rng.randrange(7))),
                    "margin": f"{seen.margin[k]:.2f}",
                }
            )
    return sends, purchases


def rows_of_test(rows: list[dict], takes_part: Tensor, seen: Week, discount: Tensor) -> list[dict[str, str]]:
    """Return a randomised mailing, one row a customer: who got it, and what came of it."""
    features = ("Weekly Rate", "Basket", "Gross Margin", "Tier", "Region", "Visits", "Complaints", "App Installed")
    return [
        {
            "customer": rows[k]["Customer No"],
            **{name.lower().replace(" ", "_"): rows[k][name] for name in features},
            "arm": "letter" if seen.offer[k] else "none",
            "bought": str(int(seen.bought[k])),
            "margin": f"{seen.margin[k]:.2f}",
            "discount": f"{discount[k]:.2f}",
        }
        for k in takes_part.nonzero()[:, 0].tolist()
    ]


def mails(n: int, seed: int) -> list[dict[str, str]]:
    """Draw e-mails of the embedded market with their outcomes: 0 no reply, 1 reply, 2 conversion."""
    corpus = {**shipped("corpus/small"), "gold": shipped("corpus/gold/default")}
    make_corpus = instantiate(corpus, _convert_="all")
    drawn = make_corpus(seed).sample(n, f"shop {seed}")
    return [
        {"context": context, "email_text": text, "outcome": str(outcome)}
        for context, text, outcome in zip(drawn.contexts, drawn.texts, drawn.outcome.tolist())
    ]


def write_export(path: Path, names: tuple[str, ...], rows: list[dict]) -> None:
    """Write rows as the shop's system does: a CSV file with semicolons, Windows line ends and a byte-order mark."""
    lines = [";".join(names), *(";".join(row[name] for name in names) for row in rows)]
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode("utf-8-sig"))


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows as a CSV file with commas."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0] if rows else ())
        writer.writeheader()
        writer.writerows(rows)


def write_shop(folder: Path, n: int, seed: int) -> None:
    """Write a year of a shop's life, three later months and a later export of its customers, and the configuration."""
    made = make_up(n, seed, first_weeks=YEAR, weeks=LATER_MONTHS[-1])
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    for name, weeks in (("customers", YEAR), ("next_quarter", LATER_MONTHS[-1])):
        table = export(made, weeks)
        write_export(folder / f"{name}.csv", tuple(table[0]), table)
    for number, (start, end) in enumerate([(0, YEAR), *((YEAR, month) for month in LATER_MONTHS)], 1):
        sends, purchases = sends_and_purchases(made, start, end, seed)
        ending = f"_{number}" if number > 1 else ""
        write_export(folder / f"sends{ending}.csv", SENDS, sends)
        write_export(folder / f"purchases{ending}.csv", PURCHASES, purchases)
    write_csv(folder / "test.csv", made.test)
    write_csv(folder / "mails.csv", mails(round(MAILS * n), seed))
    ids = [row["Customer No"] for row in made.rows]
    truth = parameter_table(ids, made.shop.customers, made.shop.catalogue.channels)
    write_export(folder / "truth" / "customers.csv", tuple(truth[0]), truth)
    for name, text in config_files(str(folder)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def main() -> None:
    """Write the shop that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="example_shop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write into; made where it is missing")
    parser.add_argument("--customers", type=int, default=2_000, help="number of customers in the first year (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")
    arguments = parser.parse_args()
    if arguments.customers < 1:
        parser.error(f"--customers: expected at least 1, got {arguments.customers}")
    try:
        write_shop(arguments.folder, arguments.customers, arguments.seed)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    names = sorted(str(path.relative_to(arguments.folder)) for path in arguments.folder.rglob("*") if path.is_file())
    print(f"{arguments.folder}/: {', '.join(names)}")


if __name__ == "__main__":
    main()
