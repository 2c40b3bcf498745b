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
    "over": 0.2,
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
ANSWERS = {"send: reserved", "send: known", "send: refused", "redeem: settled", "redeem: late", "redeem: over"}


@pytest.mark.long
@pytest.mark.parametrize("store", ["SQLite", "PostgreSQL"])
def test_a_siege_loses_nothing_and_sends_nothing_twice(tmp_path, store):
    """What kills and cuts meet is up to the machine, so sieges go on until they have met enough."""
    address = postgres_address() if store == "PostgreSQL" else "ledger.db"
    kills, cut_short, answers = 0, 0, set()
    for seed in range(10):
        result = siege.run(tmp_path / str(seed), None, seed, **OPTIONS, ledgers=[address])
        assert result["weeks_unguarded_breach"] > 40  # without a ledger most weeks would have been
        found = result["stores"][store]
        check(found)
        kills, cut_short = kills + found["kills"], cut_short + found["cut_short"]
        answers |= found["answers"].keys()
        if kills > 5 and cut_short > 5 and answers >= ANSWERS:
            return
    pytest.fail(f"{kills} kills, {cut_short} cuts, {answers}")


def check(found: dict) -> None:
    """What the ledger of a siege says is what happened."""
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
