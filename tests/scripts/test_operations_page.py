"""The weekly job of docs/operations.md as it stands there: run again, run late, and from the plan to the log."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import script_runner
from operations_page import script_of_the_page
from small_runs import SHOP_POLICY

for package in ("pyarrow", "onnxscript", "onnxruntime", "jinja2"):  # extra `live`
    pytest.importorskip(package)
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
LAST, MONDAY, NEXT = "2026-12-06", "2026-12-07", "2026-12-14"  # the last day of the shop's year, and the weeks after it


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A shop's folder with a policy's package, the first week's exports, and weekly.sh."""
    folder = tmp_path_factory.mktemp("operations")
    run = script_runner.run
    assert run(folder, "example_shop", "shop", "--customers", "120").returncode == 0
    view = ["-cd", "shop", "experiment=shop", "env/observation=history"]
    trained = run(folder, "train", *view, "algo=ppo_expected", *SHOP_POLICY, "hydra.run.dir=policy")
    assert trained.returncode == 0, trained.stderr
    assert run(folder, "export", "checkpoint=policy/checkpoint.pt", "out=package").returncode == 0
    (folder / "exports" / MONDAY).mkdir(parents=True)
    for name in ("customers.csv", "sends.csv", "purchases.csv"):
        shutil.copy(folder / "shop" / name, folder / "exports" / MONDAY / name)
    readers = [row for row in rows_of(folder / "shop" / "customers.csv", ";") if row["Newsletter"] == "yes"]
    ours = "".join(f"{row['Customer No']},coffee,newsletter\n" for row in readers)
    (folder / "exports" / MONDAY / "ours.csv").write_text(f"customer,offer,channel\n{ours}")
    (folder / "weekly.sh").write_text(script_of_the_page())
    (folder / "scripts").symlink_to(ROOT / "scripts")
    return folder


def weekly(folder: Path, week: int, money: int, *arguments: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    first = {} if (folder / "log.parquet").exists() else {"FIRST": "1"}
    bounds = "messages=1- spend=-1000"  # the arm rl of this policy may send nothing
    environment = {**os.environ, "PATH": path, "WEEK": str(week), "BOUNDS": bounds, **first}
    # a policy of two iterations sends little: 40 % of the customers get what chance says, so that there are sends
    arms = ["arms.random=0.4", "arms.bau=0.2", "shop_rule.decisions=exports/$MONDAY/ours.csv"]
    command = ["bash", str(folder / "weekly.sh"), str(money), *arms, *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)


def rows_of(path: Path, separator: str = ",") -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file, delimiter=separator))


class Sent(NamedTuple):
    """The customers of the next week's export."""

    as_planned: set[str]
    bounced: set[str]  # a planned message that was not sent
    unplanned: str  # a customer to whom something was sent that the plan lacks


def export_what_was_sent(folder: Path) -> Sent:
    """Write the next week's exports."""
    shutil.copytree(folder / "exports" / MONDAY, folder / "exports" / NEXT)
    table = rows_of(folder / "exports" / NEXT / "customers.csv", ";")
    left = {row["Customer No"] for row in table if row["Left"]}
    readers = {row["Customer No"] for row in table if row["Newsletter"] == "yes"} - left
    planned = rows_of(folder / "sent" / "week=48.csv")
    assert left and not left & {row["customer"] for row in planned}
    sent = {row["customer"]: (row["offer"], row["channel"]) for row in planned[1:]}
    nothing = [row for row in pq.read_table(folder / "sent/week=48.parquet").to_pylist() if not row["offer"]]
    allowed = [row for row in nothing if row["reason"].startswith(("nothing pays", "waits"))]
    free = next(row["customer"] for row in allowed if row["customer"] in readers)
    with (folder / "exports" / NEXT / "sends.csv").open("a") as file:
        for customer, (offer, channel) in {**sent, free: ("coffee", "newsletter")}.items():
            file.write(f"2026-12-08;{customer};{offer};{channel};;0;0\n")
    with (folder / "exports" / NEXT / "purchases.csv").open("a") as file:
        file.write(f"{free};2026-12-10;4.5\n")
    return Sent(set(sent), {row["customer"] for row in planned} - sent.keys(), free)


on_linux = pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock and GNU date")


