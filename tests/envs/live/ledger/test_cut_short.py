"""Calls that an exception or a SIGKILL cuts short: what returned is on disk, and what did not is whole or not there."""

from __future__ import annotations

import ctypes
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from envs.live.ledger import store
from envs.live.ledger.protocol import KNOWN, RESERVED, SETTLED, Request
from ledger_stores import SqliteFile, day
from script_runner import wait_until

ROOT = Path(store.__file__).parents[3]
LEDGER = str(Path(store.__file__).parent)


class CutShort(BaseException):
    """Stands for a request's timeout, Ctrl-C, or the end that somebody else puts to a thread."""


class Cut:
    """Raises CutShort at the n-th line of the ledger's code, or of its database driver's, that a call runs."""

    def __init__(self, places, line):
        self.places, self.left, self.done = places, line, False

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(self.places):
            return None
        if event == "line" and not self.done:
            self.left -= 1
            if self.left < 0:
                self.done = True
                raise CutShort
        return self

    def calls(self, work):
        """Run work; return whether it was cut."""
        sys.settrace(self)
        try:
            work()
        except CutShort:
            pass
        finally:
            sys.settrace(None)
        return self.done


def check(place, told, cut):
    """Whatever was told is on disk, as another program sees it; what was cut is whole or not there."""
    other = place.open(caller="auditor")
    for customer, status in told.items():
        assert other.entry(0, 0, customer).status == status, customer
    for customer in cut:
        assert other.entry(0, 0, customer) is None or other.entry(0, 0, customer).status in (RESERVED, SETTLED)
    assert other.audit().sound
    assert other.fund(0, 0, 10**9 + len(told), grace=0)  # nobody holds a lock
    other.close()


def driver_of(place):
    """Where exceptions may come from: the ledger's lines, and those of a driver that is written in Python."""
    if isinstance(place, SqliteFile):
        return (LEDGER,)
    import psycopg

    return LEDGER, str(Path(psycopg.__file__).parent)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alone", "together"])
def test_an_exception_at_any_line_leaves_a_ledger_that_keeps_its_word(place, kind):
    ledger, told, cut, places = place.open(), {}, [], driver_of(place)
    assert ledger.fund(0, 0, 10**9, grace=0)
    # a new connection after every cut takes PostgreSQL long, so there not every line has its turn
    line, stride = 0, 1 if isinstance(place, SqliteFile) else 37
    while True:
        customer = f"c{line}"

        def call():
            if kind == "alone":
                ledger.reserve(0, 0, customer, 1, expires=day(1), message="m")
                ledger.settle(0, 0, customer, 1, message="r")
            else:
                request = Request("reserve", 0, 0, customer, "m", 1, day(1))
                ledger.together([request, Request("settle", 0, 0, customer, "r", 1)])

        if not Cut(places, line).calls(call):
            break
        cut.append(customer)
        for turn in range(2):
            after = f"after {line} {turn}"
            assert ledger.reserve(0, 0, after, 1, expires=day(1), message="m") == RESERVED
            told[after] = RESERVED
        line += stride
    assert line > 60 and len(cut) > 10
    check(place, told, cut)
    ledger.close()


