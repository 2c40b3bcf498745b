"""weekly.sh and the other commands of docs/operations.md: copies, bounds and ends, with a program that takes no time.

The program is a script in the place of python: its import appends the exported sends to the log, and its plan is a copy
of a plan that lies ready. What the plan sends lies ready too, but where a test removes it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from operations_page import PAGE, commands_under, crontab_line, script_of_the_page

pytest.importorskip("pyarrow")  # extra `live`
import pyarrow as pa
import pyarrow.parquet as pq

pytestmark = pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock and GNU date")
MONDAY = "2026-12-07"  # of week 48
ROOT = Path(__file__).parents[2]
PYTHON = f"""#!/usr/bin/env bash
if [ "$1" = -m ]; then
    if [ -e totals ]; then cat totals; else PYTHONPATH={ROOT} exec {sys.executable} "$@"; fi
    exit
fi
echo "$*" >> calls
case $1 in
scripts/import_sends.py)
    {{IMPORT}}
    for argument; do case $argument in sends.path=*) cat "${{argument#*=}}" >> log.parquet ;; esac; done ;;
scripts/plan.py) mkdir -p plan && cp made/* plan/ ;;
esac
"""
SPENDS = [0.25, 0.5, 0.75]  # of the plan's messages


@pytest.fixture
def folder(tmp_path) -> Path:
    """A shop's folder as the page builds it, before week 48."""
    (tmp_path / "program-1" / "scripts").mkdir(parents=True)
    (tmp_path / "program-1" / ".venv" / "bin").mkdir(parents=True)
    links = next(line for line in commands_under("Before the first Monday").splitlines() if "ln -s" in line)
    assert bash(links, tmp_path).returncode == 0
    put_program(tmp_path / "program-1")
    (tmp_path / "weekly.sh").write_text(script_of_the_page())
    (tmp_path / "log.parquet").write_text("sends to week 46\n")
    export(tmp_path, MONDAY, "sends of week 47\n")
    make_plan(tmp_path, SPENDS)
    return tmp_path


def put_program(folder: Path, at_import: str = "") -> None:
    """Write what runs in the place of python; `at_import` are commands before the import."""
    python = folder / ".venv" / "bin" / "python"
    python.write_text(PYTHON.replace("{IMPORT}", at_import))
    python.chmod(0o755)


def export(folder: Path, monday: str, sends: str) -> None:
    (folder / "exports" / monday).mkdir(parents=True, exist_ok=True)
    for name, text in {"customers": "K1\n", "sends": sends, "purchases": "K1\n"}.items():
        (folder / "exports" / monday / f"{name}.csv").write_text(text)


def make_plan(folder: Path, spends: list[float], week: int = 48) -> None:
    """Let the next plan send a message for each expected spend, and nothing to one customer more."""
    (folder / "made").mkdir(exist_ok=True)
    arms = ["rl" if k % 5 == 0 else "bau" for k in range(len(spends) + 1)]
    table = {"arm": arms, "offer": ["coffee"] * len(spends) + [""], "spend": [*spends, 0.0]}
    pq.write_table(pa.table(table), folder / "made" / f"week={week}.parquet")
    rows = [f"{k},K{k}\n" for k in range(len(spends))]
    (folder / "made" / f"week={week}.csv").write_text("".join(["decision,customer\n", *rows]))
    (folder / "totals").write_text(f"{len(spends)} messages\n")


def bash(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: x for name, x in os.environ.items() if name not in ("WEEK", "FIRST", "BOUNDS")}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env={**inherited, **environment}, capture_output=True, text=True
    )


def weekly(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return bash("bash weekly.sh 5000", folder, **{"WEEK": "48", **environment})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if not path.name.startswith(".")}


def test_a_good_run_ends_with_what_was_handed_over_and_so_does_a_repetition(folder):
    (folder / "totals").unlink()
    for _ in range(2):
        done = weekly(folder)
        assert (done.returncode, done.stderr) == (0, "")
        last = "week 48: 3 messages (bau 2, rl 1), expected spend 1.5, handed over"
        assert done.stdout.splitlines()[-1] == last
        assert contents(folder / "sent") == contents(folder / "made")
    (of_the_page,) = re.findall(r"^week 48: (?:\S+) messages.*, handed over$", PAGE, re.MULTILINE)
    form = "week #: # messages (bau #, rl #), expected spend #, handed over"
    assert re.sub(r"[\d.]+", "#", of_the_page).replace("random #, ", "") == form == re.sub(r"[\d.]+", "#", last)


def test_a_week_that_was_handed_over_is_imported_and_not_planned_again(folder):
    """Also with another plan's arguments: plan/, which later forecasts read, stays that of what was sent."""
    assert weekly(folder).returncode == 0
    make_plan(folder, [9.0])
    again = bash("bash weekly.sh 9000 replace=true", folder, WEEK="48")
    assert again.returncode == 0, again.stderr
    imported, planned, once_more = (folder / "calls").read_text().splitlines()
    assert imported == once_more and planned.startswith("scripts/plan.py")
    assert contents(folder / "plan") == contents(folder / "sent") != contents(folder / "made")


@pytest.mark.parametrize(
    ("command", "week", "said"),
    [
        ("bash weekly.sh", "48", "weekly.sh: expected the week's money"),
        ("bash weekly.sh 5000", "abc", "WEEK: expected the number of a week, got 'abc'"),
        ("bash weekly.sh 5000", "-1", "WEEK: expected the number of a week, got '-1'"),
        ("bash weekly.sh 5000", "048", "WEEK: expected the number of a week, got '048'"),  # its files would be others
        ("bash weekly.sh 5000", "49", "exports/2026-12-14/customers.csv: expected an export, got none"),
    ],
)
def test_a_run_that_can_t_begin_says_why_and_that_it_failed(folder, command, week, said):
    done = bash(command, folder, WEEK=week)
    first, last = done.stderr.splitlines()
    assert done.returncode == 2 and first.startswith(said) and last.startswith("FAILED week ")
    assert not (folder / "calls").exists()


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("kill -TERM $PPID", 143), ("kill -KILL $$", 137)])
def test_a_run_that_fails_says_so_last(folder, command, code):
    put_program(folder / "program-1", at_import=command)
    done = weekly(folder)
    assert done.returncode == code and done.stderr.splitlines()[-1] == f"FAILED week 48, code {code}"
    assert "handed over" not in done.stdout and not contents(folder / "sent")


def test_the_log_from_before_the_first_import_of_a_week_is_kept_for_eight_weeks(folder):
    backup = folder / "backup"
    backup.mkdir()
    for week in range(9, 48):
        (backup / f"log-before-week={week}.parquet").touch()
    before = (folder / "log.parquet").read_text()
    for _ in range(2):  # the second run finds the log after the import
        assert weekly(folder).returncode == 0
    assert sorted(contents(backup)) == [f"log-before-week={week}.parquet" for week in range(41, 49)]
    assert (backup / "log-before-week=48.parquet").read_text() == before
    export(folder, "2026-10-12", "late\n")
    make_plan(folder, SPENDS, week=40)
    assert weekly(folder, WEEK="40").returncode == 0  # a late run: the log is not that of before week 40 any more
    assert sorted(contents(backup)) == [f"log-before-week={week}.parquet" for week in range(41, 49)]


def test_a_file_that_the_sender_has_is_not_called_unwritten(folder):
    """The folder of the sender's file can't be brought to the disk, once the file has its name."""
    tool = folder / ".venv" / "bin" / "sync"
    tool.write_text(f'#!/usr/bin/env bash\n[ "$1" != sent ] || exit 1\nexec {shutil.which("sync")} "$@"\n')
    tool.chmod(0o755)
    done = weekly(folder)
    assert done.returncode == 2 and "sent/week=48.parquet: written, but maybe not on the disk" in done.stderr
    assert "not written" not in done.stderr and (folder / "sent" / "week=48.parquet").is_file()


@pytest.mark.parametrize("ends", ["kill -KILL $PPID", "exit 1"])  # the machine goes off, or the disk is full
@pytest.mark.parametrize("cut", ["log.parquet", "plan/week=48.parquet", "plan/week=48.csv"])
def test_a_copy_that_was_cut_short_leaves_only_whole_files_and_is_made_again(folder, cut, ends):
    tool = folder / ".venv" / "bin" / "cp"
    cut_short = f'if [ "$1" = {cut} ]; then head -c 4 "$1" > "$2"; {ends}; fi'
    tool.write_text(f'#!/usr/bin/env bash\n{cut_short}\nexec {shutil.which("cp")} "$@"\n')
    tool.chmod(0o755)
    before, made = (folder / "log.parquet").read_bytes(), contents(folder / "made")
    done = weekly(folder)
    assert done.returncode == (2 if ends == "exit 1" else -9)
    if ends == "exit 1":  # half a log would fill the disk
        assert not list(folder.glob("*/.next")) and done.stderr.splitlines()[-2].endswith(": not written")
    assert contents(folder / "backup") == ({} if cut == "log.parquet" else {"log-before-week=48.parquet": before})
    whole = {"week=48.parquet": made["week=48.parquet"]} if cut.endswith("csv") else {}
    assert contents(folder / "sent") == whole
    tool.unlink()
    assert weekly(folder).returncode == 0
    assert contents(folder / "backup") == {"log-before-week=48.parquet": before} and contents(folder / "sent") == made


