"""The ledger against a model in plain Python, against raw SQL, and under writers that are killed."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from envs.offers.constraints.ledger import (
    ABSENT,
    EXPIRED,
    REFUSED,
    RELEASED,
    RESERVED,
    SETTLED,
    Balance,
    Ledger,
    to_units,
)
from scripts.benchmarks.reliability import ledger as siege

KEYS = {"season": st.integers(0, 1), "week": st.integers(0, 1), "customer": st.sampled_from("abcd")}
AMOUNT = st.integers(0, 6)


def opened(path) -> Ledger:
    """Open a ledger with the fastest settings."""
    return Ledger(path, timeout=30.0, sync="normal")


class Calls(RuleBasedStateMachine):
    """Any calls in any order: every answer, and every balance after it, is the model's."""

    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.mkdtemp(dir=self.folder)) / "ledger.db"
        self.ledger, self.budget, self.entries, self.expires = opened(self.path), {}, {}, {}

    def balance(self, season, week):
        """Add up a week of the model."""
        mine = [e for key, e in self.entries.items() if key[:2] == (season, week)]
        return (sum(held for status, held, _ in mine if status == RESERVED), sum(paid for _, _, paid in mine))

    @rule(season=KEYS["season"], week=KEYS["week"], budget=st.integers(0, 12))
    def fund(self, season, week, budget):
        fits = sum(self.balance(season, week)) <= budget
        assert self.ledger.fund(season, week, budget) == fits
        if fits:
            self.budget[season, week] = budget

    @rule(**KEYS, amount=AMOUNT, expires=st.integers(0, 9))
    def reserve(self, season, week, customer, amount, expires):
        key, found = (season, week, customer), self.entries.get((season, week, customer))
        if (found and found[1] != amount) or (not found and (season, week) not in self.budget):
            with pytest.raises(ValueError, match=f"week {week}, customer {customer}"):
                self.ledger.reserve(*key, amount, expires)
            return
        answer = self.ledger.reserve(*key, amount, expires)
        if found:
            assert answer == found[0]
        elif sum(self.balance(season, week)) + amount > self.budget[season, week]:
            assert answer == REFUSED
        else:
            assert answer == RESERVED
            self.entries[key] = [RESERVED, amount, 0]
            self.expires[key] = expires

    @rule(**KEYS, amount=AMOUNT)
    def settle(self, season, week, customer, amount):
        found = self.entries.get((season, week, customer))
        if found and (amount > found[1] or (found[0] == SETTLED and amount != found[2])):
            with pytest.raises(ValueError, match="can't pay"):
                self.ledger.settle(season, week, customer, amount)
            return
        if found and found[0] == RESERVED:
            found[0], found[2] = SETTLED, amount
        assert self.ledger.settle(season, week, customer, amount) == (found[0] if found else ABSENT)

    @rule(**KEYS)
    def release(self, season, week, customer):
        found = self.entries.get((season, week, customer))
        if found and found[0] == RESERVED:
            found[0] = RELEASED
        assert self.ledger.release(season, week, customer) == (found[0] if found else ABSENT)

    @rule(now=st.integers(0, 9))
    def expire(self, now):
        due = [e for key, e in self.entries.items() if e[0] == RESERVED and self.expires[key] <= now]
        for entry in due:
            entry[0] = EXPIRED
        assert self.ledger.expire(now) == len(due)

    @rule(**KEYS)
    def fail_in_the_middle(self, season, week, customer):
        with pytest.raises(KeyError), self.ledger.together():
            self.ledger.fund(season, week, 2**40)
            self.ledger.reserve(season, week, customer + "!", 5, 9)
            raise KeyError

    @rule()
    def reopen(self):
        self.ledger.close()
        self.ledger = opened(self.path)

    @invariant()
    def money_is_the_models_and_within_budget(self):
        for (season, week), budget in self.budget.items():
            reserved, settled = self.balance(season, week)
            assert self.ledger.balance(season, week) == Balance(budget, reserved, settled)
            assert reserved + settled <= budget
        for key, (status, held, paid) in self.entries.items():
            assert self.ledger.entry(*key) == (status, held, paid)
        audit = self.ledger.audit()
        assert audit == {"weeks": len(self.budget), "entries": len(self.entries), "breached": 0, "wrong_totals": 0}

    def teardown(self):
        self.ledger.close()


def test_any_calls_in_any_order_get_the_models_answers(tmp_path):
    machine = type("Here", (Calls,), {"folder": tmp_path})
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
    machine.TestCase("runTest").runTest()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE weeks SET settled = 11",
        "UPDATE weeks SET reserved = -1",
        "UPDATE weeks SET budget = 7",
        "INSERT INTO entries (season, week, customer, held, expires) VALUES (0, 0, 'c', 3, 9)",
        "INSERT INTO entries (season, week, customer, held, expires) VALUES (0, 0, 'a', 0, 9)",
        "UPDATE entries SET held = 1 WHERE customer = 'a'",
        "UPDATE entries SET status = 'settled', paid = 6 WHERE customer = 'a'",
        "UPDATE entries SET status = 'reserved' WHERE customer = 'b'",
        "UPDATE entries SET paid = 1 WHERE customer = 'b'",
        "UPDATE entries SET status = 'released', paid = 1 WHERE customer = 'a'",
        "DELETE FROM entries",
    ],
)
def test_not_even_raw_sql_breaks_the_rules(tmp_path, statement):
    ledger = opened(tmp_path / "ledger.db")
    ledger.fund(0, 0, 10)
    ledger.reserve(0, 0, "a", 5, 9)
    ledger.reserve(0, 0, "b", 5, 9)
    assert ledger.settle(0, 0, "b", 3) == SETTLED
    before = ledger.balance(0, 0)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.db.execute(statement)
    assert ledger.balance(0, 0) == before == Balance(10, 5, 3) and not ledger.audit()["wrong_totals"]


