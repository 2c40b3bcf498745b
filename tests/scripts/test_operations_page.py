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


@pytest.mark.long
@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_the_weekly_job_runs_twice_and_hands_over_one_plan(tmp_path):
    run = script_runner.run
    assert run(tmp_path, "example_shop", "shop", "--customers", "120").returncode == 0
    shop = ["-cd", "shop", "experiment=shop", "env/observation=history"]
    trained = run(tmp_path, "train", *shop, "algo=ppo_expected", *SHOP_POLICY, "hydra.run.dir=policy")
    assert trained.returncode == 0, trained.stderr
    assert run(tmp_path, "export", "checkpoint=policy/checkpoint.pt", "out=package").returncode == 0
    (tmp_path / "exports").mkdir()
    for name in ("customers.csv", "sends.csv", "purchases.csv"):
        shutil.copy(tmp_path / "shop" / name, tmp_path / "exports" / name)
    (script,) = re.findall(r"```bash\n(#!.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    (tmp_path / "weekly.sh").write_text(script)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")

    def weekly(money: int) -> subprocess.CompletedProcess:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = ["bash", "weekly.sh", "48", str(money)]
        return subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)

    first = weekly(200)
    assert first.returncode == 0, first.stderr
    sent, log = tmp_path / "sent" / "week=48.csv", tmp_path / "log.parquet"
    before, logged = sent.read_bytes(), log.read_bytes()
    again = weekly(200)
    assert again.returncode == 0, again.stderr
    assert sent.read_bytes() == before and log.read_bytes() == logged
    other = weekly(2000)
    assert other.returncode == 2 and "replace" in other.stderr.splitlines()[-1]
    assert sent.read_bytes() == before
