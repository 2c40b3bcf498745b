"""The ledger's file: other programs, other versions, raw SQL, who may read it, backups, erasure, network disks."""

from __future__ import annotations

import re
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from envs.live.ledger import sqlite
from envs.live.ledger.local_disk import network_disk
from envs.live.ledger.opening import open_ledger
from envs.live.ledger.protocol import LATE, RESERVED, SETTLED, Balance
from envs.live.ledger.sqlite import SqliteLedger
from ledger_stores import SqliteFile, day

ROOT = Path(sqlite.__file__).parents[3]

RECORD = "RECORD"  # stands for the beginning of a statement that inserts one, with these values:
COMMON, VALUES = "at, caller, message, season, week", "0, 'x', 'x', 0, 0"


@pytest.fixture
def ledger(tmp_path):
    """A week of 10: 5 held for a, 3 of 5 paid for b, and 2 that b's reservation left."""
    ledger = SqliteFile(tmp_path).open()
    ledger.fund(0, 0, 10, grace=0)
    ledger.reserve(0, 0, "a", 5, expires=day(9), message="m")
    ledger.reserve(0, 0, "b", 5, expires=day(9), message="m")
    assert ledger.settle(0, 0, "b", 3, message="r") == SETTLED
    yield ledger
    ledger.close()


@pytest.mark.parametrize("recursive", [True, False])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE weeks SET reserved = 0",
        "UPDATE weeks SET settled = 11",
        "UPDATE weeks SET budget = 10000",
        "UPDATE weeks SET budget = 7, record = 1",
        "UPDATE weeks SET grace = 1000000, record = record + 1",
        "DELETE FROM weeks",
        "INSERT OR REPLACE INTO weeks (season, week, budget) VALUES (0, 0, 10000)",
        "INSERT OR REPLACE INTO weeks (season, week) VALUES (0, 0)",
        "INSERT INTO weeks (season, week, budget) VALUES (0, 1, 5)",
        "UPDATE entries SET held = 1",
        "UPDATE entries SET status = 'settled', reserved = 0, settled = 5 WHERE status = 'reserved'",
        "UPDATE entries SET status = 'reserved', reserved = held, settled = 0 WHERE status = 'settled'",
        "UPDATE entries SET message = 'other'",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries SELECT season, week, key, 'reserved', held, expires, message, held, 0, 0, 0, "
        "0, (SELECT min(id) FROM journal j WHERE j.key = entries.key) FROM entries WHERE status = 'settled'",
        "INSERT INTO entries SELECT season, week, x'00', 'settled', 9, expires, message, 0, 0, 9, 0, 0, record "
        "FROM entries",
        "UPDATE journal SET amount = 1",
        "DELETE FROM journal",
        "INSERT OR REPLACE INTO journal SELECT * FROM journal WHERE id = 2",
        "UPDATE ids SET key = x'00' WHERE customer = 'a'",
        "INSERT OR REPLACE INTO ids VALUES ('a', x'00', x'01')",
        # records that no call writes
        f"{RECORD} (act, key, status, amount, held, reserved, expires) SELECT 'reserve', x'00', 'reserved', 3, 3, 3, 0",
        f"{RECORD} (act, key, status, amount, held, reserved, expires) SELECT 'reserve', x'00', 'reserved', 2, 2, 0, 0",
        f"{RECORD} (act, key, previous, status, amount, reserved) "
        "SELECT 'settle', key, record, 'settled', 0, -1 FROM entries WHERE status = 'reserved'",
        f"{RECORD} (act, key, previous, status, amount, reserved, settled) "
        "SELECT 'settle', key, 99, 'settled', 1, -5, 1 FROM entries WHERE status = 'reserved'",
        f"{RECORD} (act, amount, budget) SELECT 'fund', 1, 1",
        f"{RECORD} (act, amount, previous, budget) SELECT 'fund', 1, 1, -3",
    ],
)
def test_not_even_raw_sql_breaks_the_rules(ledger, statement, recursive):
    """Also on a connection of another program, which has SQLite's own settings."""
    before = ledger.balance(0, 0), ledger.entry(0, 0, "a"), ledger.entry(0, 0, "b"), ledger.journal(0, 0)
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute(f"PRAGMA recursive_triggers = {recursive}")
    statement = re.sub(
        f"{RECORD} \\((.*?)\\) SELECT", rf"INSERT INTO journal ({COMMON}, \1) SELECT {VALUES},", statement
    )
    with pytest.raises(sqlite3.IntegrityError):
        other.execute(statement)
    other.close()
    assert before == (
        ledger.balance(0, 0), ledger.entry(0, 0, "a"), ledger.entry(0, 0, "b"), ledger.journal(0, 0)
    )  # fmt: skip
    assert before[0] == Balance(10, 0, 5, 0, 3, 0, 0) and ledger.audit().sound


