"""Besiege the ledger: many writers, calls that repeat, come late and out of order, exceptions, and SIGKILLs.

What the ledger says is compared with what happened outside of it: which messages went out, and what the till paid.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from envs.live.ledger.opening import SERVER, open_ledger
from envs.live.ledger.protocol import RESERVED, UNITS, Ledger, to_units
from scripts.benchmarks.reliability import ledger_writer
from scripts.benchmarks.reliability.ledger_writer import date_of, journal

START = 0.1  # seconds for a writer to start, on few shared cores
AFTER_ALL = 10**5  # a week in which every reservation has expired
KILLED_AT_LAUNCH = 0.05  # probability that a writer is killed although none answered anything yet
PATIENCE = 60.0  # seconds that the siege itself waits for the ledger


class Plan(NamedTuple):
    """What writers are to do, and what the budgets are."""

    lists: list[list[tuple]]  # a writer's calls: place in time, act, week, customer, arguments
    budgets: list[int]
    unguarded: int  # weeks over budget if the forecast alone limited sends

    @property
    def calls(self) -> int:
        """Count the calls, repetitions among them."""
        return sum(map(len, self.lists))


def run(
    directory: Path,
    device,
    seed: int,
    *,
    weeks: int,
    customers: int,
    values: list,
    cost: float,
    forecast: list,
    factor: float,
    unsent: float,
    unheard: float,
    late: float,
    over: float,
    refunds: float,
    grace: float,
    validity: int,
    duplicates: float,
    reorder: float,
    cuts: float,
    writers: int,
    pace: float,
    tries: int,
    retry: float,
    kill_seconds: float,
    sync: str,
    timeout: float,
    ledgers: list,
) -> dict:
    """Run the same `weeks` through each of the ledgers, new ones: a file's name, or the address of a server."""
    rng = random.Random(seed)
    plan = _plan(
        rng, weeks, customers, values, cost, forecast, factor, unsent, unheard, late, over, refunds, validity,
        writers, duplicates, reorder,
    )  # fmt: skip
    addresses = {}
    for address in ledgers:
        if address.startswith(SERVER):
            addresses["PostgreSQL"] = f"{address}#siege_{time.time_ns()}"
        elif (directory / address).exists():
            raise ValueError(f"{directory / address}: there is a ledger already; the siege needs a folder of its own")
        else:
            addresses["SQLite"] = str(directory.absolute() / address)
    options = {"timeout": timeout, "sync": sync, "cuts": cuts, "tries": tries, "retry": retry}
    stores = {
        store: _run_store(rng, directory / store, address, plan, options, grace, writers, pace, kill_seconds)
        for store, address in addresses.items()
    }
    _show(stores, f"{weeks:,} weeks, redemption {factor:g} × the forecast, {writers} writers")
    return {"weeks_unguarded_breach": plan.unguarded, "calls": plan.calls, "stores": stores}


def _plan(
    rng: random.Random, weeks: int, customers: int, values: list, cost: float, forecast: list, factor: float,
    unsent: float, unheard: float, late: float, over: float, refunds: float, validity: int, writers: int,
    duplicates: float, reorder: float,
) -> Plan:  # fmt: skip
    """Draw what happens to every customer who is sent a message, and which writer says so when."""
    calls: list[tuple[int, tuple]] = []

    def add(place: float, *call: Any) -> None:
        """Assign a call, and its repetition if any, to writers and moments at random."""
        for _ in range(2 if rng.random() < duplicates else 1):
            calls.append((rng.randrange(writers), (rng.gauss(place, reorder), *call)))

    budgets, unguarded = [], 0
    for week in range(weeks):
        budget = owed = 0
        for customer in map(str, range(customers)):
            value, p = rng.choice(values), rng.uniform(*forecast)
            most, least = to_units(value + cost), to_units(cost)
            redeems, fate = rng.random() < factor * p, rng.random()
            due = most if redeems else least
            budget, owed = budget + to_units(value * p + cost), owed + due
            add(week, "send", week, customer, [most, week + validity, fate >= unsent])
            if fate < unsent:
                add(week + 1, "release", week, customer, [])
            elif fate >= unsent + unheard:
                delay = rng.uniform(0, validity) + (validity if rng.random() < late else 0)
                if rng.random() < over:
                    due = most + to_units(value) // 2
                add(week + delay, "redeem", week, customer, [due])
                if rng.random() < refunds:
                    add(week + delay + 1, "refund", week, customer, [rng.randint(1, due)])
        calls.append((rng.randrange(writers), (week, "expire", week, "", [])))
        budgets.append(budget)
        unguarded += owed > budget
    calls.sort(key=lambda call: call[1][0])
    return Plan([[call for writer, call in calls if writer == k] for k in range(writers)], budgets, unguarded)


def _run_store(
    rng: random.Random, folder: Path, address: str, plan: Plan, options: dict, grace: float, writers: int,
    pace: float, kill_seconds: float,
) -> dict:  # fmt: skip
    """Run the plan through one ledger; return what it says beside what happened."""
    for part in (folder, folder / "sent", folder / "paid"):
        part.mkdir(parents=True)
    for k, mine in enumerate(plan.lists):
        (folder / f"{k}.json").write_text(json.dumps(mine))
    (folder / "options.json").write_text(json.dumps(options | {"address": address}))
    ledger = open_ledger(address, caller="siege", timeout=PATIENCE, sync=options["sync"])
    for week, budget in enumerate(plan.budgets):
        ledger.fund(0, week, budget, grace=round(grace * UNITS))
    started = time.perf_counter()
    kills = 0
    for speed in (pace, 0.0):
        kills += _siege(rng, folder, str(time.time() + START * writers), speed, writers, kill_seconds)
    seconds = time.perf_counter() - started
    expired = ledger.expire(date_of(AFTER_ALL))
    result = {
        "kills": kills,
        "cut_short": _lines(folder, "cut"),
        "waited_too_long": _lines(folder, "slow"),
        **_verify(folder, ledger, plan),
        "expired_at_the_end": expired,
        "seconds": seconds,
        "calls": plan.calls,
        "calls_per_second": plan.calls / seconds,
    }
    ledger.close()
    shutil.rmtree(folder)
    return result


