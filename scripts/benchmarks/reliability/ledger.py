"""Stress the ledger: many writers, calls that repeat and come in the wrong order, writers killed at random.

Run as a program, this file is one writer. It makes the calls of its list and journals each final answer, so that after
a SIGKILL it goes on where its journal ends and repeats every call without an answer.
"""

from __future__ import annotations

import heapq
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from envs.offers.constraints.ledger import ABSENT, REFUSED, RESERVED, SETTLED, Ledger, to_units

FOREVER = 2**40
START = 0.1  # seconds for a writer to start, on few shared cores


# ── one writer ──────────────────────────────────────────────────────────────────────────────────────────────────────
def run_writer(
    folder: Path, name: str, start: float, pace: float, tries: int, retry: float, timeout: float, sync: str
) -> None:
    """Make a writer's calls [place in time, call], each when its week has come: `pace` weeks a second since `start`.

    Calls that are refused or come too early are tried again, `tries` times in total. A pace of 0 drains the list: all
    calls come at once, no reservation follows, and `absent` is a final answer too.
    """
    calls = json.loads((folder / f"{name}.json").read_text())
    answered = journal(folder, name)
    pending = [(place, k, 1) for k, (place, _) in enumerate(calls) if k not in answered]
    heapq.heapify(pending)
    ledger = Ledger(folder / "ledger.db", timeout=timeout, sync=sync)
    with open(folder / f"{name}.journal", "ab", buffering=0) as out:
        out.write(b"\n")  # ends a line that a kill cut short
        while pending:
            place, k, tried = heapq.heappop(pending)
            if pace:
                time.sleep(max(0.0, start + place / pace - time.time()))
            verb, week, *arguments = calls[k][1]
            if verb == "expire":
                answer = str(ledger.expire(week))
            else:
                answer = getattr(ledger, verb)(0, week, *arguments)
            if (answer == REFUSED or (answer == ABSENT and pace)) and tried < tries:
                heapq.heappush(pending, (place + retry, k, tried + 1))
            elif answer != ABSENT or not pace:
                out.write(f"{k} {answer}.\n".encode())
    ledger.close()


def journal(folder: Path, name: str) -> dict[int, str]:
    """Read a writer's answers, {index of the call: answer}; a line without its full stop was cut short."""
    path = folder / f"{name}.journal"
    lines = path.read_text().splitlines() if path.exists() else []
    return {int(k): answer[:-1] for k, answer in (line.split() for line in lines if line.endswith("."))}


# ── the siege ───────────────────────────────────────────────────────────────────────────────────────────────────────
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
    validity: int,
    duplicates: float,
    reorder: float,
    writers: int,
    pace: float,
    tries: int,
    retry: float,
    kill_seconds: float,
    sync: str,
    timeout: float,
) -> dict:
    """Run `weeks` through a ledger; return breaches, lost and double-counted calls, and breaches without a ledger."""
    if (directory / "ledger.db").exists():
        raise ValueError(f"{directory / 'ledger.db'}: there is a ledger already; the siege needs a folder of its own")
    rng, started = random.Random(seed), time.perf_counter()
    calls: list[tuple[float, int, list]] = []  # place in time, writer, call
    ledger = Ledger(directory / "ledger.db", timeout=timeout, sync=sync)
    unguarded = 0  # weeks over budget if the forecast alone limited sends
    with ledger.together():
        for week in range(weeks):
            budget = owed = 0
            for customer in range(customers):
                value, p = rng.choice(values), rng.uniform(*forecast)
                most, least = to_units(value + cost), to_units(cost)
                due = most if rng.random() < factor * p else least
                budget, owed = budget + to_units(value * p + cost), owed + due
                calls += _spread(
                    rng, week, ["reserve", week, str(customer), most, week + validity], writers, duplicates, reorder
                )
                fate = rng.random()
                if fate >= unsent + unheard:
                    calls += _spread(rng, week + 1, ["settle", week, str(customer), due], writers, duplicates, reorder)
                elif fate < unsent:
                    calls += _spread(rng, week + 1, ["release", week, str(customer)], writers, duplicates, reorder)
            calls += _spread(rng, week, ["expire", week], writers, 0.0, 0.0)
            ledger.fund(0, week, budget)
            unguarded += owed > budget
    calls.sort(key=lambda call: call[0])
    lists = [[(place, call) for place, writer, call in calls if writer == k] for k in range(writers)]
    for k, mine in enumerate(lists):
        (directory / f"{k}.json").write_text(json.dumps(mine))

    prepared = time.perf_counter()
    kills, looks, seen = 0, 0, 0
    for speed in (pace, 0.0):
        options = [str(x) for x in (time.time() + START * writers, speed, tries, retry, timeout, sync)]
        k, n, bad = _siege(rng, directory, ledger, options, writers, kill_seconds)
        kills, looks, seen = kills + k, looks + n, seen + bad
    seconds = time.perf_counter() - prepared
    expired = ledger.expire(FOREVER)
    result = {
        "weeks_unguarded_breach": unguarded,
        "calls": len(calls),
        "kills": kills,
        "looks": looks,
        "breaches_seen": seen,
        **ledger.audit(),
        **_verify(directory, ledger, lists),
        "expired_at_the_end": expired,
        "seconds": seconds,
        "calls_per_second": len(calls) / seconds,
        "seconds_in_all": time.perf_counter() - started,
    }
    ledger.close()
    for k in range(writers):
        (directory / f"{k}.json").unlink()
        (directory / f"{k}.journal").unlink()
    _show(result, weeks, writers, factor)
    return result