def test_an_audit_sees_what_was_changed_behind_the_triggers(ledger, tmp_path):
    (tmp_path / "copy").mkdir()
    ledger.back_up(tmp_path / "copy" / "ledger.db")
    other = sqlite3.connect(tmp_path / "copy" / "ledger.db", isolation_level=None)
    triggers = other.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        other.execute(f"DROP TRIGGER {name}")
    other.execute("UPDATE weeks SET reserved = 0")
    other.execute("UPDATE entries SET over = 4 WHERE status = 'settled'")
    other.execute("UPDATE ids SET customer = 'c' WHERE customer = 'a'")
    with pytest.raises(ValueError, match="schema was altered: applied, asked"):
        SqliteFile(tmp_path / "copy").open()
    for _, sql in triggers:
        other.execute(sql)
    other.close()
    altered = SqliteFile(tmp_path / "copy").open()
    audit = altered.audit()
    assert (audit.wrong_weeks, audit.wrong_entries, audit.wrong_keys, audit.sound) == (1, 1, 1, False)
    altered.close()


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_files_that_are_no_ledger_are_refused_and_left_as_they_are(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("id,rate\n" * 1000)
    foreign = tmp_path / "foreign.db"
    other = sqlite3.connect(foreign)
    other.execute("CREATE TABLE weeks (season, week, budget, reserved, settled)")
    other.close()
    for path, message in ((table, "not a ledger"), (foreign, "a database of another program")):
        content = path.read_bytes()
        with pytest.raises(ValueError, match=f"{path.name}: {message}" if path is table else message):
            SqliteLedger(path, caller="test", timeout=1.0, sync="normal")
        assert path.read_bytes() == content
    with pytest.raises(OSError, match="nowhere"):
        SqliteLedger(tmp_path / "nowhere" / "ledger.db", caller="test", timeout=1.0, sync="normal")
    with pytest.raises(ValueError, match="expected full or normal"):
        SqliteLedger(tmp_path / "ledger.db", caller="test", timeout=1.0, sync="of")


def test_a_ledger_of_another_version_is_refused(ledger):
    path = ledger.path
    ledger._connection.execute("PRAGMA user_version = 7")
    with pytest.raises(ValueError, match=r"ledger.db: a ledger of version 7, expected 1"):
        SqliteLedger(path, caller="test", timeout=1.0, sync="normal")


def test_only_the_owner_reads_it(ledger, tmp_path):
    ledger.back_up(tmp_path / "copy.db")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm", "copy.db"), 0o600)


@pytest.mark.slow
def test_processes_that_start_at_once_make_one_ledger(tmp_path):
    program = (
        "import sys; from envs.live.ledger.sqlite import SqliteLedger as Ledger\n"
        "ledger = Ledger(sys.argv[1], caller='x', timeout=30.0, sync='normal'); print(ledger.fund(0, 0, 5, grace=0))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "ledger.db")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(6)]
    assert [process.communicate()[0] for process in processes] == ["True\n"] * 6


def test_a_backup_is_the_ledger_of_one_moment(ledger, tmp_path):
    ledger.back_up(tmp_path / "copy.db")
    ledger.reserve(0, 0, "c", 1, expires=day(9), message="m")
    copied = SqliteLedger(tmp_path / "copy.db", caller="test", timeout=1.0, sync="normal")
    assert copied.balance(0, 0) == Balance(10, 0, 5, 0, 3, 0, 0) and copied.audit().sound
    assert copied.entry(0, 0, "a").status == RESERVED and copied.entry(0, 0, "c") is None
    copied.close()
    with pytest.raises(ValueError, match="a backup overwrites nothing"):
        ledger.back_up(tmp_path / "copy.db")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_in_the_file_tells_an_erased_customer(tmp_path):
    ledger = SqliteFile(tmp_path).open()
    ledger.fund(0, 0, 10, grace=0)
    name = "Guadalupe Etxeberria"
    ledger.settle(0, 0, name, 3, message="r")
    found = lambda: [path.name for path in tmp_path.iterdir() if name.encode() in path.read_bytes()]  # noqa: E731
    assert found()
    assert ledger.erase(name)
    assert found() == []
    assert ledger.settle(0, 0, name, 2, message="r") == "over"  # a new key: nobody knows the old one any more
    assert ledger.audit().entries == 2
    ledger.close()


def test_disks_that_share_no_memory_are_refused(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/vda rw\n"
        "2 1 0:5 / /mnt/shop rw shared:1 - nfs4 server:/shop rw\n"
        "3 2 0:6 / /mnt/shop/local\\040disk rw - xfs /dev/vdb rw\n"
        "4 1 0:7 / /mnt/cloud rw - fuse.rclone remote: rw\n"
        "5 1 0:8 / /mnt/usb rw - fuseblk /dev/sdb rw\n"
    )
    kinds = {
        path: network_disk(Path(path), mounts)
        for path in ("/home/l.db", "/mnt/shop/a/l.db", "/mnt/shop/local disk/l.db", "/mnt/cloud/l.db", "/mnt/usb/l.db")
    }
    assert list(kinds.values()) == [None, "nfs4", None, "fuse.rclone", None]
    assert network_disk(Path("/home/l.db"), tmp_path / "no mounts") is None
    monkeypatch.setattr(sqlite, "network_disk", lambda path: "nfs4")
    with pytest.raises(OSError, match=r"on a network disk \(nfs4\)"):
        SqliteFile(tmp_path).open()
    assert not (tmp_path / "ledger.db").exists()


def test_a_full_disk_is_an_error_and_loses_nothing(ledger):
    """SQLite's own limit on pages stands for the disk's end."""
    ledger._connection.execute("PRAGMA max_page_count = 1")
    (pages,) = ledger._connection.execute("PRAGMA max_page_count").fetchone()
    with pytest.raises(OSError, match="full"):
        for k in range(100 * pages):
            ledger.settle(0, 0, f"x{k}", 0, message="m" * 900)
    ledger._connection.execute("PRAGMA max_page_count = 1000000")
    assert ledger.audit().sound and ledger.settle(0, 0, "a", 5, message="r") == SETTLED


# ── who loads it, and the command ───────────────────────────────────────────────────────────────────────────────────
def test_a_sender_loads_the_ledger_without_pytorch():
    """A writer that is killed and started again must be writing long before PyTorch would have been imported."""
    code = "import sys, envs.live.ledger.opening; sys.exit('torch' in sys.modules or 'psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_address_that_needs_a_missing_package_says_which(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "envs.live.ledger.postgres", raising=False)
    with pytest.raises(ValueError, match=r"needs psycopg: pip install 'crm-rl\[postgres\]'"):
        open_ledger("postgresql://me@localhost/shop", caller="test", timeout=1.0, sync="full")


@pytest.mark.slow
def test_the_command_backs_up_audits_and_erases(ledger, tmp_path):
    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "envs.live.ledger", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    code, out, _ = run("backup", ledger.path, tmp_path / "copy.db")
    assert code == 0 and (tmp_path / "copy.db").exists()
    code, out, _ = run("audit", ledger.path)
    assert code == 0 and "weeks 1" in out and "settled 3" in out and "sound True" in out
    code, out, _ = run("journal", ledger.path, 0, 0)
    assert code == 0 and len(out.splitlines()) == 1 + 4 and out.splitlines()[1].split(",")[4] == "fund"
    assert run("erase", ledger.path, "b") == (0, "erased\n", "")
    code, _, err = run("erase", ledger.path, "a")
    assert code == 2 and "money is reserved" in err and len(err.splitlines()) == 1
    code, _, err = run("audit", tmp_path / "nowhere.db")
    assert code == 2 and "nowhere.db" in err and not (tmp_path / "nowhere.db").exists()
    assert run("expire", ledger.path)[:2] == (0, "1\n")
    assert ledger.settle(0, 0, "a", 99, message="r") == LATE
    assert run("audit", ledger.path)[0] == 3  # the till paid more than the budget