def test_other_files_in_backup_stop_no_copy(folder):
    """Such as an operator's own copy, with a date in its name, and a folder of an older year."""
    (folder / "backup" / "2026").mkdir(parents=True)
    others = [
        "log-before-week=47.parquet.2026-11-30",
        "log-before-week=47 of Ann.parquet",
        "2026/log-before-week=99.none",
    ]
    for name in others:
        (folder / "backup" / name).touch()
    for week in range(30, 48):
        (folder / "backup" / f"log-before-week={week}.parquet").touch()
    done = weekly(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "backup" / "log-before-week=48.parquet").read_text() == "sends to week 46\n"
    assert all((folder / "backup" / name).exists() for name in others)
    assert len(list((folder / "backup").iterdir())) == 8 + 3


def test_a_missing_log_stops_all_runs_but_the_first(folder):
    (folder / "log.parquet").unlink()
    done = weekly(folder)
    assert done.returncode == 2 and done.stderr.startswith("log.parquet: expected the log, got none")
    assert not (folder / "calls").exists()
    assert weekly(folder, FIRST="1").returncode == 0
    assert (folder / "log.parquet").read_text() == "sends of week 47\n"
    assert weekly(folder).returncode == 0  # a repetition does not take the log of after the import for that of before
    assert contents(folder / "backup") == {"log-before-week=48.none": b""}


