"""One writer of the ledger's siege: a sender of messages and a till, which may be killed at any moment.

A writer makes the calls of its list and journals each final answer, so that after a SIGKILL it goes on where its
journal ends and repeats every call without an answer. What happens outside of the ledger is kept in files that no
ledger writes: `sent/WEEK.CUSTOMER` is a message that went out, and NAME.till has what was paid and paid back.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from envs.live.ledger.opening import open_ledger
from envs.live.ledger.protocol import ABSENT, REFUSED, RESERVED

MONDAY = datetime(2026, 1, 5, tzinfo=timezone.utc)
CUT_SECONDS = (2e-6, 5e-3)  # until an exception cuts a call short: log-uniform, for fast machines and for slow ones
DRAIN_SECONDS = 0.02  # between the tries of a call that must wait for another writer's
NOT_YET = "not yet"
PAYMENT_ON_ITS_WAY = "payment on its way"


class CutShort(BaseException):
    """What a handler of signals raises in the middle of a call; as an Exception, a database driver could catch it."""


def date_of(week: float) -> datetime:
    """Return the moment at which a week of the siege begins."""
    return MONDAY + timedelta(weeks=week)


class Writer:
    """Makes the calls of one list: [place in time, act, week, customer, arguments]."""

    def __init__(self, folder: Path, name: str, *, address: str, timeout: float, sync: str, cuts: float):
        self.folder = folder
        self.name = name
        self.cuts = cuts
        self.rng = random.Random()
        self.ledger = self._patiently(lambda: open_ledger(address, caller=f"writer {name}", timeout=timeout, sync=sync))
        signal.signal(signal.SIGALRM, cut_short)

    def run(self, start: float, pace: float, tries: int, retry: float) -> None:
        """Make each call when its week has come: `pace` weeks a second since `start`.

        Calls that are refused or come too early are tried again, `tries` times in total. A pace of 0 drains the list:
        all calls come at once, and what has not happened by then never will.
        """
        calls = json.loads((self.folder / f"{self.name}.json").read_text())
        answered = journal(self.folder, self.name)
        pending = [(call[0], k, 1) for k, call in enumerate(calls) if k not in answered]
        heapq.heapify(pending)
        with open(self.folder / f"{self.name}.journal", "ab", buffering=0) as out:
            out.write(b"\n")  # ends a line that a kill cut short
            while pending:
                place, k, tried = heapq.heappop(pending)
                if pace:
                    time.sleep(max(0.0, start + place / pace - time.time()))
                answer = self.answer(*calls[k][1:])
                if answer == PAYMENT_ON_ITS_WAY or (answer in (REFUSED, ABSENT, NOT_YET) and tried < tries):
                    time.sleep(0.0 if pace else DRAIN_SECONDS)
                    heapq.heappush(pending, (place + retry, k, tried + 1))
                elif answer not in (ABSENT, NOT_YET) or not pace:
                    out.write(f"{k} {answer.replace(' ', '_')}.\n".encode())
        self.ledger.close()

    def answer(self, act: str, week: int, customer: str, arguments: list) -> str:
        """Make one call until it is not cut short, and do what follows from its answer."""
        ledger, message = self.ledger, f"{week}.{customer}"
        if act == "expire":
            return str(self._uncut(lambda: ledger.expire(date_of(week))))
        if act == "send":
            amount, expires, goes_out = arguments
            answer = self._uncut(
                lambda: ledger.reserve(0, week, customer, amount, expires=date_of(expires), message=message)
            )
            if answer == RESERVED and goes_out:
                self._send(message)
            return answer
        if act == "release":
            return self._uncut(lambda: ledger.release(0, week, customer, message=message))
        if not (self.folder / "sent" / message).exists():
            return NOT_YET  # who has no message redeems none
        (amount,) = arguments
        if act == "redeem":
            self._happened(f"{week} {customer} {amount}")
            (self.folder / "paid" / message).touch()
            return self._uncut(lambda: ledger.settle(0, week, customer, amount, message="receipt"))
        if not (self.folder / "paid" / message).exists():
            return NOT_YET
        self._happened(f"{week} {customer} {-amount}")
        try:
            answer = self._uncut(lambda: ledger.refund(0, week, customer, amount, message="refund"))
        except ValueError:  # more than the ledger knows to be paid
            answer = ABSENT
        return PAYMENT_ON_ITS_WAY if answer == ABSENT else answer

    def _send(self, message: str) -> None:
        try:
            os.close(os.open(self.folder / "sent" / message, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self._note("twice", message)

    def _happened(self, line: str) -> None:
        self._note("till", line)

    def _note(self, kind: str, line: str) -> None:
        """Append a line, whole or not at all."""
        with open(self.folder / f"{self.name}.{kind}", "ab", buffering=0) as out:
            out.write(f"{line}\n".encode())

    def _uncut(self, call: Callable[[], Any]) -> Any:
        """Repeat a call that was cut short, as a sender would whose request timed out."""
        while True:
            try:
                try:
                    if self.rng.random() < self.cuts:
                        signal.setitimer(signal.ITIMER_REAL, math.exp(self.rng.uniform(*map(math.log, CUT_SECONDS))))
                    answer = self._patiently(call)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                return answer
            except CutShort:
                self._note("cut", "")

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Repeat a call that had to wait too long; a busy machine is no failure."""
        while True:
            try:
                return call()
            except TimeoutError:
                self._note("slow", "")


def cut_short(*_: Any) -> None:
    """Raise in whatever runs."""
    raise CutShort


def journal(folder: Path, name: str) -> dict[int, str]:
    """Read a writer's answers, {index of the call: answer}; a line without its full stop was cut short."""
    path = folder / f"{name}.journal"
    lines = path.read_text().splitlines() if path.exists() else []
    return {int(k): answer[:-1] for k, answer in (line.split() for line in lines if line.endswith("."))}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the main process, which ends its writers
    place, writer, begun, speed = sys.argv[1:]
    options = json.loads((Path(place) / "options.json").read_text())
    times, wait = options.pop("tries"), options.pop("retry")
    Writer(Path(place), writer, **options).run(float(begun), float(speed), times, wait)
