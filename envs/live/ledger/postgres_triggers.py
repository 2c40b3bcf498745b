"""PostgreSQL's triggers: they apply a record to its week and entry, and refuse every other change of them.

A record locks its week's row first, so that the calls of a week come one after the other; all locks are taken in the
order of weeks. The SQLSTATEs of class LG are the ledger's own.
"""

from __future__ import annotations

UNFUNDED, STALE, WITHIN_BUDGET, KEPT = "LG001", "LG002", "LG003", "LG004"

# Where time frees an entry that was paid in the same moment, the entry is left as it is.
# ⌈grace · lapsed⌉ is computed in two parts, so that the product stays within 64 bits.
APPLY = f"""
CREATE FUNCTION apply() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    w weeks;
    last BIGINT;
BEGIN
    IF NEW.act = 'fund' THEN
        INSERT INTO weeks (season, week) VALUES (NEW.season, NEW.week) ON CONFLICT DO NOTHING;
    END IF;
    SELECT * INTO w FROM weeks WHERE season = NEW.season AND week = NEW.week FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'ledger: unfunded' USING ERRCODE = '{UNFUNDED}';
    END IF;
    IF NEW.act = 'fund' THEN
        last := w.funded;
    ELSE
        SELECT record INTO last FROM entries WHERE season = NEW.season AND week = NEW.week AND key = NEW.key;
    END IF;
    IF NEW.previous IS DISTINCT FROM last THEN
        IF NEW.act = 'expire' THEN
            RETURN NULL;
        END IF;
        RAISE EXCEPTION 'ledger: stale' USING ERRCODE = '{STALE}';
    END IF;
    w.budget := w.budget + NEW.budget;
    w.grace := w.grace + NEW.grace;
    w.reserved := w.reserved + NEW.reserved;
    IF (NEW.reserved > 0 OR NEW.budget < 0 OR NEW.grace > 0)
        AND w.reserved + w.settled + w.over + greatest(w.late,
            w.lapsed / 1000000 * w.grace + (w.lapsed % 1000000 * w.grace + 999999) / 1000000) > w.budget THEN
        RAISE EXCEPTION 'ledger: within_budget' USING ERRCODE = '{WITHIN_BUDGET}';
    END IF;
    UPDATE weeks SET budget = w.budget, grace = w.grace, reserved = w.reserved, lapsed = lapsed + NEW.lapsed,
        settled = settled + NEW.settled, late = late + NEW.late, over = over + NEW.over,
        funded = CASE NEW.act WHEN 'fund' THEN NEW.id ELSE funded END, record = NEW.id
        WHERE season = NEW.season AND week = NEW.week;
    IF NEW.held IS NOT NULL THEN
        INSERT INTO entries
            (season, week, key, status, held, expires, message, reserved, lapsed, settled, late, over, record)
        VALUES (NEW.season, NEW.week, NEW.key, NEW.status, NEW.held, NEW.expires, NEW.message, NEW.reserved,
                NEW.lapsed, NEW.settled, NEW.late, NEW.over, NEW.id);
    ELSIF NEW.act <> 'fund' THEN
        UPDATE entries SET status = NEW.status, reserved = reserved + NEW.reserved, lapsed = lapsed + NEW.lapsed,
            settled = settled + NEW.settled, late = late + NEW.late, over = over + NEW.over, record = NEW.id
            WHERE season = NEW.season AND week = NEW.week AND key = NEW.key;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER applied BEFORE INSERT ON journal FOR EACH ROW EXECUTE FUNCTION apply();
"""
GUARDS = f"""
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ledger: % follows the journal, and the journal is kept', TG_TABLE_NAME USING ERRCODE = '{KEPT}';
END $$;
CREATE TRIGGER week_changed BEFORE INSERT OR UPDATE ON weeks FOR EACH ROW
    WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse();
CREATE TRIGGER week_kept BEFORE DELETE OR TRUNCATE ON weeks EXECUTE FUNCTION refuse();
CREATE TRIGGER entry_changed BEFORE INSERT OR UPDATE ON entries FOR EACH ROW
    WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse();
CREATE TRIGGER entry_kept BEFORE DELETE OR TRUNCATE ON entries EXECUTE FUNCTION refuse();
CREATE TRIGGER record_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON journal EXECUTE FUNCTION refuse();
CREATE TRIGGER id_kept BEFORE UPDATE OR TRUNCATE ON ids EXECUTE FUNCTION refuse();
"""
TRIGGERS = APPLY + GUARDS
