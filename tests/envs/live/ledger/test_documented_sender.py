"""The sender of docs/ledger.md: it crashes, runs again, and sends nothing twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from envs.live.ledger.protocol import to_units
from envs.live.ledger.sqlite import SqliteLedger

PAGE = Path(__file__).parents[4] / "docs/ledger.md"
ROWS = [f"{k},c{k},coffee,app,{face},2026-12-13" for k, face in enumerate((1.5, 1.5, 1.5, 4.9, 1.5))]


class Killed(BaseException):
    """What ends the sender between the ledger's answer and the message."""


def test_a_sender_that_crashed_sends_each_row_at_most_once(tmp_path):
    block = next(x for x in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "def send_plan" in x)
    assert len(block.splitlines()) <= 25
    names: dict = {}
    exec(block, names)
    path = tmp_path / "week=48.csv"
    path.write_text("\n".join(["decision,customer,offer,channel,face,valid_until", *ROWS]) + "\n")
    ledger = SqliteLedger(tmp_path / "money.db", caller="test", timeout=5.0, sync="normal")
    went, crashes = [], [True]

    def mail(row, idempotency_key):
        if row["customer"] == "c2" and crashes:
            crashes.clear()
            raise Killed
        went.append((row["customer"], idempotency_key))
        return row["customer"] != "c1"  # whose message bounces

    with pytest.raises(Killed):
        names["send_plan"](ledger, path, 48, 7.4, mail)
    assert [name for name, _ in went] == ["c0", "c1"]
    # 1.5 of c0 and 1.5 of c2 are held, so the dear row is refused and the last one is not
    assert names["send_plan"](ledger, path, 48, 7.4, mail) == {"known": 3, "refused": 1, "reserved": 1}
    assert names["send_plan"](ledger, path, 48, 7.4, mail) == {"known": 4, "refused": 1}
    assert went == [("c0", "week=48.csv:1"), ("c1", "week=48.csv:2"), ("c4", "week=48.csv:5")]
    assert ledger.balance(0, 48).reserved == to_units(4.5)
    assert ledger.settle(0, 48, "c0", to_units(1.2), message="receipt 1") == "settled"
    assert ledger.balance(0, 48).available == to_units(7.4 - 3.0 - 1.2) and ledger.audit().sound