@pytest.mark.parametrize(
    ("spends", "bounds", "said"),
    [
        ([], "", "0 messages, out of the bounds 1 to any"),
        (SPENDS, "messages=1-9 rl=2-9", "1 messages of the arm rl, out of the bounds 2 to 9"),
    ],
)
def test_a_plan_out_of_bounds_is_handed_over_by_hand_only(folder, spends, bounds, said):
    make_plan(folder, spends)
    (folder / "totals").unlink()
    done = weekly(folder, BOUNDS=bounds)
    lines = done.stderr.splitlines()
    assert done.returncode == 4 and lines[-1] == "FAILED week 48, code 4"
    assert lines[0] == f"plan/week=48.parquet: {said}: not handed over" and "handed over" not in done.stdout
    assert not contents(folder / "sent")
    assert bash(commands_under("To hand over by hand"), folder).returncode == 0
    assert contents(folder / "sent") == contents(folder / "made")
    assert weekly(folder, BOUNDS=bounds).returncode == 0  # a week that was handed over is within bounds


def test_a_bound_that_can_t_be_read_stops_the_job(folder):
    (folder / "totals").unlink()
    done = weekly(folder, BOUNDS="messages=1- rl=1,000-")
    assert done.returncode == 2 and done.stderr.startswith("error: bounds: expected NAME=LEAST-MOST")
    assert not contents(folder / "sent")