def test_threads_share_what_there_is_to_the_last_unit(tmp_path):
    """Eight threads ask at once for more money than there is, each key twice: exactly what fits is reserved, once."""
    first = opened(tmp_path / "ledger.db")
    first.fund(0, 0, 50)
    answers = []

    def ask(k):
        ledger = opened(tmp_path / "ledger.db")
        for customer in range(20):
            answers.append((k % 4, customer, ledger.reserve(0, 0, f"{k % 4}-{customer}", 1, 9)))
        ledger.close()

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first.balance(0, 0) == Balance(50, 50, 0)
    assert len(answers) == 160 and len({a[:2] for a in answers if a[2] == RESERVED}) == 50


def test_what_was_answered_survives_sigkill(tmp_path):
    """Kill a process in the middle of its calls, over and over: each answer it printed is in the file."""
    program = (
        "import sys; from envs.offers.constraints.ledger import Ledger\n"
        "ledger, first = Ledger(sys.argv[1], timeout=9.0, sync='normal'), int(sys.argv[2])\n"
        "for k in range(first, first + 10**6):\n"
        "    print(k, ledger.reserve(0, 0, str(k), 1, 9), flush=True)"
    )
    ledger, told = opened(tmp_path / "ledger.db"), 0
    ledger.fund(0, 0, 10**9)
    for k in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "ledger.db"), str(k * 10**6)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[4],
        )
        first = process.stdout.readline()
        time.sleep(random.uniform(0.0, 0.1))
        process.kill()
        heard = [first, *process.communicate()[0].splitlines(keepends=True)]
        for line in heard:
            if line.endswith("\n"):
                assert ledger.entry(0, 0, line.split()[0]) == (RESERVED, 1, 0)
                told += 1
    balance = ledger.balance(0, 0)
    assert told <= balance.reserved <= told + 6  # a kill may fall between the deed and the answer
    assert not ledger.audit()["wrong_totals"]


def test_a_sender_loads_the_ledger_without_pytorch():
    """A writer that is killed and started again must be writing long before PyTorch would have been imported."""
    code = "import sys, envs.offers.constraints.ledger; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(siege.__file__).parents[3]).returncode == 0


@pytest.mark.slow
def test_a_siege_breaches_loses_and_doubles_nothing(tmp_path):
    result = siege.run(
        tmp_path,
        None,
        0,
        weeks=100,
        customers=12,
        values=[0.5, 2.5],
        cost=0.05,
        forecast=[0.04, 0.12],
        factor=3.0,
        unsent=0.1,
        unheard=0.1,
        validity=60,
        duplicates=0.3,
        reorder=3.0,
        writers=12,
        pace=40.0,
        tries=3,
        retry=10.0,
        kill_seconds=0.1,
        sync="normal",
        timeout=60.0,
    )
    assert result["weeks_unguarded_breach"] > 70  # without a ledger nearly every week would have been
    assert result["kills"] > 10 and result["looks"] > 10
    for name in ("breached", "breaches_seen", "wrong_totals", "unanswered", "lost", "counted_twice"):
        assert result[name] == 0, name
    assert result["settled"] > 0 and {"settle: settled", "reserve: refused"} <= set(result["answers"])


# ── bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("amount", [-1, 0.5, True, 2**62, "5", None])
def test_amounts_are_whole_numbers(tmp_path, amount):
    ledger = opened(tmp_path / "ledger.db")
    ledger.fund(0, 0, 10)
    for call in (
        lambda: ledger.fund(0, 0, amount),
        lambda: ledger.reserve(0, 0, "a", amount, 1),
        lambda: ledger.settle(0, 0, "a", amount),
        lambda: ledger.expire(amount),
    ):
        with pytest.raises(ValueError, match="expected a whole number"):
            call()
    assert ledger.balance(0, 0) == Balance(10, 0, 0)


def test_files_that_are_no_ledger_are_refused_in_one_line(tmp_path):
    (tmp_path / "table.csv").write_text("id,rate\n" * 1000)
    with pytest.raises(ValueError, match="table.csv: not a ledger"):
        opened(tmp_path / "table.csv")
    with pytest.raises(OSError, match="can't be opened"):
        opened(tmp_path / "nowhere" / "ledger.db")
    with pytest.raises(ValueError, match="expected full or normal"):
        Ledger(tmp_path / "ledger.db", timeout=1.0, sync="of")


def test_a_locked_ledger_is_a_timeout(tmp_path):
    holder, other = opened(tmp_path / "ledger.db"), Ledger(tmp_path / "ledger.db", timeout=0.05, sync="normal")
    with holder.together():
        holder.fund(0, 0, 10)
        with pytest.raises(TimeoutError, match="stayed locked"):
            other.fund(0, 0, 20)
        assert other.balance(0, 0) is None  # reading does not wait
    assert other.balance(0, 0) == Balance(10, 0, 0)


def test_money_becomes_whole_units():
    assert [to_units(x) for x in (0.0, 0.1 + 0.2, 2.5, 1e-6)] == [0, 300000, 2500000, 1]
