"""A folder of -cd is code: its YAML may run anything, and what goes wrong there is one line and exit code 2."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from unittest import mock

import pytest

from script_runner import run
from scripts.shared import cli

FILES = {  # of env/world: a file, and what the line says
    "syntax": ("season: [1.0, 2\n", r"while parsing .*syntax.yaml"),
    "twice": ("season: [1.0]\nseason: [2.0]\n", "while constructing .*found duplicate key season"),
    "tag": ("season: !!python/object/apply:os.system ['touch marker']\n", "could not determine a constructor"),
    "latin": (b"name: \xe9\n", r".*latin.yaml: expected UTF-8, got invalid continuation byte at byte 6"),
    "circle": ("defaults: [circle, _self_]\n", "defaults: .* leads back to itself"),
    "no_list": ("defaults: full\n", "Invalid defaults list in 'env/world/no_list'"),
    "cut": ("defaults: [full, _self_]\nseason: ${cut\n", "no viable alternative at input"),
    "nowhere": ("defaults: [full, _self_]\nseason: ${nowhere}\n", "env.world.season: Interpolation key 'nowhere'"),
    "list": ("- 1\n", "env.world: expected a part with a _target_"),
    "strange": ("defaults: [full, _self_]\nseasn: [1.0]\n", r"env.world.seasn: .*World takes catalogue, "),
    "no_module": ("_target_: nothing.here.World\n", "env.world._target_: expected the name of a class"),
    "raises": (
        "_target_: fractions.Fraction\n_args_: [1, 0]\n",
        r"env.world: Error in call to target 'fractions.Fraction': ZeroDivisionError\(.*\); HYDRA_FULL_ERROR=1 shows",
    ),
    "number": ("_target_: fractions.Fraction\n", "env: .*OffersEnv: TypeError: 'Fraction' object is not callable"),
    "blocked": ("_target_: os.system\ncommand: touch marker\n", "env.world: Target 'os.system' is blocklisted"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which `mine` has all files."""
    path = tmp_path_factory.mktemp("cd")
    (path / "mine" / "env" / "world").mkdir(parents=True)
    for name, (text, _) in FILES.items():
        content = text if isinstance(text, bytes) else text.encode()
        (path / "mine" / "env" / "world" / f"{name}.yaml").write_bytes(content)
    return path


def error_of(done) -> str:
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_broken_or_evil_file_is_one_line(folder, name):
    said = error_of(run(folder, "train", "-cd", "mine", f"env/world={name}"))
    assert re.match(FILES[name][1], said), said
    assert not (folder / "marker").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "overrides", "says"),
    [
        ("train", ["algo.optimizer._target_=torch.optim.SGD"], "algo.optimizer.betas: torch.optim.sgd.SGD takes "),
        ("train", ["~algo.gamma"], "algo.gamma: expected a value, which rlcore.ppo.PPO needs, got no such key"),
        ("train", ["~seed"], "seed: expected a value, got no such key"),
        ("train", ["algo=null"], "algo: expected a choice of the group, got null"),
        ("train", ["hydra.launcher._target_=fractions.Fraction", "-m", "seed=0,1"], "RuntimeError: Invalid plugin"),
        ("train", ["+hydra.callbacks.x._target_=fractions.Nothing"], "hydra.callbacks.x: Error locating target"),
        ("train", ["hydra.run.dir=${nowhere}"], "hydra.run.dir: Interpolation key 'nowhere' not found"),
        ("evaluate", ["~ope.level"], "ope.level: expected a value, which rlcore.ope.evaluator."),
        ("collect", ["logging_policy._target_=nothing.here"], "logging_policy._target_: expected the name of a class"),
        ("bench", ["benchmark=ope/selection", "~benchmark.pool"], "benchmark.pool: expected a value, which scripts."),
        ("uplift", ["~ab_test.level"], "ab_test.level: expected a value, which envs.ab_test"),
        ("import_sends", ["env.catalogue=null"], "env.catalogue: expected Catalogue, which "),
        ("uplift", ["experiment=frontier"], "experiment/learner/full_information.yaml: chooses algo, which uplift "),
        ("collect", ["algo=bandit", "out=x.csv"], "algo=bandit: nothing is trained here, expected no choice and no "),
        ("import_sends", ["algo.gamma=0.5", "out=x.csv"], "algo.gamma=0.5: nothing is trained here, expected no choi"),
    ],
)
def test_what_no_class_can_be_given_is_one_line_of_every_script(tmp_path, script, overrides, says):
    said = error_of(run(tmp_path, script, *overrides))
    assert said.startswith(says), said


def test_an_error_that_is_not_about_the_input_keeps_its_traceback(monkeypatch):
    """Where a fault of the program happened is what its author needs."""

    def fails(_):
        raise LookupError("a fault")

    monkeypatch.setattr(cli, "check_config", lambda cfg: None)
    with pytest.raises(LookupError) as caught:
        cli.guarded(fails)({"part": {"_target_": "envs.offers.env.OffersEnv"}})
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # a script's own is not for the tests after it
    try:
        with mock.patch.dict(os.environ):
            with pytest.raises(LookupError):
                cli.launch(lambda: fails_again(caught.value))
            with pytest.raises(SystemExit) as ended:
                cli.launch(lambda: fails(None))  # outside of a job: while Hydra composes
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 2


def fails_again(error: Exception) -> None:
    raise error
