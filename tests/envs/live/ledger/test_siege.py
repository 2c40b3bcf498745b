"""Many writers that are killed and cut short: the books say what the till paid, and nothing is sent twice."""

from __future__ import annotations

import pytest

from ledger_stores import postgres_address
from scripts.benchmarks.reliability import ledger as siege

OPTIONS = {
    "weeks": 60,
    "customers": 12,
    "values": [0.5, 2.5],
    "cost": 0.05,
    "forecast": [0.04, 0.12],
    "factor": 3.0,
    "unsent": 0.1,
    "unheard": 0.1,
    "late": 0.3,
    "over": 0.05,
    "refunds": 0.1,
    "grace": 0.5,
    "validity": 6,
    "duplicates": 0.3,
    "reorder": 1.0,
    "cuts": 0.1,
    "writers": 12,
    "pace": 15.0,
    "tries": 3,
    "retry": 2.0,
    "kill_seconds": 0.25,
    "sync": "normal",
    "timeout": 60.0,
}


@pytest.mark.long
@pytest.mark.parametrize("store", ["SQLite", "PostgreSQL"])
def test_a_siege_loses_nothing_and_sends_nothing_twice(tmp_path, store):
    address = postgres_address() if store == "PostgreSQL" else "ledger.db"
    result = siege.run(tmp_path, None, 0, **OPTIONS, ledgers=[address])
    found = result["stores"][store]
    assert result["weeks_unguarded_breach"] > 40  # without a ledger most weeks would have been
    assert found["kills"] > 5 and found["cut_short"] > 5
    for name in (
        "sent_twice",
        "not_in_the_books",
        "wrong_payments",
        "unanswered",
        "lost",
        "till_over_budget_though_covered",
        "overbooked",
        "wrong_weeks",
        "wrong_entries",
        "wrong_keys",
    ):
        assert found[name] == 0, name
    assert found["till_over_budget"] == found["overspent"]
    assert found["till"] == found["settled"] + found["late"] + found["over"] > 0
    assert {"send: reserved", "send: known", "send: refused", "redeem: settled", "redeem: late", "redeem: over"} <= set(
        found["answers"]
    )
