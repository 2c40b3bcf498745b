"""The statements of both stores, in the SQL that SQLite and PostgreSQL share; a value is `:name`."""

from __future__ import annotations

MONEY = ("reserved", "lapsed", "settled", "late", "over")  # of an entry; a week also has `budget` and `grace`
RECORD = (
    "at", "caller", "message", "act", "season", "week", "key", "previous", "status", "amount", "held", "expires",
    "budget", "grace", *MONEY,
)  # fmt: skip
EMPTY_RECORD = (
    dict.fromkeys(RECORD, 0) | dict.fromkeys(("key", "previous", "status", "held", "expires")) | {"message": ""}
)

APPEND = f"INSERT INTO journal ({', '.join(RECORD)}) VALUES ({', '.join(f':{name}' for name in RECORD)})"
# in the order of weeks, as all locks are taken
EXPIRE = """
    INSERT INTO journal (at, caller, message, act, season, week, key, previous, status, amount, reserved, lapsed)
    SELECT :at, :caller, '', 'expire', season, week, key, record, 'expired', 0, -held, held
    FROM entries WHERE status = 'reserved' AND expires <= :now ORDER BY season, week"""

KEY = "SELECT key FROM ids WHERE customer = :customer"
NEW_ID = """
    INSERT INTO ids (customer, salt, key) SELECT :customer, :salt, :key
    WHERE NOT EXISTS (SELECT 1 FROM ids WHERE customer = :customer) ON CONFLICT DO NOTHING"""
IDS = "SELECT customer, salt, key FROM ids"
ERASE = """
    DELETE FROM ids WHERE customer = :customer
        AND NOT EXISTS (SELECT 1 FROM entries e WHERE e.key = ids.key AND e.status = 'reserved')"""

FUNDED = "SELECT budget, grace, funded FROM weeks WHERE season = :season AND week = :week"
BALANCE = """
    SELECT budget, grace, reserved, lapsed, settled, late, over FROM weeks WHERE season = :season AND week = :week"""
ENTRY = """
    SELECT i.key, e.status, e.held, e.settled, e.late, e.over, e.expires, e.message, e.record
    FROM ids i LEFT JOIN entries e ON e.season = :season AND e.week = :week AND e.key = i.key
    WHERE i.customer = :customer"""
EARLIER = """
    SELECT act, amount, status FROM journal
    WHERE season = :season AND week = :week AND key = :key AND message = :message
        AND act IN ('settle', 'refund', 'reverse')"""
JOURNAL = """
    SELECT id, at, caller, message, act, season, week, key, previous, status, amount,
           budget, grace, reserved, lapsed, settled, late, over
    FROM journal WHERE season = :season AND week = :week ORDER BY id"""


def _sums(names: tuple[str, ...]) -> str:
    return ", ".join(f"CAST(coalesce(sum({name}), 0) AS BIGINT) AS {name}" for name in names)


def _differ(names: tuple[str, ...], one: str, other: str) -> str:
    return " OR ".join(f"{one}.{name} <> coalesce({other}.{name}, 0)" for name in names)


def _count(condition: str) -> str:
    return f"CAST(coalesce(sum(CASE WHEN {condition} THEN 1 ELSE 0 END), 0) AS BIGINT)"


def _total(name: str) -> str:
    return f"CAST(coalesce(sum(w.{name}), 0) AS BIGINT)"


AUDIT_WEEKS = f"""
    SELECT count(*), {_count("w.settled + w.late + w.over > w.budget")},
           {_count("w.settled + w.reserved > w.budget")},
           {_count(f"{_differ(MONEY, 'w', 'e')} OR {_differ(('budget', 'grace', *MONEY), 'w', 'j')}")},
           {_total("settled")}, {_total("late")}, {_total("over")}
    FROM weeks w
    LEFT JOIN (SELECT season, week, {_sums(MONEY)} FROM entries GROUP BY season, week) e
        ON e.season = w.season AND e.week = w.week
    LEFT JOIN (SELECT season, week, {_sums(("budget", "grace", *MONEY))} FROM journal GROUP BY season, week) j
        ON j.season = w.season AND j.week = w.week"""
AUDIT_ENTRIES = f"""
    SELECT count(*), (SELECT count(*) FROM journal),
           {_count(f"{_differ(MONEY, 'e', 'j')} OR e.record <> coalesce(j.record, 0)")}
    FROM entries e
    LEFT JOIN (SELECT season, week, key, max(id) AS record, {_sums(MONEY)}
               FROM journal WHERE key IS NOT NULL GROUP BY season, week, key) j
        ON j.season = e.season AND j.week = e.week AND j.key = e.key"""