@on_linux
@pytest.mark.parametrize(
    ("today", "week", "monday", "sunday"),
    [
        ("2026-01-05", 0, "2026-01-05", "2026-01-04"),
        ("2026-03-29", 11, "2026-03-23", "2026-03-22"),  # the day on which summer time begins
        ("2026-03-30", 12, "2026-03-30", "2026-03-29"),
        ("2026-12-13", 48, "2026-12-07", "2026-12-06"),
        ("2026-12-14", 49, "2026-12-14", "2026-12-13"),
    ],
)
def test_the_script_finds_the_week_of_a_day(today, week, monday, sunday):
    finds, _, _ = script_of_the_page().partition("EXPORTS=")
    clock = f'date() {{ if [ "$*" = +%F ]; then echo {today}; else command date "$@"; fi; }}\n'
    environment = {**{k: x for k, x in os.environ.items() if k != "WEEK"}, "TZ": "Europe/Berlin"}
    command = ["bash", "-c", f"{clock}{finds}echo $WEEK $MONDAY $SUNDAY", "weekly.sh", "5000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(week), monday, sunday], done.stderr


@pytest.mark.long
@on_linux
def test_the_weekly_job_runs_twice_and_what_was_sent_becomes_a_log_with_propensities(shop):
    purchases = shop / "exports" / MONDAY / "purchases.csv"
    purchases.rename(shop / "late.csv")
    missing = weekly(shop, 48, 200)
    assert missing.returncode == 2
    assert missing.stderr.startswith(f"exports/{MONDAY}/purchases.csv: expected an export, got none\n")
    (shop / "late.csv").rename(purchases)
    (shop / "sent").mkdir()
    (shop / "sent/.next").write_bytes(b"PAR1")  # of a run that was killed while it copied
    first = weekly(shop, 48, 200)
    assert first.returncode == 0, first.stderr
    assert f"weeks to {LAST}" in first.stdout
    sent, log = shop / "sent" / "week=48.csv", shop / "log.parquet"
    before, logged = sent.read_bytes(), log.read_bytes()
    handed_over = pq.read_table(shop / "sent/week=48.parquet").to_pylist()
    spend = sum(row["spend"] for row in handed_over)
    sent_of = {
        arm: sum(row["arm"] == arm and row["offer"] != "" for row in handed_over) for arm in ("random", "bau", "rl")
    }
    arms = ", ".join(f"{arm} {n}" for arm, n in sent_of.items())
    totals = f"{len(rows_of(sent))} messages ({arms}), expected spend {round(spend, 2)}"
    assert first.stdout.splitlines()[-1] == f"week 48: {totals}, handed over"
    assert sum(row["arm"] == "bau" and row["offer"] == "coffee" for row in handed_over)
    assert sorted(path.name for path in sent.parent.iterdir()) == ["week=48.csv", "week=48.parquet"]
    planned_before = (shop / "plan/week=48.csv").read_bytes()
    other = weekly(shop, 48, 2000)
    assert other.returncode == 0 and other.stdout.splitlines()[-1] == f"week 48: {totals}, handed over"
    assert (shop / "plan/week=48.csv").read_bytes() == planned_before
    assert sent.read_bytes() == before and log.read_bytes() == logged

    told = export_what_was_sent(shop)
    assert told.as_planned and told.bounced
    before_week_49 = log.read_bytes()
    following = weekly(shop, 49, 200)
    assert following.returncode == 0, following.stderr
    made, planned = len(told.as_planned), len(told.as_planned | told.bounced)
    assert (
        f"week 48: {made} of {planned} planned sends were made, {planned - made} were not; 1 sends" in following.stdout
    )
    rows = pq.read_table(shop / "sent/week=48.parquet").to_pylist()
    plan = {row["customer"]: row["propensity"] for row in rows}
    without_lot = {row["customer"] for row in rows if row["arm"] in ("holdout", "bau")}
    week = {row["customer"]: row for row in pq.read_table(log).to_pylist() if row["week"] == 48}
    assert {name for name, row in week.items() if row["offer"]} == told.as_planned | {told.unplanned}
    unknown = ((told.bounced | without_lot) & week.keys()) | {told.unplanned}
    assert {name for name, row in week.items() if row["propensity"] is None} == unknown
    assert all(row["propensity"] == plan[name] for name, row in week.items() if name not in unknown)
    logged = log.read_bytes()
    late = weekly(shop, 48, 200)  # a repetition a week later, when the log has more
    assert late.returncode == 0, late.stderr
    assert sent.read_bytes() == before and log.read_bytes() == logged
    backup = {path.name: path for path in (shop / "backup").iterdir()}
    assert set(backup) == {"log-before-week=48.none", "log-before-week=49.parquet"}
    assert backup["log-before-week=49.parquet"].read_bytes() == before_week_49

    asked = ["-cd", "shop", "checkpoint=policy/checkpoint.pt", "log=log.parquet", "hydra.run.dir=valued"]
    short = ["ope.model.steps=10", "ope.replications=50", "ope.constant_actions=1"]
    valued = script_runner.run(shop, "evaluate", *asked, *short)
    assert valued.returncode == 0, valued.stderr
    assert "sequential DR" in valued.stdout