def _spread(rng: random.Random, place: float, call: list, writers: int, duplicates: float, reorder: float) -> list:
    """Assign a call, and its repetition if any, to writers and moments at random."""
    times = 2 if rng.random() < duplicates else 1
    return [(rng.gauss(place, reorder), rng.randrange(writers), call) for _ in range(times)]


def _siege(
    rng: random.Random, directory: Path, ledger: Ledger, options: list[str], writers: int, kill_seconds: float
) -> tuple[int, int, int]:
    """Run all writers to their ends, killing one now and then; return kills, checks of the ledger, breaches seen."""

    def start(k):
        return subprocess.Popen([sys.executable, __file__, str(directory), str(k), *options])

    running, kills, looks, seen = {k: start(k) for k in range(writers)}, 0, 0, 0
    try:
        while running:
            time.sleep(rng.expovariate(1 / kill_seconds))
            for k, process in list(running.items()):
                code = process.poll()
                if code == 0:
                    del running[k]
                elif code is not None:
                    raise RuntimeError(f"writer {k} failed with code {code}")
            if running:
                k = rng.choice(list(running))
                running[k].kill()
                kills += running[k].wait() != 0  # the writer may just have ended
                running[k] = start(k)
            seen += ledger.db.execute("SELECT count(*) FROM weeks WHERE settled + reserved > budget").fetchone()[0]
            looks += 1
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return kills, looks, seen


def _verify(directory: Path, ledger: Ledger, lists: list[list]) -> dict:
    """Compare the writers' answers with the ledger's entries."""
    told, unanswered, lost = {}, 0, 0
    answers: Counter = Counter()
    for k, calls in enumerate(lists):
        heard = journal(directory, str(k))
        unanswered += len(calls) - len(heard)
        for index, answer in heard.items():
            verb, week, *arguments = calls[index][1]
            if verb == "expire":
                continue
            answers[f"{verb}: {answer}"] += 1
            if answer in (REFUSED, ABSENT):
                continue
            found = ledger.entry(0, week, arguments[0])
            # An entry only ever goes from reserved to its end, so all other answers still hold.
            kept = found is not None and (found[0] == answer or answer == RESERVED)
            if answer == SETTLED and verb == "settle":
                kept = kept and found is not None and found[2] == arguments[1]
                told[week, arguments[0]] = arguments[1]
            lost += not kept
    (settled,) = ledger.db.execute("SELECT coalesce(sum(settled), 0) FROM weeks").fetchone()
    (budget,) = ledger.db.execute("SELECT sum(budget) FROM weeks").fetchone()
    return {
        "unanswered": unanswered,
        "lost": lost,
        "told_settled": sum(told.values()),
        "settled": settled,
        "counted_twice": settled - sum(told.values()),
        "spend_ratio": settled / budget,
        "answers": dict(sorted(answers.items())),
    }


def _show(result: dict, weeks: int, writers: int, factor: float) -> None:
    from scripts.benchmarks.common.display import show, table_of  # not above: a writer would take long to start

    rows = (
        ("weeks breached by sending what the forecast allows, without a ledger", result["weeks_unguarded_breach"]),
        ("calls, duplicates among them", result["calls"]),
        ("writers killed (SIGKILL)", result["kills"]),
        ("calls a second", round(result["calls_per_second"])),
        ("weeks beyond their budget, at the end", result["breached"]),
        (f"… in {result['looks']:,} checks during the run", result["breaches_seen"]),
        ("calls without an answer", result["unanswered"]),
        ("answers that the ledger does not hold", result["lost"]),
        ("weeks whose totals are not those of their entries", result["wrong_totals"]),
        ("money settled beyond what was told, millionths", result["counted_twice"]),
    )
    title = f"{weeks:,} weeks, redemption {factor:g} × the forecast, {writers} writers"
    table = table_of(title, ["", ""], [[name, f"{value:,}"] for name, value in rows])
    table.show_header = False
    show(table)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the main process, which ends its writers
    place, writer, *numbers, way = sys.argv[1:]
    begun, speed, times, wait, patience = map(float, numbers)
    run_writer(Path(place), writer, begun, speed, int(times), wait, patience, way)