def _siege(rng: random.Random, folder: Path, start: str, pace: float, writers: int, kill_seconds: float) -> int:
    """Run all writers to their ends, killing one now and then; return the number of kills."""

    def launch(k):
        return subprocess.Popen([sys.executable, ledger_writer.__file__, str(folder), str(k), start, str(pace)])

    def journalled(k):
        path = folder / f"{k}.journal"
        return path.stat().st_size if path.exists() else 0

    running, kills = {k: launch(k) for k in range(writers)}, 0
    before = {k: journalled(k) for k in running}
    try:
        while running:
            time.sleep(rng.expovariate(1 / kill_seconds))
            for k, process in list(running.items()):
                code = process.poll()
                if code == 0:
                    del running[k]
                elif code is not None:
                    raise RuntimeError(f"writer {k} failed with code {code}")
            # a writer that answered something since its launch, or a slow machine would never come to the end
            victims = [k for k in running if journalled(k) > before[k]]
            if not victims and rng.random() < KILLED_AT_LAUNCH:
                victims = list(running)
            if victims:
                k = rng.choice(victims)
                running[k].kill()
                kills += running[k].wait() != 0  # the writer may just have ended
                before[k] = journalled(k)
                running[k] = launch(k)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return kills


def _verify(folder: Path, ledger: Ledger, plan: Plan) -> dict:
    """Compare the ledger with the messages that went out, with the till's money, and with the answers it gave."""
    sent = {path.name for path in (folder / "sent").iterdir()}
    facts = {line for path in folder.glob("*.till") for line in path.read_text().splitlines()}
    till: dict[tuple[int, str], int] = defaultdict(int)
    for fact in facts:
        place, who, money = fact.split()
        till[int(place), who] += int(money)
    answers: Counter = Counter()
    unanswered = lost = 0
    unsent = 0
    for k, calls in enumerate(plan.lists):
        heard = journal(folder, str(k))
        unanswered += len(calls) - len(heard)
        for index, answer in heard.items():
            _, act, week, customer, _ = calls[index]
            if act != "expire":
                answers[f"{act}: {answer}"] += 1
            if answer == RESERVED:
                lost += ledger.entry(0, week, customer) is None
    wrong_payments = 0
    sends = {(week, customer): x for mine in plan.lists for _, act, week, customer, x in mine if act == "send"}
    for (week, customer), (_, _, goes_out) in sends.items():
        entry = ledger.entry(0, week, customer)
        wrong_payments += (entry.paid if entry else 0) != till[week, customer]
        if entry is not None and goes_out and f"{week}.{customer}" not in sent:
            unsent += 1
    balances = [ledger.balance(0, week) for week in range(len(plan.budgets))]
    paid = [0] * len(plan.budgets)
    for (week, _), amount in till.items():
        paid[week] += amount
    overspent = [total > budget for total, budget in zip(paid, plan.budgets)]
    covered = [b is not None and not b.over and b.late * UNITS <= b.grace * b.lapsed for b in balances]
    audit = ledger.audit()
    return {
        "sent": len(sent),
        "sent_twice": _lines(folder, "twice"),
        "reserved_not_sent": unsent,
        "till": sum(till.values()),
        "settled": audit.settled,
        "late": audit.late,
        "over": audit.over,
        "not_in_the_books": sum(till.values()) - audit.settled - audit.late - audit.over,
        "wrong_payments": wrong_payments,
        "unanswered": unanswered,
        "lost": lost,
        "till_over_budget": sum(overspent),
        "till_over_budget_though_covered": sum(x and y for x, y in zip(overspent, covered)),
        "spend_ratio": sum(paid) / sum(plan.budgets),
        "sound": audit.sound,
        **audit._asdict(),
        "answers": dict(sorted(answers.items())),
    }


def _lines(folder: Path, kind: str) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob(f"*.{kind}"))


ROWS = {
    "calls, repetitions among them": "calls",
    "writers killed (SIGKILL)": "kills",
    "calls cut short by an exception": "cut_short",
    "calls a second": "calls_per_second",
    "messages sent": "sent",
    "messages told to be sent twice": "sent_twice",
    "reserved, and not sent: killed or cut short in between": "reserved_not_sent",
    "the till paid, less refunds, millionths": "till",
    "in the books: settled": "settled",
    "in the books: late": "late",
    "in the books: over": "over",
    "paid and in no book": "not_in_the_books",
    "messages with another payment than the till's": "wrong_payments",
    "answers that the ledger does not hold": "lost",
    "calls without an answer": "unanswered",
    "weeks that the till paid beyond their budget": "till_over_budget",
    "… although late ≤ grace · lapsed, and over = 0": "till_over_budget_though_covered",
    "weeks with settled + reserved beyond their budget": "overbooked",
    "weeks and entries that are not the sums of their records": "wrong",
}


def _show(stores: dict[str, dict], title: str) -> None:
    from rlcore.runs.plots import text_table  # not above: torch takes long to load
    from scripts.benchmarks.common.display import show

    def figure(result: dict, name: str) -> str:
        value = result["wrong_weeks"] + result["wrong_entries"] if name == "wrong" else result[name]
        return f"{round(value):,}"

    rows = [[label, *(figure(result, name) for result in stores.values())] for label, name in ROWS.items()]
    show(text_table(title, ["", *stores], rows))
