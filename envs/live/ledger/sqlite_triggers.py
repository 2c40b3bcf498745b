"""SQLite's triggers: they apply a record to its week and entry, and refuse every other change of them."""

from __future__ import annotations

# AFTER a record: what may be reserved is what the budget leaves beside payments, reservations, and late redemptions,
# for which at least ⌈grace · lapsed⌉ is kept (in two parts, so that the product stays within 64 bits)
APPLY = """
CREATE TRIGGER IF NOT EXISTS asked BEFORE INSERT ON journal BEGIN
    SELECT RAISE(ABORT, 'ledger: kept') WHERE EXISTS (SELECT 1 FROM journal WHERE id = NEW.id);
    SELECT RAISE(ABORT, 'ledger: unfunded') WHERE NEW.act <> 'fund'
        AND NOT EXISTS (SELECT 1 FROM weeks WHERE season = NEW.season AND week = NEW.week);
    SELECT RAISE(ABORT, 'ledger: stale') WHERE NEW.previous IS NOT CASE NEW.act
        WHEN 'fund' THEN (SELECT funded FROM weeks WHERE season = NEW.season AND week = NEW.week)
        ELSE (SELECT record FROM entries WHERE season = NEW.season AND week = NEW.week AND key = NEW.key) END;
END;
CREATE TRIGGER IF NOT EXISTS applied AFTER INSERT ON journal BEGIN
    INSERT INTO weeks (season, week) SELECT NEW.season, NEW.week WHERE NEW.act = 'fund'
        AND NOT EXISTS (SELECT 1 FROM weeks WHERE season = NEW.season AND week = NEW.week);
    SELECT RAISE(ABORT, 'ledger: within_budget') FROM weeks WHERE season = NEW.season AND week = NEW.week
        AND (NEW.reserved > 0 OR NEW.budget < 0 OR NEW.grace > 0)
        AND reserved + NEW.reserved + settled + over + max(late,
            lapsed / 1000000 * (grace + NEW.grace) + (lapsed % 1000000 * (grace + NEW.grace) + 999999) / 1000000
        ) > budget + NEW.budget;
    UPDATE weeks SET budget = budget + NEW.budget, grace = grace + NEW.grace, reserved = reserved + NEW.reserved,
        lapsed = lapsed + NEW.lapsed, settled = settled + NEW.settled, late = late + NEW.late, over = over + NEW.over,
        funded = CASE NEW.act WHEN 'fund' THEN NEW.id ELSE funded END, record = NEW.id
        WHERE season = NEW.season AND week = NEW.week;
    INSERT INTO entries
        (season, week, key, status, held, expires, message, reserved, lapsed, settled, late, over, record)
        SELECT NEW.season, NEW.week, NEW.key, NEW.status, NEW.held, NEW.expires, NEW.message, NEW.reserved, NEW.lapsed,
               NEW.settled, NEW.late, NEW.over, NEW.id WHERE NEW.held IS NOT NULL;
    UPDATE entries SET status = NEW.status, reserved = reserved + NEW.reserved, lapsed = lapsed + NEW.lapsed,
        settled = settled + NEW.settled, late = late + NEW.late, over = over + NEW.over, record = NEW.id
        WHERE season = NEW.season AND week = NEW.week AND key = NEW.key AND NEW.held IS NULL;
END;
"""
# REPLACE deletes without asking a trigger, but not before the BEFORE triggers of what it inserts have run
GUARDS = """
CREATE TRIGGER IF NOT EXISTS week_opened BEFORE INSERT ON weeks
    WHEN NEW.budget OR NEW.grace OR NEW.reserved OR NEW.lapsed OR NEW.settled OR NEW.late OR NEW.over OR NEW.record
        OR EXISTS (SELECT 1 FROM weeks WHERE season = NEW.season AND week = NEW.week)
    BEGIN SELECT RAISE(ABORT, 'ledger: weeks follow the journal'); END;
CREATE TRIGGER IF NOT EXISTS week_changed BEFORE UPDATE ON weeks
    WHEN NOT EXISTS (SELECT 1 FROM journal j WHERE j.id = NEW.record AND j.id > OLD.record
        AND j.season = OLD.season AND j.week = OLD.week AND NEW.season = OLD.season AND NEW.week = OLD.week
        AND NEW.budget = OLD.budget + j.budget AND NEW.grace = OLD.grace + j.grace
        AND NEW.reserved = OLD.reserved + j.reserved AND NEW.lapsed = OLD.lapsed + j.lapsed
        AND NEW.settled = OLD.settled + j.settled AND NEW.late = OLD.late + j.late AND NEW.over = OLD.over + j.over)
    BEGIN SELECT RAISE(ABORT, 'ledger: weeks follow the journal'); END;
CREATE TRIGGER IF NOT EXISTS week_kept BEFORE DELETE ON weeks BEGIN SELECT RAISE(ABORT, 'ledger: kept'); END;
CREATE TRIGGER IF NOT EXISTS entry_opened BEFORE INSERT ON entries
    WHEN EXISTS (SELECT 1 FROM entries WHERE season = NEW.season AND week = NEW.week AND key = NEW.key)
        OR NOT EXISTS (SELECT 1 FROM journal j WHERE j.id = NEW.record AND j.season = NEW.season
            AND j.week = NEW.week AND j.key = NEW.key AND j.previous IS NULL AND j.status = NEW.status
            AND j.held = NEW.held AND j.expires IS NEW.expires AND j.message = NEW.message
            AND j.reserved = NEW.reserved AND j.lapsed = NEW.lapsed AND j.settled = NEW.settled
            AND j.late = NEW.late AND j.over = NEW.over)
    BEGIN SELECT RAISE(ABORT, 'ledger: entries follow the journal'); END;
CREATE TRIGGER IF NOT EXISTS entry_changed BEFORE UPDATE ON entries
    WHEN NOT EXISTS (SELECT 1 FROM journal j WHERE j.id = NEW.record AND j.previous = OLD.record
        AND j.season = OLD.season AND j.week = OLD.week AND j.key = OLD.key AND j.status = NEW.status
        AND NEW.season = OLD.season AND NEW.week = OLD.week AND NEW.key = OLD.key
        AND NEW.held = OLD.held AND NEW.expires IS OLD.expires AND NEW.message = OLD.message
        AND NEW.reserved = OLD.reserved + j.reserved AND NEW.lapsed = OLD.lapsed + j.lapsed
        AND NEW.settled = OLD.settled + j.settled AND NEW.late = OLD.late + j.late AND NEW.over = OLD.over + j.over)
    BEGIN SELECT RAISE(ABORT, 'ledger: entries follow the journal'); END;
CREATE TRIGGER IF NOT EXISTS entry_kept BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'ledger: kept'); END;
CREATE TRIGGER IF NOT EXISTS record_changed BEFORE UPDATE ON journal BEGIN SELECT RAISE(ABORT, 'ledger: kept'); END;
CREATE TRIGGER IF NOT EXISTS record_kept BEFORE DELETE ON journal BEGIN SELECT RAISE(ABORT, 'ledger: kept'); END;
CREATE TRIGGER IF NOT EXISTS id_changed BEFORE UPDATE ON ids BEGIN SELECT RAISE(ABORT, 'ledger: kept'); END;
CREATE TRIGGER IF NOT EXISTS id_replaced BEFORE INSERT ON ids
    WHEN EXISTS (SELECT 1 FROM ids WHERE customer = NEW.customer)
    BEGIN SELECT RAISE(ABORT, 'ledger: kept'); END;
"""
TRIGGERS = APPLY + GUARDS
