"""docs/extend.md runs as it stands, and its algorithms learn."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extend.md"
SMALL = (
    "env.num_agents=48 algo.total_steps=1152 env.population.reference_size=200 env.evaluation.customers=8 "
    "env.evaluation.seasons=1 env.evaluation.validation=8 env.evaluation.tuning_customers=8 "
    "env.evaluation.tuning_seasons=1 env.evaluation.fees=[0.5] env.evaluation.regression_customers=100 "
    "env.evaluation.price_grid.points=4 env.evaluation.bound.max_evaluations=4 env.evaluation.hard_budget_rule=null"
).split()


@pytest.mark.long
def test_the_page_on_extending_runs_and_learns(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    for line in printed[:2]:  # at chance 1 in 25 steps ends the walk, at best 1 in 5
        first, last = (float(x) for x in re.findall(r"\d\.\d\d", line))
        assert first < 0.1 and last > 0.17, line
    contacts = float(re.search(r"contacts: ([\d.]+)%", printed[2]).group(1))
    assert 5 < contacts < 20  # of those who may be contacted, one in five


@pytest.mark.long
def test_the_algorithm_of_the_page_trains_from_the_command_line(tmp_path):
    page = PAGE.read_text()
    algorithm = next(
        block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Reinforce" in block
    )
    (settings,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_algos.py").write_text("import torch\n" + algorithm.partition("\n\nreinforce = ")[0])
    (tmp_path / "mine" / "algo").mkdir(parents=True)
    (tmp_path / "mine" / "algo" / "reinforce.yaml").write_text(settings)
    command = [sys.executable, ROOT / "scripts" / "train.py", "-cd", "mine", "algo=reinforce", "env=offers", *SMALL]
    ended = subprocess.run(
        [*command, "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["headline"]["of"] == "reinforce" and "reinforce" in metrics["policies"]
