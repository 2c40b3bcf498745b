"""Help: every script says in a few lines what it does, with examples; near misses are answered by a suggestion."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs import CONF
from scripts.__main__ import COMMANDS
from scripts.shared.cli import usage
from scripts.shared.explanations import explained, groups_of_conf, unknown

SCRIPTS = Path(__file__).parents[2] / "scripts"


def docstring(command: str) -> str:
    return ast.get_docstring(ast.parse((SCRIPTS / f"{command}.py").read_text())) or ""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_script_says_what_it_does_with_an_example_of_itself(command):
    lines = docstring(command).splitlines()
    assert len(lines) <= 12 and lines[0].endswith(".")
    examples = [shlex.split(line, comments=True) for line in lines if f"scripts/{command}.py" in line]
    assert examples and all(example[0] in ("python", "torchrun") for example in examples)


def test_help_lists_the_choices_of_groups():
    shown = usage("Do a thing.\n", ("algo", "env", "benchmark")).splitlines()
    assert shown[0] == "Do a thing." and "--cfg job" in shown[-1] and "--info" in shown[-1]
    algo = next(line for line in shown if line.startswith("  algo= "))
    assert set(algo.partition("=")[2].strip().split(" | ")) >= {"bandit", "bcq", "cql"}
    assert any("speed/roofline" in line for line in shown)


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_printed_and_nothing_is_made(command, tmp_path):
    flag = "-h" if command == "train" else "--help"  # both flags are one branch of `launch`
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / f"{command}.py"), flag], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "" and f"scripts/{command}.py" in done.stdout
    assert len(done.stdout.splitlines()) <= 25 and list(tmp_path.iterdir()) == []


def test_a_group_that_is_almost_one_is_suggested():
    assert unknown("algo/netwrk", "train") == "algo/netwrk: no such group; did you mean algo/network?"
    assert unknown("zzz/qqq", "train") == "zzz/qqq: no such group"
    assert {"algo", "env/population", "algo/network"} <= set(groups_of_conf())


def test_a_choice_that_is_almost_one_is_suggested():
    from hydra.errors import MissingConfigException

    options = [path.stem for path in (CONF / "algo").glob("*.yaml")]
    said = explained(MissingConfigException("no", "algo/bandti", options), "train")
    assert said.startswith("algo=bandti: no such choice; did you mean bandit? expected ")
    assert "did you mean" not in explained(MissingConfigException("no", "algo/zzzzz", options), "train")
