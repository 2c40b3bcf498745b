"""The sender of docs/ledger.md: it crashes, runs again, and sends nothing twice."""

from __future__ import annotations

import datetime as dt
import re
import shlex
import subprocess
import sys
import textwrap
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from envs.live.ledger.protocol import to_units
from envs.live.ledger.sqlite import SqliteLedger

PAGE = Path(__file__).parents[4] / "docs/ledger.md"
FACES = (1.5, 1.5, 1.5, 4.9, 1.5)
LAST_DAY = dt.date(2026, 12, 13)  # of the offers
LAST_MINUTE = dt.datetime(2026, 12, 13, 23, 59, tzinfo=dt.timezone.utc)


def functions_of_the_page(path, now):
    """The page's functions at a time, by name, and the sender's file of five rows."""
    blocks = re.findall(r"^ *```python\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names: dict = {}
    for block in blocks[1:]:  # the first is no program
        assert len(block.splitlines()) <= 55
        exec(textwrap.dedent(block), names)

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return now

    names["datetime"] = Clock
    rows = [f"{k},c{k},coffee,app,{face},{LAST_DAY}" for k, face in enumerate(FACES)]
    path.write_text("\n".join(["decision,customer,offer,channel,face,valid_until", *rows]) + "\n")
    return names


class Killed(BaseException):
    """What ends the sender between the ledger's answer and the message."""


def test_a_sender_that_crashed_sends_each_row_at_most_once(tmp_path):
    path = tmp_path / "week=48.csv"
    send_plan = functions_of_the_page(path, LAST_MINUTE)["send_plan"]
    ledger = SqliteLedger(tmp_path / "money.db", caller="test", timeout=5.0, sync="normal")
    went, crashes = [], [True]

    def mail(row, idempotency_key):
        if row["customer"] == "c2" and crashes:
            crashes.clear()
            raise Killed
        went.append((row["customer"], idempotency_key))
        return row["customer"] != "c1"  # whose message bounces

    with pytest.raises(Killed):
        send_plan(ledger, path, 48, 7.4, mail)
    assert [name for name, _ in went] == ["c0", "c1"]
    # 1.5 of c0 and 1.5 of c2 are held, so the dear row is refused and the last one is not
    assert send_plan(ledger, path, 48, 7.4, mail) == {"known": 3, "refused": 1, "reserved": 1}
    assert send_plan(ledger, path, 48, 7.4, mail) == {"known": 4, "refused": 1}
    assert went == [("c0", "week=48.csv:1"), ("c1", "week=48.csv:2"), ("c4", "week=48.csv:5")]
    assert ledger.balance(0, 48).reserved == to_units(4.5)
    assert ledger.settle(0, 48, "c0", to_units(1.2), message="receipt 1") == "settled"
    assert ledger.balance(0, 48).available == to_units(7.4 - 3.0 - 1.2) and ledger.audit().sound


def test_no_offer_is_sent_that_has_ended(tmp_path):
    """A sender that crashed is started again nine days later."""
    path = tmp_path / "week=48.csv"
    send_plan = functions_of_the_page(path, LAST_MINUTE + dt.timedelta(minutes=1))["send_plan"]
    ledger = SqliteLedger(tmp_path / "money.db", caller="test", timeout=5.0, sync="normal")
    assert send_plan(ledger, path, 48, 7.4, lambda row, idempotency_key: pytest.fail("sent")) == {"ended": 5}
    assert ledger.balance(0, 48).reserved == 0


def test_after_a_restore_nothing_is_sent_twice(tmp_path):
    path, went = tmp_path / "week=48.csv", []
    page = functions_of_the_page(path, LAST_MINUTE)

    def mail(row, idempotency_key):
        if len(went) == 3 and not (tmp_path / "restored.db").exists():
            raise Killed
        went.append(idempotency_key)
        return True

    ledger = SqliteLedger(tmp_path / "money.db", caller="test", timeout=5.0, sync="normal")
    ledger.back_up(tmp_path / "copy.db")  # before anything was sent
    with pytest.raises(Killed):
        page["send_plan"](ledger, path, 48, 10.9, mail)
    (tmp_path / "copy.db").rename(tmp_path / "restored.db")
    restored = page["open_money"](tmp_path / "restored.db")
    assert page["reserve_sent"](restored, path, 48, set(went), set()) == {"reserved": 3}
    assert page["reserve_sent"](restored, path, 48, set(went), set()) == {"known": 3}
    page["fund_at_least"](restored, 48, 10.9)
    assert page["send_plan"](restored, path, 48, 10.9, mail) == {"known": 3, "reserved": 2}
    assert went == [f"week=48.csv:{number}" for number in range(1, 6)]
    assert restored.balance(0, 48).reserved == to_units(10.9) and restored.audit().sound


@pytest.mark.parametrize("copied", [0, 2])  # reservations that the copy has
def test_after_a_restore_a_row_that_found_money_after_a_receipt_is_not_sent_again(tmp_path, copied):
    path, went = tmp_path / "week=48.csv", []
    page = functions_of_the_page(path, LAST_MINUTE)
    lost = SqliteLedger(tmp_path / "money.db", caller="test", timeout=5.0, sync="normal")
    mail = lambda row, idempotency_key: went.append(idempotency_key) or True  # noqa: E731
    if not copied:
        lost.back_up(tmp_path / "copy.db")
    # the faces of c0 and c1 take the money; what their receipts free is enough for c2
    assert page["send_plan"](lost, path, 48, 4.0, mail) == {"reserved": 2, "refused": 3}
    if copied:
        lost.back_up(tmp_path / "copy.db")

    def till(ledger, customers):
        return [ledger.settle(0, 48, name, to_units(1.0), message=f"receipt {name}") for name in customers]

    till(lost, ["c0", "c1"])
    assert page["send_plan"](lost, path, 48, 4.0, mail) == {"known": 2, "reserved": 1, "refused": 2}
    till(lost, ["c2"])
    sent, restored = list(went), page["open_money"](tmp_path / "copy.db")
    replayed = page["reserve_sent"](restored, path, 48, set(sent), set())
    assert replayed == Counter({"known": copied, "reserved": 3 - copied})
    assert till(restored, ["c0", "c1", "c2"]) == ["settled"] * 3
    page["fund_at_least"](restored, 48, 4.0)
    assert restored.balance(0, 48) == lost.balance(0, 48) and restored.audit().sound
    assert page["send_plan"](restored, path, 48, 4.0, mail) == {"known": 3, "refused": 2} and went == sent


def test_after_a_restore_a_week_in_which_more_was_paid_than_its_money_sends_nothing(tmp_path):
    path, went = tmp_path / "week=48.csv", []
    page = functions_of_the_page(path, LAST_MINUTE)
    ledger = SqliteLedger(tmp_path / "money.db", caller="test", timeout=5.0, sync="normal")
    page["reserve_sent"](ledger, path, 48, {"week=48.csv:1"}, set())
    assert ledger.settle(0, 48, "c0", to_units(6.0), message="receipt") == "over"
    page["fund_at_least"](ledger, 48, 4.0)
    assert ledger.balance(0, 48).available == 0
    assert page["send_plan"](ledger, path, 48, 4.0, went.append) == {"known": 1, "refused": 4} and not went


def test_after_a_restore_the_books_are_those_of_the_lost_file(tmp_path):
    """The copy is older than the week, whose offers have ended, and a customer was erased since."""
    path, after = tmp_path / "week=47.csv", LAST_MINUTE + dt.timedelta(days=1)
    page = functions_of_the_page(path, LAST_MINUTE)
    lost = SqliteLedger(tmp_path / "money.db", caller="test", timeout=5.0, sync="normal")
    lost.back_up(tmp_path / "copy.db")
    # 9.4 is enough only because the message of c1 bounces
    sent = page["send_plan"](lost, path, 47, 9.4, lambda row, idempotency_key: row["customer"] != "c1")
    assert sent == {"reserved": 4, "released": 1}

    def till(ledger):
        ledger.settle(0, 47, "c0", to_units(1.2), message="receipt 0")
        ledger.refund(0, 47, "c0", to_units(0.2), message="refund 0")
        ledger.settle(0, 47, "c2", to_units(1.0), message="receipt 2")
        ledger.reverse(0, 47, "c2", message="receipt 2")
        ledger.settle(0, 47, "c3", to_units(5.0), message="receipt 3")
        assert ledger.expire(after) == 1 and ledger.erase("c3")

    till(lost)
    restored = page["open_money"](tmp_path / "copy.db")
    keys = [f"week=47.csv:{number}" for number in range(1, 6)]
    replayed = page["reserve_sent"](restored, path, 47, set(keys) - {keys[1]}, {keys[1]})
    assert replayed == {"reserved": 4, "released": 1}
    till(restored)
    page["fund_at_least"](restored, 47, 9.4)
    assert restored.balance(0, 47) == lost.balance(0, 47) and restored.audit().sound
    for customer in ("c0", "c1", "c2", "c3", "c4"):
        assert restored.entry(0, 47, customer) == lost.entry(0, 47, customer)
    assert restored.entry(0, 47, "c3") is None


def test_who_was_erased_is_sent_nothing_again_and_stays_out_of_the_ledger(tmp_path):
    path, went = tmp_path / "week=48.csv", []
    page = functions_of_the_page(path, LAST_MINUTE)
    ledger = SqliteLedger(tmp_path / "money.db", caller="test", timeout=5.0, sync="normal")

    def mail(row, idempotency_key):
        went.append(row["customer"])
        return row["customer"] != "c1"

    assert page["send_plan"](ledger, path, 48, 4.5, mail) == {"reserved": 3, "released": 1, "refused": 1}
    ledger.settle(0, 48, "c0", to_units(1.0), message="receipt 0")
    for customer in ("c0", "c1", "c3"):  # paid, bounced, refused
        ledger.erase(customer)
    ledger.fund(0, 48, to_units(20), grace=0)
    for answer in ("reserved", "known"):
        assert page["send_plan"](ledger, path, 48, 20, mail) == Counter(["erased"] * 2 + ["known"] * 2 + [answer])
    assert went == ["c0", "c1", "c2", "c4", "c3"]
    assert not ledger.erase("c0") and not ledger.erase("c1")
    assert page["reserve_sent"](ledger, path, 48, {"week=48.csv:1"}, set()) == {"erased": 1}
    ledger.settle(0, 48, "c0", to_units(1.0), message="receipt 5")  # the id is back, by a payment
    assert page["send_plan"](ledger, path, 48, 20, mail)["erased"] == 1 and len(went) == 5


def test_a_sender_without_a_ledgers_file_stops(tmp_path):
    page = functions_of_the_page(tmp_path / "week=48.csv", LAST_MINUTE)
    with pytest.raises(FileNotFoundError, match=r"money\.db: expected a ledger"):
        page["open_money"](tmp_path / "money.db")
    assert not (tmp_path / "money.db").exists()
    done = run_line("SqliteLedger(", tmp_path)
    assert done.returncode == 0, done.stderr
    page["open_money"](tmp_path / "money.db").close()


def test_the_pages_line_adds_face_up(tmp_path):
    (tmp_path / "sent").mkdir()
    functions_of_the_page(tmp_path / "sent" / "week=48.csv", LAST_MINUTE)
    done = run_line("sum(", tmp_path)
    assert Decimal(done.stdout.strip()) == sum(Decimal(str(face)) for face in FACES), done.stderr


def run_line(part: str, folder: Path) -> subprocess.CompletedProcess:
    """Run the page's command of Python that has a part, in a folder."""
    (line,) = re.findall(rf"^ *\.venv/bin/python (-c .*{re.escape(part)}.*)$", PAGE.read_text(), re.MULTILINE)
    return subprocess.run([sys.executable, *shlex.split(line)], cwd=folder, capture_output=True, text=True)