def test_requests_that_time_out_lose_nothing_that_was_told(place):
    """A signal handler raises at random moments, as the timeout of a request does."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("needs interval timers")

    def expire(*_):
        raise CutShort

    # log-uniform, from too short for any call: on a fast machine too, calls are cut short
    seconds = [math.log(x) for x in (1e-6, 5e-3)]
    rng, told, cut, calls = random.Random(0), {}, [], 0
    ledger = place.open()
    ledger.fund(0, 0, 10**9, grace=0)
    before = signal.signal(signal.SIGALRM, expire)
    try:
        while calls < 400 or len(cut) < 20:
            calls += 1
            customer = f"c{calls}"
            try:
                signal.setitimer(signal.ITIMER_REAL, math.exp(rng.uniform(*seconds)))
                answer = ledger.reserve(0, 0, customer, 1, expires=day(1), message="m")
                told[customer] = answer
                signal.setitimer(signal.ITIMER_REAL, 0)
            except CutShort:
                cut.append(customer)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert set(told.values()) <= {RESERVED}
    again = {customer: ledger.reserve(0, 0, customer, 1, expires=day(1), message="m") for customer in cut}
    assert set(again.values()) <= {RESERVED, KNOWN}
    check(place, told | dict.fromkeys(again, RESERVED), cut)
    ledger.close()


def test_a_thread_that_somebody_ends_leaves_the_rest_at_work(place):
    told, cut, stop, rng = {}, [], threading.Event(), random.Random(0)
    checking = place.open()
    checking.fund(0, 0, 10**9, grace=0)

    def send():
        ledger, k = place.open(), 0
        while not stop.is_set():
            try:
                while not stop.is_set():
                    k += 1
                    told[f"c{k}"] = ledger.reserve(0, 0, f"c{k}", 1, expires=day(1), message="m")
            except CutShort:
                cut.append(f"c{k}")

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    for turn in range(12):
        before = len(told)
        wait_until(lambda: len(told) > before, thread.is_alive)  # after every cut it goes on
        time.sleep(rng.uniform(0.0, 0.01))
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(CutShort))
        wait_until(lambda: len(cut) > turn, thread.is_alive)
    stop.set()
    thread.join()
    check(place, told, cut)
    checking.close()


@pytest.mark.slow
def test_what_was_answered_survives_sigkill(place):
    """Kill a process in the middle of its calls, over and over: each answer it printed is on disk."""
    where = repr(str(place.path)) if isinstance(place, SqliteFile) else f"{place.address!r}, name={place.name!r}"
    kind = "sqlite import Sqlite" if isinstance(place, SqliteFile) else "postgres import Postgres"
    sync = ", sync='normal'" if isinstance(place, SqliteFile) else ""
    program = (
        "import sys; from datetime import datetime, timezone\n"
        f"from envs.live.ledger.{kind}Ledger as Ledger\n"
        f"ledger, first = Ledger({where}, caller='x', timeout=9.0{sync}), int(sys.argv[1])\n"
        "for k in range(first, first + 10**6):\n"
        "    until = datetime(2026, 1, 6, tzinfo=timezone.utc)\n"
        "    print(k, ledger.reserve(0, 0, str(k), 1, expires=until, message='m'), flush=True)"
    )
    ledger, told, rng = place.open(), 0, random.Random(0)
    ledger.fund(0, 0, 10**9, grace=0)
    for k in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(k * 10**6)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        first = process.stdout.readline()
        assert first.endswith("\n")
        time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        heard = [first, *process.communicate()[0].splitlines(keepends=True)]
        for line in heard:
            if line.endswith("\n"):
                assert ledger.entry(0, 0, line.split()[0]).status == RESERVED
                told += 1
    balance = ledger.balance(0, 0)
    assert told <= balance.reserved <= told + 6  # a kill may fall between the deed and the answer
    assert ledger.audit().sound
    ledger.close()


def test_a_transaction_of_somebody_else_is_refused(place):
    """What is written into it could be undone by whoever began it."""
    ledger = place.open()
    ledger.fund(0, 0, 10, grace=0)
    ledger._connection.execute("BEGIN")
    for call in (
        lambda: ledger.reserve(0, 0, "a", 1, expires=day(1), message="m"),
        lambda: ledger.together([Request("reserve", 0, 0, "a", "m", 1, day(1))]),
        lambda: ledger.fund(0, 0, 20, grace=0),
        lambda: ledger.expire(day(5)),
    ):
        with pytest.raises(RuntimeError, match="a transaction that the ledger did not begin"):
            call()
    ledger._connection.execute("ROLLBACK")
    assert ledger.reserve(0, 0, "a", 1, expires=day(1), message="m") == RESERVED
    ledger.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_process_opens_its_own(place):
    ledger = place.open()
    ledger.fund(0, 0, 10, grace=0)
    child = os.fork()
    if not child:  # leaves by os._exit, so that nothing of pytest runs twice
        try:
            ledger.fund(0, 0, 20, grace=0)
        except RuntimeError as error:
            os._exit(0 if "open one ledger in each process" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert ledger.balance(0, 0).budget == 10
    ledger.close()


def test_a_locked_ledger_is_a_timeout(place):
    holder = place.open()
    holder.fund(0, 0, 10, grace=0)
    other = place.open(timeout=1.0)  # time enough for a statement, also of PostgreSQL's on a busy machine
    if isinstance(place, SqliteFile):
        holder._connection.execute("BEGIN IMMEDIATE")
    else:
        holder._connection.execute("BEGIN")
        holder._connection.execute("SELECT 1 FROM weeks FOR UPDATE")
    with pytest.raises(TimeoutError):
        other.fund(0, 0, 20, grace=0)
    with pytest.raises(TimeoutError):
        other.together([Request("reserve", 0, 0, "a", "m", 1, day(1))])
    assert other.balance(0, 0).budget == 10  # reading does not wait
    holder._connection.execute("COMMIT")
    assert other.reserve(0, 0, "a", 1, expires=day(1), message="m") == RESERVED
    other.close()
    holder.close()
