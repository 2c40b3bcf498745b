"""The weekly job of docs/operations.md runs as it stands there, again, and with another plan for the same week."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import script_runner
from small_runs import SHOP_POLICY

for package in ("pyarrow", "onnxscript", "onnxruntime", "jinja2"):  # extra `live`
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
LAST, MONDAY = "2026-12-06", "2026-12-07"  # the last day of the made-up year, and the planned week's first


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A shop's folder with a policy's package, the first week's exports, and weekly.sh."""
    folder = tmp_path_factory.mktemp("operations")
    run = script_runner.run
    assert run(folder, "example_shop", "shop", "--customers", "120").returncode == 0
    view = ["-cd", "shop", "experiment=shop", "env/observation=history"]
    trained = run(folder, "train", *view, "algo=ppo_expected", *SHOP_POLICY, "hydra.run.dir=policy")
    assert trained.returncode == 0, trained.stderr
    assert run(folder, "export", "checkpoint=policy/checkpoint.pt", "out=package").returncode == 0
    (folder / "exports" / MONDAY).mkdir(parents=True)
    for name in ("customers.csv", "sends.csv", "purchases.csv"):
        shutil.copy(folder / "shop" / name, folder / "exports" / MONDAY / name)
    (script,) = re.findall(r"```bash\n(#!.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    (folder / "weekly.sh").write_text(script)
    (folder / "scripts").symlink_to(ROOT / "scripts")
    return folder


def weekly(folder: Path, week: int, money: int) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "weekly.sh", str(week), str(money)]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_the_weekly_job_runs_twice_and_hands_over_one_plan(shop):
    first = weekly(shop, 48, 200)
    assert first.returncode == 0, first.stderr
    assert f"weeks to {LAST}" in first.stdout
    sent, log = shop / "sent" / "week=48.csv", shop / "log.parquet"
    before, logged = sent.read_bytes(), log.read_bytes()
    again = weekly(shop, 48, 200)
    assert again.returncode == 0, again.stderr
    assert sent.read_bytes() == before and log.read_bytes() == logged
    other = weekly(shop, 48, 2000)
    assert other.returncode == 2 and "replace" in other.stderr.splitlines()[-1]
    assert sent.read_bytes() == before