def test_the_crontab_plans_with_the_shops_own_rule_of_the_week(folder):
    make_plan(folder, [0.5] * 200)
    (folder / "totals").unlink()
    done = subprocess.run(
        ["sh", "-c", crontab_line("0 6 * * 1", folder)], cwd="/", env={**os.environ, "WEEK": "48"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    _, planned = (folder / "calls").read_text().splitlines()
    assert planned.endswith(f"z=2 arms.bau=0.5 shop_rule.decisions=exports/{MONDAY}/ours.csv")


@pytest.mark.parametrize("handed_over", [True, False])
def test_the_alarm_mails_where_no_plan_was_handed_over(tmp_path, handed_over):
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "week=47.csv").touch()
    if handed_over:
        (tmp_path / "sent" / "week=48.csv").touch()
    clock = f'date() {{ if [ "$*" = +%F ]; then echo {MONDAY}; else command date "$@"; fi; }}\n'
    done = bash(clock + crontab_line("0 12 * * 1", tmp_path), tmp_path)
    assert done.stderr == "" and done.stdout == ("" if handed_over else "week 48: no plan was handed over\n")


def test_a_wrong_import_is_undone(folder):
    export(folder, MONDAY, "half of the sends\n")
    assert weekly(folder).returncode == 0
    assert bash(commands_under("To undo an import"), folder).returncode == 0
    export(folder, MONDAY, "all sends\n")
    assert weekly(folder).returncode == 0
    assert (folder / "log.parquet").read_text() == "sends to week 46\nall sends\n"


@pytest.mark.parametrize("is_of_the_plan", [True, False])
def test_a_damaged_plan_is_repaired_without_a_new_file_for_the_sender(folder, is_of_the_plan):
    assert weekly(folder).returncode == 0
    sent = folder / "sent" / "week=48.csv"
    (folder / "sent" / "week=48.parquet").write_text("damaged")
    if not is_of_the_plan:
        (folder / "plan" / "week=48.csv").write_text("another plan\n")
    before = sent.stat()
    assert (bash(commands_under("To repair a plan in sent/"), folder).returncode == 0) is is_of_the_plan
    assert (sent.stat().st_ino, sent.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (contents(folder / "sent")["week=48.parquet"] == b"damaged") is not is_of_the_plan


def test_an_upgrade_is_tried_on_copies_before_the_link_is_switched(folder):
    make_plan(folder, [0.5] * 200)
    for name in ("shop", "package"):
        (folder / name).mkdir()
    good = weekly(folder)
    files = {name: contents(folder / name) for name in ("plan", "sent", "backup")}
    log = (folder / "log.parquet").read_bytes()
    of_the_last_upgrade = folder / "trial" / ".venv" / "bin"
    of_the_last_upgrade.mkdir(parents=True)
    (of_the_last_upgrade / "python").write_text("exit 9\n")
    (folder / "program-2" / "scripts").mkdir(parents=True)
    (folder / "program-2" / ".venv" / "bin").mkdir(parents=True)
    put_program(folder / "program-2", at_import="cp -r ../made ../totals . ; touch by_program_2")
    _, found, after_the_installation = commands_under("Upgrade").partition("# the newest job once more")
    assert found
    trial, switch, to_the_new = after_the_installation.partition("# the switch")
    crontab = crontab_line("0 6 * * 1", folder).replace(str(folder), "trial")
    assert crontab in trial
    for _ in range(2):  # a second trial does not find the log of the first
        assert bash(f"#{trial}", folder).stdout == good.stdout
    (folder / "backup" / "log-before-week=48.parquet").rename(folder / "put away")
    stopped = bash(f"#{trial}", folder)  # no command goes on after one that failed
    assert stopped.returncode != 0 and "handed over" not in stopped.stdout
    (folder / "put away").rename(folder / "backup" / "log-before-week=48.parquet")
    done = bash(f"set -e\n#{trial}{switch}{to_the_new}", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == good.stdout and (folder / "trial" / "by_program_2").exists()
    assert {name: contents(folder / name) for name in files} == files and (folder / "log.parquet").read_bytes() == log
    assert (folder / "trial" / "log.parquet").read_bytes() == log
    assert (folder / ".venv").resolve() == (folder / "scripts").resolve().parent / ".venv" == folder / "program-2/.venv"
