"""The tables of both stores, and the rules that a row must keep by itself.

A program writes the journal alone; each database's triggers apply a record to its entry and week (sqlite_triggers.py,
postgres_triggers.py).
"""

from __future__ import annotations

VERSION = 1  # of the tables and triggers; files of another version are refused


def tables(*, integer: str, blob: str, counter: str, strict: str, keyed: str) -> str:
    """Return the statements that create the tables, in the types of a database.

    `counter` is the type of a primary key that counts, `strict` what follows a table, `keyed` what follows a table that
    is stored by its primary key.
    """
    return f"""
CREATE TABLE IF NOT EXISTS weeks (
    season {integer} NOT NULL, week {integer} NOT NULL,
    budget {integer} NOT NULL DEFAULT 0 CHECK (budget >= 0),
    grace {integer} NOT NULL DEFAULT 0 CHECK (grace BETWEEN 0 AND 1000000),
    reserved {integer} NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    lapsed {integer} NOT NULL DEFAULT 0 CHECK (lapsed >= 0),
    settled {integer} NOT NULL DEFAULT 0 CHECK (settled >= 0), late {integer} NOT NULL DEFAULT 0 CHECK (late >= 0),
    over {integer} NOT NULL DEFAULT 0 CHECK (over >= 0),
    funded {integer}, record {integer} NOT NULL DEFAULT 0,
    PRIMARY KEY (season, week), CHECK (settled + reserved <= budget)){keyed};
CREATE TABLE IF NOT EXISTS entries (
    season {integer} NOT NULL, week {integer} NOT NULL, key {blob} NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('reserved', 'settled', 'over', 'late', 'released', 'expired', 'reversed')),
    held {integer} NOT NULL CHECK (held >= 0), expires {integer}, message TEXT NOT NULL,
    reserved {integer} NOT NULL CHECK (reserved = CASE status WHEN 'reserved' THEN held ELSE 0 END),
    lapsed {integer} NOT NULL CHECK (lapsed IN (0, held)),
    settled {integer} NOT NULL CHECK (settled BETWEEN 0 AND held), late {integer} NOT NULL CHECK (late >= 0),
    over {integer} NOT NULL CHECK (over >= 0), record {integer} NOT NULL,
    PRIMARY KEY (season, week, key)){keyed};
CREATE INDEX IF NOT EXISTS pending ON entries (expires) WHERE status = 'reserved';
CREATE TABLE IF NOT EXISTS journal (
    id {counter} CHECK (id > 0), at {integer} NOT NULL, caller TEXT NOT NULL, message TEXT NOT NULL,
    act TEXT NOT NULL, season {integer} NOT NULL, week {integer} NOT NULL, key {blob}, previous {integer}, status TEXT,
    amount {integer} NOT NULL CHECK (amount >= 0), held {integer}, expires {integer},
    budget {integer} NOT NULL DEFAULT 0, grace {integer} NOT NULL DEFAULT 0, reserved {integer} NOT NULL DEFAULT 0,
    lapsed {integer} NOT NULL DEFAULT 0, settled {integer} NOT NULL DEFAULT 0, late {integer} NOT NULL DEFAULT 0,
    over {integer} NOT NULL DEFAULT 0,
    CHECK ((act = 'fund') = (key IS NULL)), CHECK ((act = 'fund') = (status IS NULL)),
    CHECK (act = 'fund' OR (budget = 0 AND grace = 0)), CHECK (act = 'fund' OR (held IS NULL) = (previous IS NOT NULL)),
    CHECK (CASE
        WHEN act = 'fund' THEN reserved = 0 AND lapsed = 0 AND settled = 0 AND late = 0 AND over = 0 AND held IS NULL
        WHEN act = 'reserve' THEN status = 'reserved' AND held = amount AND reserved = amount AND expires IS NOT NULL
            AND lapsed = 0 AND settled = 0 AND late = 0 AND over = 0
        WHEN act = 'settle' THEN settled >= 0 AND late >= 0 AND over >= 0 AND settled + late + over = amount
            AND reserved <= 0 AND lapsed = 0 AND coalesce(held, 0) = 0
        WHEN act IN ('refund', 'reverse') THEN settled <= 0 AND late <= 0 AND over <= 0
            AND settled + late + over = -amount AND reserved = 0 AND lapsed = 0 AND previous IS NOT NULL
        WHEN act = 'release' THEN amount = 0 AND settled = 0 AND late = 0 AND over = 0
            AND reserved <= 0 AND lapsed <= 0
        WHEN act = 'expire' THEN amount = 0 AND settled = 0 AND late = 0 AND over = 0
            AND reserved + lapsed = 0 AND lapsed >= 0
        ELSE FALSE END)){strict};
CREATE UNIQUE INDEX IF NOT EXISTS once ON journal (season, week, key, act, message)
    WHERE act IN ('settle', 'refund', 'reverse');
CREATE TABLE IF NOT EXISTS ids (
    customer TEXT PRIMARY KEY, salt {blob} NOT NULL, key {blob} NOT NULL UNIQUE){keyed};
"""
